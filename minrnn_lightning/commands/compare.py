"""``minrnn compare``: one recipe with several mixers and seeds, one run after the other, into one table and plot."""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from minrnn_lightning.commands.compare_run import Run
from minrnn_lightning.commands.recipes import find_recipes
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MIXERS
from minrnn_lightning.results import print_table, provenance, write_csv, write_json, write_markdown, write_plot

Cell = dict[str, Any]

COLUMNS = {  # figures of a run, with their heads and digits in the table
    "best": ("best {metric}", 4),
    "last": ("last {metric}", 4),
    "steps_to_best": ("steps to best", 0),
    "parameters": ("parameters", 0),
    "seconds_per_step": ("s/step", 3),
    "tokens_per_s": ("tokens/s generating", 0),
    "peak_mb": ("peak memory, MB", 0),
    "minutes": ("minutes", 1),
}
LONG = ("curve", "options", "about")  # what the table of runs leaves out


def compare(words: list[str]) -> None:
    """Train every mixer with every seed, each in a process of its own, and put the results together.

    A finished run leaves ``<mixer>-<seed>.json`` in the output folder and is not run again; one that was interrupted
    goes on from its last checkpoint. The tables ``compare.json``, ``.csv``, ``.md`` and the plot ``compare.png`` are
    made anew from all of them.

    Args:
        words: the options of ``minrnn fit``, a recipe among them, and those below.

    Raises:
        InputError: a mixer is unknown, a seed or a device is none, or an earlier run had other options; and when all
            runs have ended, if some of them failed.
    """
    options, words = _parse(words)
    find_recipes(words)  # refuses one that is not there; the runs look for it again
    mixers, seeds, devices = options.mixers, options.seeds, options.devices
    folder, runs = Path(options.output), Path(options.runs or Path("runs", "compare", Path(options.output).name))
    folder.mkdir(parents=True, exist_ok=True)
    _read_cells(folder, options, words)  # refuses those of another comparison before anything runs
    todo = [(mixer, seed) for seed in seeds for mixer in mixers]
    running: dict[int, Run] = {}
    failures: list[str] = []
    try:
        while todo or running:
            for place, device in enumerate(devices):
                if place in running and running[place].process.poll() is not None:
                    run = running.pop(place)
                    try:
                        cell = run.figures(options.metric) | {"about": provenance(run.generating)}
                    except ValueError as error:  # which the other runs have nothing to do with
                        print(error, flush=True)
                        failures.append(str(error))
                    else:
                        write_json(folder / f"{run.name}.json", _with_best(cell, options.mode))
                if place not in running and todo:
                    mixer, seed = todo.pop(0)
                    if (folder / f"{mixer}-{seed}.json").is_file():
                        print(f"{mixer}, seed {seed}: finished before")
                    else:
                        running[place] = Run(mixer, seed, words, runs, device, len(devices))
            time.sleep(0.1)
    finally:
        for run in running.values():
            run.stop()
    cells = _read_cells(folder, options, words)
    if cells:
        _report(cells, options, folder)
    if failures:
        raise InputError("; ".join(failures))


class _Parser(ArgumentParser):
    """One whose errors are exceptions, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words."""
        raise ArgumentError(None, message)


def _parse(words: list[str]) -> tuple[Namespace, list[str]]:
    parser = _Parser(
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
    parser.add_argument(
        "--devices",
        help="Where to run, a run at a time on each: numbers of GPUs or cpu, separated by commas "
        "(default: one after the other, where the recipe says).",
    )
    options, words = parser.parse_known_args(words)
    options.mixers = _split(options.mixers)
    for name in options.mixers:
        if unknown := [part for part in name.split("+") if part not in MIXERS]:
            raise InputError(f"mixer {unknown[0]!r} is unknown; it can be {', '.join(sorted(MIXERS))}")
    if not all(seed.isdecimal() for seed in _split(options.seeds)):
        raise InputError(f"seeds must be whole numbers separated by commas, got {options.seeds!r}")
    options.seeds = list(map(int, _split(options.seeds)))
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    options.devices = [None] if options.devices is None else [word.strip() for word in options.devices.split(",")]
    for device in options.devices:
        if device not in (None, "cpu", *gpus):
            raise InputError(f"device {device!r} is unknown; it can be {', '.join(['cpu', *gpus])}")
    return options, words


def _split(text: str) -> list[str]:
    """The words between commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def _read_cells(folder: Path, options: Namespace, words: list[str]) -> list[Cell]:
    """The finished runs in a folder, with the best value of each."""
    cells: list[Cell] = []
    for file in sorted(folder.glob("*-[0-9]*.json")):
        try:
            cell = json.loads(file.read_bytes())
            before = cell["metric"], cell["options"]
            cells.append(_with_best(cell, options.mode))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a result of `minrnn compare`: remove it or give another --output"
            ) from error
        if before != (options.metric, words):
            raise InputError(
                f"{file} was made with the metric {before[0]} and the options {' '.join(before[1])!r}, now there are "
                f"{options.metric} and {' '.join(words)!r}: remove it or give another --output"
            )
    return cells


def _with_best(cell: Cell, mode: str) -> Cell:
    """A run with the best value of its curve, and when it was reached."""
    steps, best = (min if mode == "min" else max)(cell["curve"], key=lambda point: point[1])
    return cell | {"best": best, "steps_to_best": steps}


def _report(cells: Sequence[Cell], options: Namespace, folder: Path) -> None:
    """Write the table of means and deviations in every form, and show it."""
    rows = _rows(cells, options)
    print_table("Mean ± standard deviation over the seeds", rows, left=["mixer"])
    write_markdown(folder / "compare.md", rows)
    runs = [{name: value for name, value in cell.items() if name not in LONG} for cell in cells]
    write_csv(folder / "compare.csv", runs)
    write_json(folder / "compare.json", {"rows": rows, "cells": cells})
    write_plot(folder / "compare.png", (8, 4.5), lambda figure: _draw(figure, cells))


def _rows(cells: Sequence[Cell], options: Namespace) -> list[dict[str, str]]:
    """A row of the table for each mixer, the best one first."""
    of: dict[str, list[Cell]] = {}
    for cell in cells:
        of.setdefault(cell["mixer"], []).append(cell)
    best = {mixer: statistics.mean(cell["best"] for cell in group) for mixer, group in of.items()}
    return [
        {
            "mixer": mixer,
            **{
                head.format(metric=options.metric): _spread([cell[name] for cell in of[mixer]], digits)
                for name, (head, digits) in COLUMNS.items()
            },
            "seeds": str(len(of[mixer])),
        }
        for mixer in sorted(of, key=lambda mixer: best[mixer], reverse=options.mode == "max")
    ]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):,.{digits}f}"
    return mean if len(known) == 1 or max(known) == min(known) else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def _draw(figure: Any, cells: Sequence[Cell]) -> None:
    """The learning curves, a line for each run and a colour for each mixer."""
    axes = figure.subplots()
    for number, mixer in enumerate(dict.fromkeys(cell["mixer"] for cell in cells)):
        for run, cell in enumerate(cell for cell in cells if cell["mixer"] == mixer):
            style, label = f"C{number % 10}{('-', '--', ':')[number // 10 % 3]}", mixer if run == 0 else None
            axes.plot(*zip(*cell["curve"], strict=True), style, alpha=0.7, label=label)
    axes.set(xlabel="step", ylabel=cells[0]["metric"])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
