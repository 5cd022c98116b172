"""Times of a training step for ``minrnn compare --equal_time``, measured before anything else runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minrnn_lightning.commands.compare_recipe import Recipe
from minrnn_lightning.commands.compare_run import Job, Run, run_jobs
from minrnn_lightning.errors import InputError
from minrnn_lightning.results import provenance, write_json

STEPS = 20  # of a timed run, of which the median counts
ROUNDS = 3  # runs of each mixer, in turn, of which the fastest counts: other work has disturbed it least
PARTS = ("seconds_per_step", "collect_seconds_per_step")  # the second where data are collected in an environment

Variant = tuple[str, str]  # a mixer and an optimizer


class Timing:
    """Times of training steps, kept in ``timing.json`` so that a comparison that is resumed has the same.

    Args:
        folder: Folder of the results.
        args: The options of ``minrnn fit``.
        reference: The mixer and optimizer whose time all trainings have.

    Raises:
        InputError: The file holds times with other options, or for another reference.
    """

    def __init__(self, folder: Path, args: list[str], reference: Variant) -> None:
        self.file, self.args, self.reference = folder / "timing.json", args, reference
        self.record: dict[str, Any] = {"options": args, "reference": reference[0], "steps": STEPS, "times": []}
        if self.file.is_file():
            self.record = json.loads(self.file.read_bytes())
            if self.record.get("options") != args:
                raise InputError(
                    f"{self.file} is of a comparison with other options: remove it or give another --output"
                )
            before = self.record.setdefault("reference", self.record["times"][0]["mixer"])  # which is timed first
            if before != reference[0]:
                raise InputError(
                    f"{self.file} is of a comparison with the time of {before}, now it is that of {reference[0]}: give "
                    f"--equal_time={before} or another --output"
                )

    def measure(
        self, others: Iterable[Variant], recipe: Recipe, runs: Path, device: str | None, concurrent: int
    ) -> None:
        """Measure what is not known yet, one run after the other, and the reference first.

        Args:
            others: Mixers and optimizers: that of the recipe, or another of ``Recipe.starts``.
            recipe: The recipe.
            runs: Folder for the logs.
            device: Index of a GPU, ``cpu``, or None for that of the recipe.
            concurrent: Number of runs at a time in the comparison, each of which has that share of the cores.

        Raises:
            InputError: A run failed.
        """
        settings = [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS * recipe.batches_per_step}"]
        settings += ["--trainer.check_val_every_n_epoch=null", "--trainer.limit_val_batches=1"]
        settings += ["--data.tuning=true"] if recipe.can_tune else []

        def job(variant: Variant, number: int) -> Job:
            mixer, optimizer = variant
            name = f"{mixer}-{optimizer}-time-{number}"
            options = [*settings, *([] if optimizer == recipe.optimizer else recipe.starts()[optimizer].options())]
            run = yield lambda device, _: Run(mixer, 0, self.args, runs, device, concurrent, options, name)
            training = run.training("seconds_per_step")
            times = {part: training[part] for part in PARTS if part in training}
            print(f"{name}: {sum(times.values()):.3f} s a step", flush=True)
            self.record["times"].append({"mixer": mixer, "optimizer": optimizer, "round": number, **times})
            self.record["about"] = provenance(run.generation_device)
            write_json(self.file, self.record)
            run.remove_checkpoints()

        known = {(time["mixer"], time["optimizer"], time["round"]) for time in self.record["times"]}
        variants = [self.reference, *others]
        todo = {(variant, number): None for number in range(ROUNDS) for variant in variants}
        run_jobs((job(variant, number) for variant, number in todo if (*variant, number) not in known), [device])

    def seconds(self, variant: Variant) -> float:
        """Seconds of a training step with a mixer and an optimizer: the fastest of the medians."""
        return min(
            float(sum(time.get(part, 0.0) for part in PARTS))
            for time in self.record["times"]
            if (time["mixer"], time["optimizer"]) == variant
        )
