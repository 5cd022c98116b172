"""``minrnn compare``: one recipe with several mixers and seeds, one run after the other, into one table and plot."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from minrnn_lightning.benchmark.report import machine
from minrnn_lightning.checkpoint import CheckpointError, read_checkpoint
from minrnn_lightning.files import write_whole
from minrnn_lightning.generate import generate, load_language_task
from minrnn_lightning.nn import MIXERS

Cell = dict[str, Any]

PROMPT, STEPS = 256, 200  # tokens read before, and made while the clock runs
COLUMNS = {  # figures of a run, with their heads and digits in the table
    "best": ("best", 4),
    "last": ("last", 4),
    "steps_to_best": ("steps to best", 0),
    "parameters": ("parameters", 0),
    "seconds_per_step": ("s/step", 3),
    "tokens_per_s": ("tokens/s generating", 0),
    "peak_mb": ("peak memory, MB", 0),
    "minutes": ("minutes", 1),
}


def compare(words: list[str]) -> None:
    """Train every mixer with every seed, each in a process of its own, and put the results together.

    A finished run leaves ``<mixer>-<seed>.json`` in the output folder and is not run again; one that was interrupted
    goes on from its last checkpoint. The tables ``compare.json``, ``.csv``, ``.md`` and the plot ``compare.png`` are
    made anew from all of them.

    Args:
        words: the options of ``minrnn fit``, a recipe among them, and those below.

    Raises:
        ValueError: a mixer is unknown, a seed not a number, or a finished run had other options.
    """
    options, words = _parse(words)
    mixers, seeds = [name.strip() for name in options.mixers.split(",")], _seeds(options.seeds)
    for name in mixers:
        if unknown := [part for part in name.split("+") if part not in MIXERS]:
            raise ValueError(f"mixer {unknown[0]!r} is unknown; it can be {', '.join(sorted(MIXERS))}")
    folder, runs = Path(options.output), Path(options.runs or Path("runs", "compare", Path(options.output).name))
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for mixer in mixers:
            file = folder / f"{mixer}-{seed}.json"
            if file.is_file():
                _check_options(file, words)
                print(f"{mixer}, seed {seed}: finished before")
                continue
            cell = _run(mixer, seed, words, runs / file.stem, options.metric, options.mode)
            write_whole(file, (json.dumps(cell, indent=1) + "\n").encode())
    cells = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*-[0-9]*.json"))]
    _report(cells, folder)


def _parse(words: list[str]) -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(
        "minrnn compare",
        description="Train one recipe with several mixers and seeds, and put the results into one table and plot.",
        epilog="Every option of `minrnn fit` besides, a recipe among them: --config shakespeare_small.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--mixers", required=True, help="Separated by commas; the kinds of a hybrid by +.")
    parser.add_argument("--seeds", default="0", help="Separated by commas (default: 0).")
    parser.add_argument("--metric", default="val/loss", help="What to compare, as logged (default: val/loss).")
    parser.add_argument("--mode", default="min", choices=["min", "max"], help="Which is better (default: min).")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="For the results, a small file for each run.")
    parser.add_argument("--runs", metavar="FOLDER", help="For logs and checkpoints (default: runs/compare/NAME).")
    return parser.parse_known_args(words)


def _seeds(text: str) -> list[int]:
    if not all(seed.strip().isdecimal() for seed in text.split(",")):
        raise ValueError(f"seeds must be whole numbers separated by commas, got {text!r}")
    return [int(seed) for seed in text.split(",")]


def _check_options(file: Path, words: list[str]) -> None:
    try:
        before = json.loads(file.read_bytes())["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a result of `minrnn compare`: remove it or give another --output") from error
    if before != words:
        raise ValueError(
            f"{file} was made with the options {' '.join(before)!r}, now there are {' '.join(words)!r}: "
            "remove it or give another --output"
        )


def _run(mixer: str, seed: int, words: list[str], folder: Path, metric: str, mode: str) -> Cell:
    """Train in a process of its own, and gather the figures of the run from what it wrote."""
    pattern = json.dumps(mixer.split("+")) if "+" in mixer else mixer
    command = [sys.executable, "-m", "minrnn_lightning", "fit", *words]
    command += [f"--seed_everything={seed}", f"--model.mixer={pattern}", f"--trainer.default_root_dir={folder}"]
    command += ["--trainer.callbacks+=StepCost", "--trainer.enable_progress_bar=false"]
    interrupted = _last_checkpoint(folder)
    command += [f"--ckpt_path={interrupted}"] if interrupted else []
    print(f"{mixer}, seed {seed}: {'goes on' if interrupted else 'starts'}; log in {folder}/log", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (folder / "log").open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    minutes = (time.perf_counter() - started) / 60
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"the run of {mixer} with seed {seed} failed: {_last_line(folder / 'log')}")
    curve, checkpoint = _logged(folder, metric), _last_checkpoint(folder)
    if not curve or checkpoint is None:
        raise ValueError(f"the run of {mixer} with seed {seed} logged no {metric!r} or left no checkpoint in {folder}")
    best = (min if mode == "min" else max)(curve, key=lambda point: point[1])
    trained = read_checkpoint(checkpoint)
    return {
        "mixer": mixer,
        "seed": seed,
        "metric": metric,
        "best": best[1],
        "steps_to_best": best[0],
        "last": curve[-1][1],
        "parameters": sum(tensor.numel() for tensor in trained["state_dict"].values()),
        "dim": trained["hyper_parameters"]["dim"],
        "seconds_per_step": statistics.median(value for _, value in _logged(folder, "seconds_per_step")),
        "tokens_per_s": _tokens_per_second(checkpoint),
        "peak_mb": max(value for _, value in _logged(folder, "peak_mb")),
        "minutes": None if interrupted else minutes,
        "curve": curve,
        "options": words,
        "about": machine(torch.device("cpu")),
    }


def _last_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("version_*/checkpoints/last.ckpt"), key=os.path.getmtime, default=None)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("minrnn: ") if lines else f"{log} is empty"


def _logged(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of a metric over all parts of a run."""
    points: dict[int, float] = {}
    for file in sorted(folder.glob("version_*/metrics.csv"), key=os.path.getmtime):
        with file.open(newline="") as lines:
            rows = csv.DictReader(lines)
            points |= {int(float(row["steps"])): float(row[name]) for row in rows if row.get(name) and row.get("steps")}
    return sorted(points.items())


