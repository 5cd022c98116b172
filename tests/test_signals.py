"""Processes of a pool end with the one that has started them; signals of the command are in tests/commands."""

import multiprocessing
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from minrnn_lightning.signals import start_worker
if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context(sys.argv[1]), start_worker) as pool:
        list(pool.map(time.sleep, [0.2, 0.2]))  # both workers have started
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & {*multiprocessing.get_all_start_methods()}))
def test_workers_end_with_a_process_that_is_killed(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # The workers have its output too: reading it ends when the last of them has ended.
    run = subprocess.run([sys.executable, program, method], stdout=subprocess.PIPE, timeout=60)
    assert run.returncode == -signal.SIGKILL
