"""``minrnn benchmark gpu``: the scans checked on a GPU, then everything worth publishing, in one JSON and one page."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.accuracy import accuracy
from minrnn_lightning.commands.benchmark.baselines import GRUCellLoop
from minrnn_lightning.commands.benchmark.generate import generate
from minrnn_lightning.commands.benchmark.gpu_checks import check_all
from minrnn_lightning.commands.benchmark.layer import forward_backward, layer
from minrnn_lightning.commands.benchmark.measure import Step, check_sizes, parse_choice, parse_device, time_and_memory
from minrnn_lightning.commands.benchmark.report import COLUMNS, Report, Row, measured
from minrnn_lightning.commands.benchmark.scan import scan
from minrnn_lightning.commands.benchmark.step import step
from minrnn_lightning.commands.benchmark.train import train
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MinGRU, MinLSTM
from minrnn_lightning.results import markdown_table, print_table, provenance, write_atomic, write_json

RESETS = (128, 128, 256, 0.03)  # batch, length, width and share of steps with a reset, as TorchRL's benchmarks have


def resets(device: str = "cpu", repeats: int = 9, output: str | None = None) -> None:
    """Time layers on sequences with resets, as collected from many environments.

    Args:
        device: cpu, cuda or cuda:N.
        repeats: Number of times that each is timed, in turns.
        output: Folder to write resets.json, resets.csv and resets.png to.
    """
    torch_device = parse_device(device)
    batch, length, dim, share = RESETS
    about = {"dtype": "float32", "batch_size": batch, "dim": dim, "resets": share, "repeats": repeats}
    report = Report("resets", ["ms", "peak_mb"], about, torch_device, output, None)
    torch.manual_seed(0)
    x = torch.randn(batch, length, dim, device=torch_device, requires_grad=True)
    reset = torch.rand(batch, length, device=torch_device) < share
    minimal = {kind.__name__: kind(dim, dim, batch_first=True).to(torch_device) for kind in (MinGRU, MinLSTM)}
    steps: dict[str, Step] = {
        name: forward_backward(_WithReset(module, reset), x, torch.ones_like(x)) for name, module in minimal.items()
    }
    others = {
        "nn.GRU, which ignores the resets": nn.GRU(dim, dim, batch_first=True),
        "loop of nn.GRUCell, which obeys them": _WithReset(GRUCellLoop(dim), reset),
    }
    steps |= {name: forward_backward(module.to(torch_device), x, torch.ones_like(x)) for name, module in others.items()}
    report.add("Forward + backward", time_and_memory(steps, repeats, torch_device, length, batch), ["MinGRU"])
    report.save()


class _WithReset(nn.Module):
    """A layer that is given the same resets at every call."""

    def __init__(self, module: nn.Module, reset: Tensor) -> None:
        super().__init__()
        self.module, self.reset = module, reset

    def forward(self, x: Tensor) -> Any:
        return self.module(x, reset=self.reset)


def train_shakespeare(*options: str, device: str, repeats: int, output: str) -> None:
    """Time the training step of recipes/shakespeare.yaml in bf16-mixed.

    Args:
        options: Further options of ``minrnn fit``.
        device: cpu, cuda or cuda:N.
        repeats: Number of times that each is timed, in turns.
        output: Folder to write train.json, train.csv and train.png to.
    """
    chosen = torch.device(device)
    place = ("gpu", f"[{chosen.index or 0}]") if chosen.type == "cuda" else ("cpu", "1")
    words = [f"--trainer.{name}={value}" for name, value in zip(("accelerator", "devices"), place, strict=True)]
    words += ["--trainer.precision=bf16-mixed", f"--repeats={repeats}", f"--output={output}"]
    train(["--config=shakespeare", *words, *options])


Run = tuple[str, Callable[..., None]]  # name of the benchmark, and it with its options but device, repeats and output
RUNS: dict[str, Run] = {  # by their name in --parts
    "scan-float32": ("scan", partial(scan, batch_size=64, dim=1024, lengths="2048")),
    "scan-bfloat16": ("scan", partial(scan, batch_size=64, dim=1024, lengths="2048", dtype="bfloat16")),
    "scan-small": ("scan", partial(scan, batch_size=64, dim=256, lengths="128,2048", dtype="bfloat16")),
    "scan-million": ("scan", partial(scan, batch_size=1, dim=256, lengths="1048576")),
    "accuracy": ("accuracy", lambda device, repeats, output: accuracy("64,1024,16384", device=device, output=output)),
    "layer": ("layer", partial(layer, batch_size="64", dim="256", lengths="256,1024,4096")),  # the paper's figure 1
    "layer-bfloat16": ("layer", partial(layer, batch_size="64", dim="256", lengths="1024", dtype="bfloat16")),
    "resets": ("resets", resets),
    "step": ("step", partial(step, batch_size="1,64", layers="mingru,minlstm,gru,lstm,attention")),
    "generate": ("generate", partial(generate, lengths="1024")),
    "train": ("train", train_shakespeare),
    "train-compiled": ("train", partial(train_shakespeare, "--model.compile=true")),
}


def gpu(parts: str = "", device: str = "cuda", repeats: int = 9, output: str = "runs/gpu") -> None:
    """Check the scans on a GPU against float64, then measure everything worth publishing.

    First every kind, type, direction and layout of the scans, in one pass and in chunks, is compared with a loop in
    float64. Then the other benchmarks run on the GPU: the scans as a share of the speed of copying, rounding errors,
    layers as in the paper's figure 1, sequences with resets, single steps, generation, and the training step of
    recipes/shakespeare.yaml. Every run is written to a folder of its own, and all of them to gpu.json and gpu.md.

    Args:
        parts: What to measure, separated by commas: scan-float32, scan-bfloat16, scan-small, scan-million, accuracy,
            layer, layer-bfloat16, resets, step, generate, train, train-compiled; all of it if not given, none for the
            checks alone.
        device: cuda or cuda:N; cpu measures the processor instead.
        repeats: Number of times that each is timed, in turns.
        output: Folder to write to.

    Raises:
        InputError: A part or the device is unknown, or repeats is below 1.
        RuntimeError: A check fails.
    """
    chosen = [] if parts == "none" else parse_choice("parts", parts, RUNS)
    check_sizes(repeats=repeats)
    torch_device = parse_device(device)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"benchmark": "gpu", "about": provenance(torch_device)}
    record["checks"] = check_all(torch_device)
    print_table("Errors relative to the largest magnitude", checks_table(record["checks"]))
    record["runs"] = {}
    write(folder, record)
    for name in chosen:
        benchmark, run = RUNS[name]
        try:
            run(device=device, repeats=repeats, output=str(folder / name))
        except (InputError, OSError) as error:  # such as a text that cannot be downloaded
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        record["runs"][name] = json.loads((folder / name / f"{benchmark}.json").read_bytes())
        write(folder, record)
    faults = [f"{row['name']}, {row['dtype']}: {fault}" for row in record["checks"] for fault in row["faults"]]
    if faults:
        raise RuntimeError(f"{len(faults)} checks fail on {torch_device}: {'; '.join(faults)}")


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write gpu.json and the page."""
    write_json(folder / "gpu.json", record)
    about = ", ".join(f"{key} {value}" for key, value in record["about"].items())
    lines = ["# Benchmarks on a GPU", "", f"`minrnn benchmark gpu`: {about}.", "", "## Checks", ""]
    lines += [markdown_table(checks_table(record["checks"]))]
    for name, run in record["runs"].items():
        settings = {key: value for key, value in run["about"].items() if key not in record["about"]}
        lines += ["", f"## {name}", "", ", ".join(f"{key} {value}" for key, value in settings.items()), ""]
        lines += [markdown_table(rows_table(run["rows"]))]
    write_atomic(folder / "gpu.md", ("\n".join(lines) + "\n").encode())


def checks_table(rows: Iterable[Row]) -> list[dict[str, str]]:
    """The checks as they are printed."""
    return [
        {
            "": row["name"],
            "type": row["dtype"],
            "cases": str(row["cases"]),
            "states": f"{row['states']:.1e}",
            "gradients": f"{row['gradients']:.1e}",
            "faults": str(len(row["faults"])),
        }
        for row in rows
    ]


def rows_table(rows: list[Row]) -> list[dict[str, str]]:
    """The rows of a benchmark, with the columns that one of them has."""
    heads = {column: head for column, head in COLUMNS.items() if any(column in row for row in rows)}
    return [
        {"": row["name"], "length": f"{row['length']:,}"}
        | {head: measured(row, column) for column, head in heads.items()}
        for row in rows
    ]
