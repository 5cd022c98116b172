"""``minrnn compare``: train one recipe with several mixers and seeds, and compare them in one table and plot."""

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
from minrnn_lightning.commands.options import split_commas
from minrnn_lightning.commands.recipes import find_recipes
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MIXERS
from minrnn_lightning.results import print_table, provenance, write_csv, write_json, write_markdown, write_plot

Result = dict[str, Any]  # of one run: mixer, seed, learning curve, measurements, options and provenance

COLUMNS = {  # values of a run, with the head of their column and their digits
    "best": ("best {metric}", 4),
    "last": ("last {metric}", 4),
    "steps_to_best": ("steps to best", 0),
    "parameters": ("parameters", 0),
    "seconds_per_step": ("s/step", 3),
    "tokens_per_s": ("tokens/s generating", 0),
    "peak_mb": ("peak memory, MB", 0),
    "minutes": ("minutes", 1),
}
NOT_IN_CSV = ("curve", "options", "about")


def compare(args: list[str]) -> None:
    """Train every mixer with every seed, each in a process of its own, and put the results together.

    A finished run leaves ``<mixer>-<seed>.json`` in the output folder and is not run again; one that was interrupted
    resumes from its last checkpoint. The tables ``compare.json``, ``.csv``, ``.md`` and the plot ``compare.png`` are
    made anew from all of them.

    Args:
        args: The options of ``minrnn fit``, with a recipe, and those of ``_parse``.

    Raises:
        InputError: A mixer, a seed or a device is unknown, or an earlier run had other options; and when all runs
            have ended, if some of them failed.
    """
    options, args = _parse(args)
    find_recipes(args)  # refuses one that is not there; the runs look for it again
    folder, runs = Path(options.output), Path(options.runs or Path("runs", "compare", Path(options.output).name))
    folder.mkdir(parents=True, exist_ok=True)
    _read_results(folder, options, args)  # refuses those of another comparison before anything runs
    todo = [(mixer, seed) for seed in options.seeds for mixer in options.mixers]
    running: dict[int, Run] = {}  # by the index of the device, of which two may be the same
    failures: list[str] = []
    try:
        while todo or running:
            for index, device in enumerate(options.devices):
                if index in running and running[index].process.poll() is not None:
                    run = running.pop(index)
                    try:
                        result = run.measurements(options.metric) | {"about": provenance(run.generation_device)}
                    except InputError as error:  # which the other runs have nothing to do with
                        print(error, flush=True)
                        failures.append(str(error))
                    else:
                        write_json(folder / f"{run.name}.json", _with_best(result, options.mode))
                if index not in running and todo:
                    mixer, seed = todo.pop(0)
                    if (folder / f"{mixer}-{seed}.json").is_file():
                        print(f"{mixer}, seed {seed}: finished before")
                    else:
                        running[index] = Run(mixer, seed, args, runs, device, len(options.devices))
            time.sleep(0.1)
    finally:
        for run in running.values():
            run.stop()
    results = _read_results(folder, options, args)
    if results:
        _report(results, options, folder)
    if failures:
        raise InputError("; ".join(failures))


class _Parser(ArgumentParser):
    """One whose errors are exceptions, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an exception."""
        raise ArgumentError(None, message)


