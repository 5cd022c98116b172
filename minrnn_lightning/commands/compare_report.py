"""The table and the plot of ``minrnn compare``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minrnn_lightning.commands.compare_recipe import Rates
from minrnn_lightning.results import print_table, write_csv, write_json, write_markdown, write_plot

Result = dict[str, Any]  # of one run: mixer, seed, learning curve, measurements, options and provenance

COLUMNS = {  # values of a run, with the head of their column and their digits
    "best": ("best {metric}", 4),
    "last": ("last {metric}", 4),
    "steps_to_best": ("steps to best", 0),
    "steps": ("steps", 0),
    "parameters": ("parameters", 0),
    "seconds_per_step": ("s/step", 3),
    "env_steps": ("environment steps", 0),
    "collect_steps_per_s": ("environment steps/s collecting", 0),
    "update_steps_per_s": ("environment steps/s updating", 0),
    "tokens_per_s": ("tokens/s generating", 0),
    "peak_mb": ("peak memory, MB", 0),
    "minutes": ("minutes", 1),
}
NOT_IN_CSV = ("curve", "env_steps_curve", "options", "about")


def write_report(results: Sequence[Result], metric: str, mode: str, folder: Path) -> None:
    """Print the table of means and deviations, and write it in every format."""
    rows = _rows(results, metric, mode)
    print_table("Mean ± standard deviation over the seeds", rows, left=["mixer", "learning rate"])
    write_markdown(folder / "compare.md", rows)
    write_csv(folder / "compare.csv", [_flat(result) for result in results])
    write_json(folder / "compare.json", {"rows": rows, "cells": results})
    write_plot(folder / "compare.png", (8, 4.5), lambda figure: _draw(figure, results))


def _flat(result: Result) -> Result:
    """One row of a CSV file; what belongs to the settings and the tuning becomes columns."""
    row: Result = {}
    for name, value in result.items():
        if isinstance(value, dict) and name not in NOT_IN_CSV:
            row |= {f"{name}_{key}": each for key, each in value.items()}
        elif name not in NOT_IN_CSV:
            row[name] = value
    return row


def _rows(results: Sequence[Result], metric: str, mode: str) -> list[dict[str, str]]:
    """A row of the table for each mixer, the best one first, without columns that are empty for all."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["mixer"], []).append(result)
    best = {mixer: statistics.mean(result["best"] for result in group) for mixer, group in groups.items()}
    rows = [
        {
            "mixer": mixer,
            **{
                head.format(metric=metric): _mean_and_deviation([result.get(name) for result in groups[mixer]], digits)
                for name, (head, digits) in COLUMNS.items()
            },
            "learning rate": _learning_rate(groups[mixer][0]),
            "tuning": _tuning(groups[mixer][0]),
            "seeds": str(len(groups[mixer])),
        }
        for mixer in sorted(groups, key=lambda mixer: best[mixer], reverse=mode == "max")
    ]
    return [{head: row[head] for head in rows[0] if any(other[head] for other in rows)} for row in rows]


def _learning_rate(result: Result) -> str:
    """The learning rates that were chosen for a mixer; empty if they are the recipe's."""
    settings = result.get("settings", {})
    return str(Rates(settings["lr"], settings["muon_lr"])) if "lr" in settings else ""


def _tuning(result: Result) -> str:
    """What was spent on the choice."""
    spent = result.get("tuning")
    return f"{spent['trials']} trials, {spent['steps']:,} steps" if spent else ""


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
