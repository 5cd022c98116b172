"""Draw the pictures of the documentation from recipes/results, and write their page: ``python recipes/figures.py``.

The pictures go to ``docs/figures``, the page with their captions is ``docs/figures.md``. Captions state what drew the
numbers: command, machine, commit.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from minrnn_lightning.results import write_plot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "results"
SIZE = (7.5, 4.2)  # inches
NAMES = {
    "minrnn_lightning.nn.mixers.PointwiseMixer": "no memory",
    "mingru": "minGRU",
    "minlstm": "minLSTM",
    "gru": "nn.GRU",
    "lstm": "nn.LSTM",
    "gated_mingru": "gated minGRU",
    "matrix_mingru": "matrix minGRU",
    "mingru+attention": "minGRU, attention",
    "mamba": "Mamba",
    "s4d": "S4D",
}


class Figure(NamedTuple):
    """A picture: its title, how it is drawn, its caption, and the command of its numbers."""

    title: str
    draw: Callable[[Any], None]
    caption: Callable[[], str]
    command: str


def record(name: str) -> dict[str, Any]:
    """What a command wrote."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def runs(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of ``minrnn compare`` by mixer, the best mixer first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((RESULTS / folder).glob("*-[0-9].json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(run["mixer"], []).append(run)
    sign = -1 if next(iter(found.values()))[0]["metric"] == "val/return" else 1
    return dict(sorted(found.items(), key=lambda item: sign * mean(run["last"] for run in item[1])))


def machines(abouts: Iterable[Mapping[str, Any]]) -> str:
    """Processor, threads, PyTorch and commit of measurements."""
    found = dict.fromkeys(
        f"{about['cpu']}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}, torch {about['torch']}, "
        f"commit {about['minrnn-lightning']}"
        for about in abouts
    )
    return "; ".join(found) + "."


