"""Training runs of ``minrnn compare``: each a process of its own, with its measurements."""

from __future__ import annotations

import csv
import ctypes
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from minrnn_lightning.checkpoint import CheckpointError, read_checkpoint
from minrnn_lightning.commands.run_checkpoints import last_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.generate import generate, load_language_task
from minrnn_lightning.results import write_json

PROMPT, STEPS = 256, 200  # tokens of the prompt, and tokens whose generation is timed
ONLINE: dict[str, Callable[[Iterable[float]], float]] = {  # summaries of what online training logs
    "env_steps": max,
    "collect_steps_per_s": statistics.median,
    "update_steps_per_s": statistics.median,
    "collect_seconds_per_step": statistics.median,
}
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>, Linux


def _end_with_parent() -> None:
    """In a new process, where the system can: end as at Ctrl-C when this one ends, however that may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell in the background leaves ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


# Options of a process; Windows has neither sessions nor code that runs between its start and the program's.
OF_THEIR_OWN: dict[str, Any] = (
    {} if sys.platform == "win32" else {"start_new_session": True, "preexec_fn": _end_with_parent}
)


class Run:
    """The training of one mixer with one seed, in a process of its own that does not outlive this one.

    Args:
        mixer: Name of a mixer, or several with + between them.
        seed: Seed of all random numbers.
        args: The options of ``minrnn fit``.
        runs: Folder in which the run makes its own, for the log and the checkpoints.
        device: Index of a GPU, ``cpu``, or None for the device of the options.
        concurrent: Number of runs at a time, which divide the cores of the CPU among them.
        settings: Options that overrule those of ``args``.
        name: Name of the run and its folder (default: mixer and seed).

    Raises:
        InputError: The folder holds a run with other options.
    """

    def __init__(
        self,
        mixer: str,
        seed: int,
        args: list[str],
        runs: Path,
        device: str | None,
        concurrent: int,
        settings: Sequence[str] = (),
        name: str = "",
    ) -> None:
        self.mixer, self.seed, self.args, self.device = mixer, seed, args, device
        self.name = name or f"{mixer}-{seed}"
        self.folder = runs / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.interrupted = last_checkpoint(self.folder)
        record = self.folder / "options.json"
        if self.interrupted and record.is_file() and json.loads(record.read_bytes()) != [*args, *settings]:
            raise InputError(f"{self.folder} holds a run with other options: remove it or give other --runs")
        if not self.interrupted:
            for file in self.folder.glob("version_*/metrics.csv"):  # of a run that this one does not continue
                file.replace(file.with_name("earlier_metrics.csv"))
        write_json(record, [*args, *settings])
        command = [sys.executable, "-m", "minrnn_lightning", "fit", *args, *settings]
        command += [mixer_option(mixer)]
        command += [f"--seed_everything={seed}", f"--trainer.default_root_dir={self.folder}"]
        command += ["--trainer.callbacks+=TrainingCost", "--trainer.enable_progress_bar=false"]
        environment = dict(os.environ)
        if device == "cpu":
            command += ["--trainer.accelerator=cpu"]
            environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // concurrent)))
        elif device is not None:
            command += ["--trainer.accelerator=cuda", f"--trainer.devices=[{device}]"]
        command += [f"--ckpt_path={self.interrupted}"] if self.interrupted else []
        self.log = self.folder / "log"
        print(
            f"{name or f'{mixer}, seed {seed}'}: {'resumes' if self.interrupted else 'starts'}; log in {self.log}",
            flush=True,
        )
        self.started = time.perf_counter()
        with self.log.open("ab") as log:  # in a session of its own, Ctrl-C reaches it through ``stop`` alone
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, **OF_THEIR_OWN)

    @property
    def generation_device(self) -> torch.device:
        """Device on which the speed of generation is measured."""
        on_cpu = self.device == "cpu" or not torch.cuda.is_available()
        return torch.device("cpu" if on_cpu else f"cuda:{self.device or 0}")

    def stop(self) -> None:
        """Stop it after the step in progress, with a checkpoint."""
        if sys.platform == "win32":  # which cannot send Ctrl-C to another process alone: the last checkpoint remains
            self.process.terminate()
        else:
            self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of the finished run, of which no more than its measurements is needed."""
        for checkpoint in self.folder.glob("version_*/checkpoints/*.ckpt"):
            checkpoint.unlink()

    def training(self, metric: str) -> dict[str, Any]:
        """What the finished training cost and reached: the learning curve of a metric, steps and times.

        Raises:
            InputError: It failed, or did not log the metric.
        """
        minutes = (time.perf_counter() - self.started) / 60
        if self.process.returncode:
            reason = last_line(self.log.read_text(encoding="utf-8", errors="replace")) or f"{self.log} is empty"
            raise InputError(f"the run of {self.mixer} with seed {self.seed} failed: {reason}")
        logged = _logged(self.folder)
        if metric not in logged or "seconds_per_step" not in logged:
            raise InputError(
                f"the run of {self.mixer} with seed {self.seed} in {self.folder} left no checkpoint or no {metric!r}; "
                f"it logged {', '.join(sorted(logged)) or 'nothing'}"
            )
        seconds = logged["seconds_per_step"]
        curve = sorted(logged[metric].items())
        return {
            "mixer": self.mixer,
            "seed": self.seed,
            "metric": metric,
            "last": curve[-1][1],
            "steps": max(seconds),
            "seconds_per_step": statistics.median(seconds.values()),
            "minutes": None if self.interrupted else minutes,
            "peak_mb": max(logged.get("peak_mb", {}).values(), default=None),
            **{name: summary(logged[name].values()) for name, summary in ONLINE.items() if name in logged},
            "curve": curve,
            **({"env_steps_curve": sorted(logged["env_steps"].items())} if "env_steps" in logged else {}),
            "options": self.args,
        }

    def measurements(self, metric: str) -> dict[str, Any]:
        """Results of the finished run: those of ``training``, the size and the speed of generation.

        Raises:
            InputError: It failed, left no checkpoint or did not log the metric.
        """
        training, checkpoint = self.training(metric), last_checkpoint(self.folder)
        if checkpoint is None:
            raise InputError(f"the run of {self.mixer} with seed {self.seed} in {self.folder} left no checkpoint")
        trained = read_checkpoint(checkpoint)
        return training | {
            "parameters": trained.get("parameters") or sum(each.numel() for each in trained["state_dict"].values()),
            "dim": trained["hyper_parameters"]["dim"],
            "tokens_per_s": _tokens_per_second(checkpoint, self.generation_device),
        }


