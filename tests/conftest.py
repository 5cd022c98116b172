"""What the tests of the command share: a made-up text, options of a small model, and the command run in-process."""

import gc
import itertools
import os
import random
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

# Before anything imports PyTorch.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")  # what calls the kernels, which are optimised
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

from minrnn_lightning.commands.main import main

WORDS = "the king of Rome shall speak, and we obey. what noise is this? O heavy day! exeunt omnes".split()  # noqa: SIM905

for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # children inherit that one is ignored, as in the background and by nohup
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else lambda *_: None)


def pytest_collection_finish(session):
    """In a run of everything, let each worker compile a share of the kernels: both would compile all of them.

    What is loaded until then stays: the garbage collector need not look through it again and again.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and len(session.items) > 1000:
        worker, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        compile_kernels(worker, count)
    gc.collect()
    gc.freeze()


def compile_kernels(share: int, shares: int) -> None:
    """Compile every n-th kernel for CPUs into Numba's cache."""
    from minrnn_lightning.ops.cpu import block_kernels, kernels, selective_kernels, step_kernels

    scans = kernels.forward_entry, kernels.ends_entry, kernels.backward_entry
    adds = block_kernels.add_forward_entry, block_kernels.add_backward_entry
    norms = block_kernels.norm_forward_entry, block_kernels.norm_backward_entry
    types = ("float32", "float32"), ("float32", "uint16")
    every = [partial(step_kernels.compiled, entry) for entry in (step_kernels.layers, step_kernels.blocks)]
    selective = selective_kernels.forward_entry, selective_kernels.backward_entry
    every += [partial(selective_kernels.compiled, entry) for entry in selective]
    for stored, entry, gates in itertools.product(("float32", "float64", "uint16"), scans, (None, True)):
        every.append(partial(kernels.compiled, entry, stored, gates))
    for entry, (wide, narrow) in itertools.product((*norms, *adds), types):
        every.append(partial(block_kernels.compiled, entry, wide, narrow))
    for compiled in every[share::shares]:
        compiled()


LIMIT = 600  # seconds that a child process of a test may take


class LimitedProcess(subprocess.Popen):
    """A child process that is killed after a time limit."""

    started: ClassVar[list["LimitedProcess"]] = []

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.limit = threading.Timer(LIMIT, self.kill)
        self.limit.daemon = True
        self.limit.start()
        self.started.append(self)


@pytest.fixture(autouse=True)
def limited_processes(monkeypatch):
    """Let no child process hold a test up for ever, or outlive it."""
    monkeypatch.setattr(subprocess, "Popen", LimitedProcess)
    yield
    while LimitedProcess.started:
        process = LimitedProcess.started.pop()
        process.limit.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """About 6,000 characters, all of them among Shakespeare's 65."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "play.txt"
    file.write_text("".join(" ".join(draw.choices(WORDS, k=8)) + "\n" for _ in range(140)))
    return file


def options(text: Path, folder: Path) -> list[str]:
    """Options of a model that trains in a moment on the made-up text; an epoch has about 40 steps."""
    return [
        *("--model=LanguageTask", "--model.dim=16", "--model.depth=1", "--model.dropout=0.2", "--model.warmup=3"),
        *("--data=TextDataModule", f"--data.path={text}", f"--data.data_dir={folder}/data"),
        *("--data.length=16", "--data.batch_size=8"),
        *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={folder}/runs"),
    ]


@pytest.fixture
def small(text, tmp_path) -> list[str]:
    """Options of a small model; its runs go to ``tmp_path / "runs"``."""
    return options(text, tmp_path)


@pytest.fixture
def minrnn(capfd):
    """Run the command and return its exit code, output and errors."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def checkpoint(text, tmp_path_factory) -> Path:
    """The checkpoint of a small model after 3 steps."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", *options(text, folder), "--trainer.max_steps=3"])
    return folder / "runs/version_0/checkpoints/last.ckpt"
