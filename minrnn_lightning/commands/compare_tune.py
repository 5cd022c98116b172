"""Choice of learning rates for ``minrnn compare --tune``, each mixer with the same budget, without held-out data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from minrnn_lightning.commands.compare_recipe import Rates, Recipe
from minrnn_lightning.commands.compare_run import Job, Run
from minrnn_lightning.errors import InputError
from minrnn_lightning.results import provenance, write_json

FACTOR = 2.0  # between neighbours in the grid of a learning rate
EXTENSIONS = 2  # values that are added at most while the best one is at the edge of the grid
SEED = 10_000  # of every trial
KEY = ("mixer", "lr", "muon_lr", "max_steps")  # what tells trials apart

Trial = dict[str, Any]


def line_search(start: float, rates: Callable[[float], Rates]) -> Generator[Rates, float, float]:
    """Try a learning rate, half and twice of it, and more while the best is at the edge.

    Yields the rates to train with, is sent the loss of each (infinite where the training failed) and returns the best
    learning rate; of equal ones the first.

    Args:
        start: The first value.
        rates: All learning rates of a training, given this one.
    """
    losses: dict[float, float] = {}
    for value in (start, start / FACTOR, start * FACTOR):
        losses[value] = yield rates(value)
    for _ in range(EXTENSIONS):
        best = min(losses, key=lambda value: losses[value])
        if min(losses) < best < max(losses):
            break
        value = best * FACTOR if best == max(losses) else best / FACTOR
        losses[value] = yield rates(value)
    return min(losses, key=lambda value: losses[value])


def search(start: Rates) -> Generator[Rates, float, None]:
    """The learning rates to try with one optimizer: first those of Muon, if it is in use, then those of AdamW."""
    muon_lr = start.muon_lr
    if muon_lr is not None:
        muon_lr = yield from line_search(muon_lr, lambda value: Rates(start.lr, value))
    yield from line_search(start.lr, lambda value: Rates(value, muon_lr))


class Tuning:
    """The trials of a comparison, kept in ``tuning.json`` so that none is run twice.

    Args:
        folder: Folder of the results.
        args: The options of ``minrnn fit``.
        metric: Metric to choose by, as logged: its best value in a training.
        mode: ``min`` or ``max``.
        steps: Steps of the trials by mixer and optimizer.

    Raises:
        InputError: The file holds trials with other options.
    """

    def __init__(
        self, folder: Path, args: list[str], metric: str, mode: str, steps: Mapping[tuple[str, str], int]
    ) -> None:
        self.file, self.args, self.steps = folder / "tuning.json", args, steps
        self.metric, self.sign = metric, 1 if mode == "min" else -1
        search = {"seed": SEED, "factor": FACTOR, "extensions": EXTENSIONS}
        self.record: dict[str, Any] = {"options": args, "metric": metric, "mode": mode, **search, "trials": []}
        if self.file.is_file():
            before = json.loads(self.file.read_bytes())
            if any(before.get(name) != value for name, value in self.record.items() if name != "trials"):
                raise InputError(
                    f"{self.file} is of a comparison with other options: remove it or give another --output"
                )
            self.record = before
        self.trials: list[Trial] = self.record["trials"]
        self.about: dict[str, object] = {}

    def job(self, mixer: str, optimizer: str, recipe: Recipe, runs: Path) -> Job:
        """A job that runs the trials of a mixer with one optimizer.

        Args:
            mixer: Name of a mixer, or several with + between them.
            optimizer: ``Muon`` or ``AdamW``.
            recipe: The recipe.
            runs: Folder for the logs of the trials.
        """
        start, steps = recipe.starts()[optimizer], self.steps[mixer, optimizer]
        candidates = search(start)
        rates = next(candidates)
        while True:
            trial = self.find(mixer, rates, steps)
            if trial is None:
                settings = [*rates.options(), *recipe.steps_options(steps), "--data.tuning=true"]
                name = f"{mixer}-{rates.slug}-{steps}"
                run = yield partial(Run, mixer, SEED, self.args, runs, settings=settings, name=name)
                trial = self.add(run, mixer, rates, steps)
            try:
                rates = candidates.send(self.loss(trial))
            except StopIteration:
                return

    def find(self, mixer: str, rates: Rates, steps: int) -> Trial | None:
        """The trial with these settings, if it was run before."""
        key = [mixer, rates.lr, rates.muon_lr, steps]
        return next((trial for trial in self.trials if [trial[name] for name in KEY] == key), None)

    def add(self, run: Run, mixer: str, rates: Rates, steps: int) -> Trial:
        """Add a finished trial to the file, and remove its checkpoints.

        Raises:
            InputError: It was stopped from outside, which says nothing about its learning rates.
        """
        if not 0 <= run.process.returncode <= 128:  # ended by a signal, or after one by its own choice
            raise InputError(f"the trial {run.name} was stopped from outside: give the same command again to resume it")
        trial: Trial = dict(zip(KEY, (mixer, rates.lr, rates.muon_lr, steps), strict=True))
        trial |= {"optimizer": rates.optimizer, "best": None, "steps": steps, "seconds": None, "error": None}
        try:
            training = run.training(self.metric)
            if training["curve"][-1][0] < training["steps"]:
                raise InputError(f"{self.metric} was not finite after step {training['steps']}")
        except InputError as error:
            trial["error"] = str(error)
        else:
            trial["best"] = self.sign * min(self.sign * value for _, value in training["curve"])
            trial["seconds"] = training["minutes"] and training["minutes"] * 60
            trial |= {name: training[name] for name in ("steps", "seconds_per_step")}
        print(f"{run.name}: {trial['error'] or trial['best']}", flush=True)
        self.trials.append(trial)
        if not self.about:
            self.about = provenance(run.generation_device)
        self.write("about", self.about)
        run.remove_checkpoints()
        return trial

    def loss(self, trial: Trial) -> float:
        """What a search minimises: the metric, or its negative; infinite where the training failed."""
        return math.inf if trial["best"] is None else self.sign * float(trial["best"])

    def choose(self, mixer: str) -> tuple[Rates, dict[str, int]]:
        """The best learning rates of a mixer, and how many trials and steps were spent on them.

        Args:
            mixer: Name of a mixer, or several with + between them.

        Raises:
            InputError: Every trial failed.
        """
        trials = [
            trial
            for trial in self.trials
            if trial["mixer"] == mixer and trial["max_steps"] == self.steps.get((mixer, trial["optimizer"]))
        ]
        best = min(trials, key=self.loss)
        if best["best"] is None:
            raise InputError(f"every trial of {mixer} failed, the first one with: {best['error']}")
        spent = {"trials": len(trials), "steps": sum(trial["steps"] for trial in trials)}
        return Rates(best["lr"], best["muon_lr"]), spent

    def write(self, name: str, value: object) -> None:
        """Write all trials, and something more."""
        self.record[name] = value
        write_json(self.file, self.record)