Job = Generator[Callable[[str | None, int], Run], Run, None]


def run_jobs(jobs: Iterable[Job], devices: Sequence[str | None]) -> None:
    """Run jobs until all have ended, with one run at a time on each device.

    Args:
        jobs: Generators; each yields functions that start a run, given device and number of runs at a time, and is
            sent the run when its process has ended.
        devices: Index of a GPU, ``cpu``, or None for that of the recipe; one that is given twice has two runs at a
            time.
    """
    waiting = deque(jobs)
    running: dict[int, tuple[Job, Run]] = {}  # by the index of the device, of which two may be the same
    try:
        while waiting or running:
            for index, device in enumerate(devices):
                start = None
                if index in running:
                    job, run = running[index]
                    if run.process.poll() is None:
                        continue
                    del running[index]
                    start = _advance(job, run)
                while start is None and waiting:
                    job = waiting.popleft()
                    start = _advance(job, None)
                if start is not None:
                    running[index] = job, start(device, len(devices))
            time.sleep(0.1)
    finally:
        for _, run in running.values():
            run.stop()


def _advance(job: Job, run: Run | None) -> Callable[[str | None, int], Run] | None:
    """The next run of a job after one has ended; None at its end."""
    try:
        return next(job) if run is None else job.send(run)
    except StopIteration:
        return None


def mixer_option(mixer: str) -> str:
    """The option of ``minrnn fit`` for a mixer, or for several with + between them."""
    return f"--model.mixer={json.dumps(mixer.split('+')) if '+' in mixer else mixer}"


def last_line(text: str) -> str:
    """The last line that is not empty, without the name of the command."""
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("minrnn: ") if lines else ""


def _logged(folder: Path) -> dict[str, dict[int, float]]:
    """Finite values of each metric by step, at the validations of a run and of those that it resumed."""
    points: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("version_*/metrics.csv"), key=os.path.getmtime):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                step = row.pop("steps", "")  # which TrainingCost logs at every validation
                for name, value in row.items():
                    if step and value and math.isfinite(float(value)):
                        points.setdefault(name, {})[int(float(step))] = float(value)
    return points


def _tokens_per_second(checkpoint: Path, device: torch.device) -> float | None:
    """Speed of generation after a prompt; None if the task does not generate."""
    try:
        task, _ = load_language_task(checkpoint)
    except CheckpointError:
        return None
    prompt = torch.zeros(1, PROMPT, dtype=torch.long, device=device)
    tokens = map(int, generate(task.to(device), prompt, STEPS + 1))  # int() waits for the GPU
    next(tokens)
    started = time.perf_counter()
    for _ in tokens:
        pass
    return STEPS / (time.perf_counter() - started)