def _parse(args: list[str]) -> tuple[Namespace, list[str]]:
    """Options of the comparison, and the remaining arguments, which are those of ``minrnn fit``."""
    parser = _Parser(
        "minrnn compare",
        description="Train one recipe with several mixers and seeds, and put the results into one table and plot.",
        epilog="All options of `minrnn fit` are accepted too, with a recipe: --config shakespeare_small.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--mixers", required=True, help="Separated by commas; the mixers of a hybrid by +.")
    parser.add_argument("--seeds", default="0", help="Separated by commas (default: 0).")
    parser.add_argument("--metric", default="val/loss", help="Metric to compare, as logged (default: val/loss).")
    parser.add_argument(
        "--mode", default="min", choices=["min", "max"], help="Whether lower or higher is better (default: min)."
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="For the results, a small file for each run.")
    parser.add_argument("--runs", metavar="FOLDER", help="For logs and checkpoints (default: runs/compare/NAME).")
    parser.add_argument(
        "--devices",
        help="Devices, each for one run at a time: indices of GPUs or cpu, separated by commas "
        "(default: one run after the other, on the device of the recipe).",
    )
    options, args = parser.parse_known_args(args)
    options.mixers = split_commas(options.mixers)
    for name in options.mixers or [""]:
        if unknown := [part for part in name.split("+") if part not in MIXERS and "." not in part]:
            accepted = ", ".join(sorted(MIXERS))
            raise InputError(f"mixers must be some of {accepted} or paths of classes, got {unknown[0]!r}")
    seeds = split_commas(options.seeds)
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"seeds must be whole numbers separated by commas, got {options.seeds!r}")
    options.seeds = list(map(int, seeds))
    gpus = [str(index) for index in range(torch.cuda.device_count())]
    # not split_commas: a device that is given twice runs two trainings at a time
    options.devices = [None] if options.devices is None else [name.strip() for name in options.devices.split(",")]
    for device in options.devices:
        if device not in (None, "cpu", *gpus):
            raise InputError(f"devices must be some of {', '.join(['cpu', *gpus])}, got {device!r}")
    return options, args


def _read_results(folder: Path, options: Namespace, args: list[str]) -> list[Result]:
    """The finished runs in a folder, with the best value of each.

    Raises:
        InputError: A file is not a result, or one with another metric or other options.
    """
    results: list[Result] = []
    for file in sorted(folder.glob("*-[0-9]*.json")):
        try:
            result = json.loads(file.read_bytes())
            before = result["metric"], result["options"]
            results.append(_with_best(result, options.mode))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a result of `minrnn compare`: remove it or give another --output"
            ) from error
        if before != (options.metric, args):
            raise InputError(
                f"{file} was made with the metric {before[0]} and the options {' '.join(before[1])!r}, now there are "
                f"{options.metric} and {' '.join(args)!r}: remove it or give another --output"
            )
    return results


def _with_best(result: Result, mode: str) -> Result:
    """Add the best value of the learning curve, and the step at which it was reached."""
    steps, best = (min if mode == "min" else max)(result["curve"], key=lambda point: point[1])
    return result | {"best": best, "steps_to_best": steps}


def _report(results: Sequence[Result], options: Namespace, folder: Path) -> None:
    """Print the table of means and deviations, and write it in every format."""
    rows = _rows(results, options)
    print_table("Mean ± standard deviation over the seeds", rows, left=["mixer"])
    write_markdown(folder / "compare.md", rows)
    runs = [{name: value for name, value in result.items() if name not in NOT_IN_CSV} for result in results]
    write_csv(folder / "compare.csv", runs)
    write_json(folder / "compare.json", {"rows": rows, "cells": results})
    write_plot(folder / "compare.png", (8, 4.5), lambda figure: _draw(figure, results))


def _rows(results: Sequence[Result], options: Namespace) -> list[dict[str, str]]:
    """A row of the table for each mixer, the best one first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["mixer"], []).append(result)
    best = {mixer: statistics.mean(result["best"] for result in group) for mixer, group in groups.items()}
    return [
        {
            "mixer": mixer,
            **{
                head.format(metric=options.metric): _mean_and_deviation(
                    [result[name] for result in groups[mixer]], digits
                )
                for name, (head, digits) in COLUMNS.items()
            },
            "seeds": str(len(groups[mixer])),
        }
        for mixer in sorted(groups, key=lambda mixer: best[mixer], reverse=options.mode == "max")
    ]


def _mean_and_deviation(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):,.{digits}f}"
    return mean if len(known) == 1 or max(known) == min(known) else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def _draw(figure: Any, results: Sequence[Result]) -> None:
    """The learning curves, a line for each run and a colour for each mixer."""
    axes = figure.subplots()
    for number, mixer in enumerate(dict.fromkeys(result["mixer"] for result in results)):
        for run, result in enumerate(result for result in results if result["mixer"] == mixer):
            style, label = f"C{number % 10}{('-', '--', ':')[number // 10 % 3]}", mixer if run == 0 else None
            axes.plot(*zip(*result["curve"], strict=True), style, alpha=0.7, label=label)
    axes.set(xlabel="step", ylabel=results[0]["metric"])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