def _tokens_per_second(checkpoint: Path) -> float | None:
    """Speed of single steps after a prompt; None where the task does not generate."""
    try:
        task, _ = load_language_task(checkpoint)
    except CheckpointError:
        return None
    tokens = generate(task, torch.zeros(1, PROMPT, dtype=torch.long), STEPS + 1)
    next(tokens)
    started = time.perf_counter()
    for _ in tokens:
        pass
    return STEPS / (time.perf_counter() - started)


def _report(cells: Sequence[Cell], folder: Path) -> None:
    """Write the table of means and deviations in every form, and show it."""
    rows = _rows(cells)
    console = Console(width=160)
    table = Table(title=f"{cells[0]['metric']}: mean ± standard deviation over the seeds", title_justify="left")
    for head in rows[0]:
        table.add_column(head, justify="left" if head == "mixer" else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    write_whole(folder / "compare.md", ("\n".join(lines) + "\n").encode())
    text = io.StringIO()
    names = [name for name in cells[0] if name not in ("curve", "options", "about")]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_whole(folder / "compare.csv", text.getvalue().encode())
    write_whole(folder / "compare.json", (json.dumps({"rows": rows, "cells": cells}, indent=1) + "\n").encode())
    image = _plot(cells)
    if image is not None:
        write_whole(folder / "compare.png", image)


def _rows(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """A row of the table for each mixer, the best one first."""
    of: dict[str, list[Cell]] = {}
    for cell in cells:
        of.setdefault(cell["mixer"], []).append(cell)
    falling = cells[0]["best"] <= cells[0]["curve"][0][1]
    order = sorted(of, key=lambda mixer: statistics.mean(c["best"] for c in of[mixer]), reverse=not falling)
    return [
        {
            "mixer": mixer,
            **{head: _spread([cell[name] for cell in of[mixer]], digits) for name, (head, digits) in COLUMNS.items()},
            "seeds": str(len(of[mixer])),
        }
        for mixer in order
    ]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):,.{digits}f}"
    return mean if len(known) == 1 or max(known) == min(known) else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def _plot(cells: Sequence[Cell]) -> bytes | None:
    """The learning curves, a line for each run and a colour for each mixer; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot without matplotlib: pip install "minrnn-lightning[benchmark]"', file=sys.stderr)
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, mixer in enumerate(dict.fromkeys(cell["mixer"] for cell in cells)):
        for run, cell in enumerate(cell for cell in cells if cell["mixer"] == mixer):
            style, label = f"C{number % 10}{('-', '--', ':')[number // 10 % 3]}", mixer if run == 0 else None
            axes.plot(*zip(*cell["curve"], strict=True), style, alpha=0.7, label=label)
    axes.set(xlabel="step", ylabel=cells[0]["metric"])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
