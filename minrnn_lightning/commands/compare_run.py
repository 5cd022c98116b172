"""One training run of ``minrnn compare``: a process of its own, and the measurements that it leaves."""

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
from pathlib import Path
from typing import Any

import torch

from minrnn_lightning.checkpoint import CheckpointError, last_checkpoint, read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.generate import generate, load_language_task
from minrnn_lightning.results import write_json

PROMPT, STEPS = 256, 200  # tokens that are read first, and that are generated while the clock runs
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>, Linux


class Run:
    """The training of one mixer with one seed, in a process of its own that does not outlive this one.

    Args:
        mixer: Name of a mixer, or several with + between them.
        seed: Seed of all random numbers.
        args: The options of ``minrnn fit``.
        runs: Folder in which the run makes its own, for the log and the checkpoints.
        device: Index of a GPU, ``cpu``, or None for the device of the options.
        concurrent: Number of runs at a time, which divide the cores of the CPU among them.

    Raises:
        InputError: The folder holds a run with other options.
    """

    def __init__(self, mixer: str, seed: int, args: list[str], runs: Path, device: str | None, concurrent: int) -> None:
        self.mixer, self.seed, self.args, self.device = mixer, seed, args, device
        self.name = f"{mixer}-{seed}"
        self.folder = runs / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.interrupted = last_checkpoint(self.folder)
        record = self.folder / "options.json"
        if self.interrupted and record.is_file() and json.loads(record.read_bytes()) != args:
            raise InputError(f"{self.folder} holds a run with other options: remove it or give other --runs")
        write_json(record, args)
        command = [sys.executable, "-m", "minrnn_lightning", "fit", *args]
        command += [f"--model.mixer={json.dumps(mixer.split('+')) if '+' in mixer else mixer}"]
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
        print(f"{mixer}, seed {seed}: {'resumes' if self.interrupted else 'starts'}; log in {self.log}", flush=True)
        self.started = time.perf_counter()
        with self.log.open("ab") as log:  # in a session of its own, Ctrl-C reaches it through ``stop`` alone
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=_end_with_parent
            )

    @property
    def generation_device(self) -> torch.device:
        """Device on which the speed of generation is measured."""
        on_cpu = self.device == "cpu" or not torch.cuda.is_available()
        return torch.device("cpu" if on_cpu else f"cuda:{self.device or 0}")

    def stop(self) -> None:
        """Stop it after the step in progress, with a checkpoint."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def measurements(self, metric: str) -> dict[str, Any]:
        """Results of the finished run: the learning curve of a metric, size, speed and memory.

        Raises:
            InputError: It failed, or did not log the metric.
        """
        minutes = (time.perf_counter() - self.started) / 60
        if self.process.returncode:
            raise InputError(f"the run of {self.mixer} with seed {self.seed} failed: {_last_line(self.log)}")
        logged, checkpoint = _logged(self.folder), last_checkpoint(self.folder)
        if metric not in logged or checkpoint is None:
            raise InputError(
                f"the run of {self.mixer} with seed {self.seed} in {self.folder} left no checkpoint or no {metric!r}; "
                f"it logged {', '.join(sorted(logged)) or 'nothing'}"
            )
        curve = sorted(logged[metric].items())
        trained = read_checkpoint(checkpoint)
        return {
            "mixer": self.mixer,
            "seed": self.seed,
            "metric": metric,
            "last": curve[-1][1],
            "parameters": sum(tensor.numel() for tensor in trained["state_dict"].values()),
            "dim": trained["hyper_parameters"]["dim"],
            "seconds_per_step": statistics.median(logged["seconds_per_step"].values()),
            "tokens_per_s": _tokens_per_second(checkpoint, self.generation_device),
            "peak_mb": max(logged.get("peak_mb", {}).values(), default=None),
            "minutes": None if self.interrupted else minutes,
            "curve": curve,
            "options": self.args,
        }


def _end_with_parent() -> None:
    """In a new process, where the system can: end as at Ctrl-C when this one ends, however that may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell in the background leaves ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("minrnn: ") if lines else f"{log} is empty"


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
