"""What ``minrnn compare`` needs to know of a recipe: its learning rates, steps and validations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from minrnn_lightning.commands.compare_run import last_line, mixer_option
from minrnn_lightning.errors import InputError


@dataclass(frozen=True)
class Rates:
    """Learning rates of a training.

    Attributes:
        lr: That of AdamW.
        muon_lr: That of Muon; None for AdamW alone.
    """

    lr: float
    muon_lr: float | None

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""
        return "AdamW" if self.muon_lr is None else "Muon"

    def options(self) -> list[str]:
        """Options of ``minrnn fit``."""
        return [f"--model.lr={self.lr}", f"--model.muon_lr={'null' if self.muon_lr is None else self.muon_lr}"]

    @property
    def slug(self) -> str:
        """Both as part of a file's name."""
        return str(self).replace(", ", "-").replace(" ", "")

    def __str__(self) -> str:
        muon = "" if self.muon_lr is None else f"Muon {self.muon_lr:g}, "
        return f"{muon}AdamW {self.lr:g}"


@dataclass(frozen=True)
class Recipe:
    """A recipe with the options of the command line.

    Attributes:
        rates: Its learning rates; None where the option ``optimizer`` replaces those of the task.
        max_steps: Steps of the optimizer; -1 where the epochs are counted instead.
        val_check_interval: Batches between validations; None or a float where it is a share of an epoch.
        batches_per_step: Batches whose gradients are accumulated.
        data: Name of the data module's class.
        can_tune: Whether it can validate on a part of the training data.
    """

    rates: Rates | None
    max_steps: int
    val_check_interval: int | float | None
    batches_per_step: int
    data: str
    can_tune: bool

    @property
    def optimizer(self) -> str:
        """Name of its optimizer, if that is one of the task's."""
        return self.rates.optimizer if self.rates else ""

    def starts(self) -> dict[str, Rates]:
        """Where the choice of learning rates starts, by optimizer; a recipe with Muon is tried with AdamW alone too.

        Raises:
            InputError: Another optimizer is chosen, or the choice would need held-out data.
        """
        if self.rates is None:
            raise InputError("--tune chooses model.lr, which the option optimizer replaces: leave one of them out")
        if not self.can_tune:
            raise InputError(
                "--tune needs a data module with the option tuning, which keeps the held-out data out of the choice, "
                f"such as TextDataModule, got {self.data}: leave --tune out"
            )
        starts = [self.rates, Rates(self.rates.lr, None)]
        return {rates.optimizer: rates for rates in reversed(starts)}

    def round_steps(self, steps: float) -> int:
        """The nearest number of steps that ends with a validation, with as many validations as the recipe has.

        Raises:
            InputError: Steps or validations of the recipe are not counted in steps.
        """
        if self.max_steps < 1 or not isinstance(self.val_check_interval, int):
            raise InputError(
                "--tune with a share of the steps, and --equal_time, need a recipe that counts steps: set "
                "trainer.max_steps, trainer.val_check_interval in batches and trainer.check_val_every_n_epoch null"
            )
        return max(1, round(steps / self._validations())) * self._validations()

    def steps_options(self, steps: int) -> list[str]:
        """Options of ``minrnn fit`` for a number of steps that ``round_steps`` returned."""
        if steps == self.max_steps:
            return []
        interval = steps // self._validations() * self.batches_per_step
        return [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={interval}"]

    def _validations(self) -> int:
        return max(1, int(self.max_steps * self.batches_per_step // (self.val_check_interval or 1)))


def read_recipe(args: list[str], mixer: str) -> Recipe:
    """Read the recipe of a command line with its defaults, in a process of its own.

    Args:
        args: The options of ``minrnn fit``.
        mixer: Name of a mixer, or several with + between them.

    Raises:
        InputError: An option is wrong.
    """
    from jsonargparse import get_loader  # only where a recipe is read: its import takes a while

    command = [sys.executable, "-m", "minrnn_lightning", "fit", *args, mixer_option(mixer), "--print_config"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(last_line(found.stderr) or f"minrnn fit ended with code {found.returncode}")
    config: dict[str, Any] = get_loader("yaml")(found.stdout)
    model, data, trainer = config["model"]["init_args"], config["data"].get("init_args", {}), config["trainer"]
    has_rates = "muon_lr" in model and not config.get("optimizer")
    counts_batches = trainer["check_val_every_n_epoch"] is None
    return Recipe(
        rates=Rates(float(model["lr"]), model["muon_lr"] and float(model["muon_lr"])) if has_rates else None,
        max_steps=trainer["max_steps"],
        val_check_interval=trainer["val_check_interval"] if counts_batches else None,
        batches_per_step=trainer["accumulate_grad_batches"],
        data=config["data"]["class_path"].rpartition(".")[2],
        can_tune="tuning" in data,
    )
