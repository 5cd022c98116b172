"""Training through torchrun equals training in one process; ``python tests/torchrun_trial.py`` shows the differences.

It starts one node with two processes, and two nodes with one process each, on this machine, with the same batches as
one process that reads twice as many rows. It is not one of the tests, because each start takes many seconds.
"""

import os
import random
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

LIMIT = 300  # seconds for a run
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FIT = ["-m", "minrnn_lightning", "fit"]


def options(folder: Path, name: str, batch_size: int, **trainer: object) -> list[str]:
    """Options of a language model that trains for six steps, in float64."""
    given = {"accelerator": "cpu", "max_steps": 6, "val_check_interval": 3, "precision": "64-true", **trainer}
    return [
        *("--model=LanguageTask", "--model.dim=16", "--model.depth=2", "--model.lr=1e-2", "--model.warmup=2"),
        *("--data=TextDataModule", f"--data.path={folder}/text.txt", f"--data.data_dir={folder}/data"),
        *("--data.length=32", f"--data.batch_size={batch_size}", f"--trainer.default_root_dir={folder / name}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.{key}={value}" for key, value in given.items()),
    ]


def run(*programs: list[str]) -> None:
    """Run programs side by side, each of which has to succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as started:
        processes = [started.enter_context(subprocess.Popen(program, env=environment)) for program in programs]
        try:
            codes = [process.wait(LIMIT) for process in processes]
        finally:
            for process in processes:
                process.kill()
    if any(codes):
        sys.exit(f"exit codes {codes}")


def free_port() -> int:
    """A port of this machine that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def result(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights, and the last validation loss."""
    (path,) = folder.glob("version_*/checkpoints/last.ckpt")
    rows = [line.split(",") for line in (path.parents[1] / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    return torch.load(path, weights_only=True)["state_dict"], {"val/loss": losses[-1]}


def main() -> None:
    """Run all three, and print the differences of the last two from the first."""
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        words = "the king of Rome shall speak and we obey what noise is this".split()  # noqa: SIM905
        (folder / "text.txt").write_text("".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(300)))
        run([sys.executable, *FIT, *options(folder, "one", 8)])
        one = options(folder, "processes", 4, devices=2, strategy="ddp")
        run([*TORCHRUN, "--standalone", "--nproc_per_node=2", *FIT, *one])
        port, two = free_port(), options(folder, "nodes", 4, devices=1, num_nodes=2, strategy="ddp")
        address = ["--master_addr=127.0.0.1", f"--master_port={port}"]
        run(*([*TORCHRUN, "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", *address, *FIT, *two]
              for node in range(2)))  # fmt: skip
        weights, losses = result(folder / "one")
        for case in ("processes", "nodes"):
            found, found_losses = result(folder / case)
            weight = max(float((found[key] - weights[key]).abs().max()) for key in weights)
            loss = abs(found_losses["val/loss"] - losses["val/loss"])
            print(f"torchrun, two {case}: weights differ by at most {weight:.1e}, the validation loss by {loss:.1e}")


if __name__ == "__main__":
    main()