def style(axes: Any, **options: Any) -> None:
    """Labels, a grid and a legend."""
    axes.set(**options)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_layer(figure: Any) -> None:
    """Time and memory of a layer against the length."""
    rows = record("benchmarks/layer_lengths")["rows"]
    panels = {"ms": "forward and backward, ms", "peak_mb": "peak memory, MB"}
    for axes, (column, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            points = [(row["length"], row[column]) for row in rows if row["name"] == name]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        style(axes, yscale="log", xlabel="sequence length", ylabel=label)


def draw_mixers(figure: Any) -> None:
    """Validation losses of the mixers while they train."""
    axes = figure.subplots()
    for mixer, seeds in runs("shakespeare_small").items():
        steps = [step for step, _ in seeds[0]["curve"]]
        losses = [mean(run["curve"][number][1] for run in seeds) for number in range(len(steps))]
        axes.plot(steps, losses, marker="o", label=f"{NAMES.get(mixer, mixer)} {losses[-1]:.3f}")
    style(axes, xlabel="step", ylabel="validation loss, nats per character")


def draw_lengths(figure: Any) -> None:
    """Accuracy of parity against the length."""
    axes = figure.subplots()
    labels = {"signed": "minGRU, signed", "lstm": "nn.LSTM", "plain": "minGRU"}
    for (name, label), line in zip(labels.items(), ("o-", ".--", "o-"), strict=True):
        with (RESULTS / "lengths" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            last = [row for row in csv.DictReader(file) if row["val/accuracy"]][-1]
        points = sorted(
            (int(column.rpartition("/")[2].partition("-")[0]), float(value))
            for column, value in last.items()
            if column.startswith("val/accuracy/")
        )
        axes.plot(*zip(*points, strict=True), line, label=label)
    axes.axhline(0.5, color="gray", linestyle=":", label="a guess")
    style(axes, xlabel="length (trained on 1 to 40)", ylabel="accuracy", ylim=(0, 1.05))


def draw_returns(figure: Any) -> None:
    """Returns of policies with a memory, and without, while they act."""
    axes = figure.subplots()
    for colour, (mixer, seeds) in enumerate(runs("rl/tmaze10").items()):
        for number, run in enumerate(seeds):
            steps, returns = [x for _, x in run["env_steps_curve"]], [y for _, y in run["curve"]]
            axes.plot(steps, returns, f"C{colour}", alpha=0.7, label=None if number else NAMES.get(mixer, mixer))
    axes.axhline(1.95, color="gray", linestyle=":", label="best without memory")
    style(axes, xlabel="steps in environments", ylabel="mean return of the most likely actions")


def draw_accuracy(figure: Any) -> None:
    """Errors of the scans against the length."""
    axes = figure.subplots()
    rows = record("benchmarks/accuracy")["rows"]
    for colour, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        for dtype, line in (("float32", "-"), ("bfloat16", "--")):
            points = [(row["length"], row[dtype]) for row in rows if row["name"] == name and row[dtype]]
            axes.plot(*zip(*points, strict=True), f"C{colour}{line}", marker="o", label=f"{name}, {dtype}")
    axes.set_xscale("log", base=2)
    style(axes, yscale="log", xlabel="sequence length", ylabel="largest relative error of a state")


def all_runs(folder: str) -> list[Mapping[str, Any]]:
    """Machine and commit of every run in a folder."""
    return [run["about"] for seeds in runs(folder).values() for run in seeds]


FIGURES = {
    "layer": Figure(
        "Time and memory against the length",
        draw_layer,
        lambda: (
            "One layer forward and backward, batch 4, width 128, float32, medians of 5 in turns, beside other "
            "processes: only ratios within the run are meaningful. "
            + machines([record("benchmarks/layer_lengths")["about"]])
        ),
        "minrnn benchmark layer --lengths 256,1024,4096,16384 --batch_size 4 --dim 128 "
        "--layers mingru,minlstm,gru,lstm,logspace --repeats 5 --output FOLDER",
    ),
    "mixers": Figure(
        "Validation loss of the mixers",
        draw_mixers,
        lambda: (
            "Shakespeare, about 470,000 parameters each, learning rates of its own for each mixer, means of three "
            "seeds; the numbers are the last losses. " + machines(all_runs("shakespeare_small"))
        ),
        "minrnn compare --config shakespeare_small --mixers mingru,mamba,lstm,minlstm,gru,gated_mingru,attention,"
        "mingru+attention,s4d,matrix_mingru --seeds 0,1,2 --tune 1 --output recipes/results/shakespeare_small",
    ),
    "lengths": Figure(
        "Accuracy of a formal language against the length",
        draw_lengths,
        lambda: (
            "Parity, trained for 500 steps on lengths 1 to 40, one seed; minGRU as in the paper has factors in (0, 1), "
            "the signed one in (−1, 1). AMD EPYC, 1 thread, torch 2.13.0+cpu, commit d07aa42."
        ),
        "minrnn fit --config formal_languages/signed_parity\n"
        "minrnn fit --config formal_languages/signed_parity --model.mixer_args null\n"
        "minrnn fit --config formal_languages/signed_parity --model.mixer_args null --model.mixer lstm",
    ),
    "returns": Figure(
        "Return against steps in the environment",
        draw_returns,
        lambda: (
            "PPO in a T-maze of 10 steps, about 30,000 parameters each, three seeds; attention has a window of 64 "
            "steps. " + machines(all_runs("rl/tmaze10"))
        ),
        "minrnn compare --config rl/ppo_memory --metric val/return --mode max --seeds 0,1,2 "
        "--model.match_parameters 30000 --trainer.val_check_interval 80 --mixers "
        "mingru,minlstm,gru,attention,minrnn_lightning.nn.mixers.PointwiseMixer --output recipes/results/rl/tmaze10",
    ),
    "accuracy": Figure(
        "Error of the scans against the length",
        draw_accuracy,
        lambda: (
            "Against a loop in float64, gate logits N(0, 2²), 32 channels; inputs are rounded to the type first. "
            + machines([record("benchmarks/accuracy")["about"]])
        ),
        "minrnn benchmark accuracy --output FOLDER",
    ),
}


def page() -> str:
    """The page of the pictures."""
    parts = [
        "# Pictures",
        "Drawn by `python recipes/figures.py` from the numbers in `recipes/results`, which the commands wrote.",
    ]
    for name, figure in FIGURES.items():
        parts += [f"## {figure.title}", f"![{figure.title}](figures/{name}.png)", figure.caption()]
        parts.append(f"```text\n{figure.command}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    folder = ROOT / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    for each, drawn in FIGURES.items():
        write_plot(folder / f"{each}.png", (2 * SIZE[0] - 5, SIZE[1]) if each == "layer" else SIZE, drawn.draw)
    (ROOT / "docs" / "figures.md").write_text(page(), encoding="utf-8", newline="\n")
