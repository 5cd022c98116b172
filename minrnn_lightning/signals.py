"""Signals that terminate the process, all handled like Ctrl-C, each with its own exit code; and worker processes."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

# SIGTERM: Slurm, systemd, docker stop, spot machines; SIGHUP: a terminal that is closed. Windows has no SIGHUP.
TERMINATION_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal that terminates the process, as an exception.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def exit_code(stop: BaseException) -> int:
    """Exit code that a shell expects of a process that a signal terminated: 128 plus the number of the signal."""
    return 128 + int(getattr(stop, "number", signal.SIGINT))


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP terminate the process like Ctrl-C, unless the caller has them ignored, as ``nohup`` does.

    In a Slurm job, SIGTERM is left to Lightning: it may be the signal that asks to requeue the job.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in TERMINATION_SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_DFL:
            if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
                continue
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def start_worker() -> None:
    """Prepare a process of a pool: Ctrl-C is left to the process that has started it, and it ends with that one.

    A worker waits for work for ever when that process is killed: the pipe that work comes from stays open, since the
    other workers have it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process  # in workers, which have it: importing it takes 10 ms of a start

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
