"""How ``minrnn compare`` trains each mixer: as the recipe says, or with learning rates and steps of its own."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minrnn_lightning.commands.compare_recipe import Recipe, read_recipe
from minrnn_lightning.commands.compare_run import run_jobs
from minrnn_lightning.commands.compare_time import Timing
from minrnn_lightning.commands.compare_tune import Tuning
from minrnn_lightning.errors import InputError

Steps = dict[tuple[str, str], int]  # of a training, by mixer and optimizer


@dataclass
class Plan:
    """The training of one mixer.

    Attributes:
        options: Options of ``minrnn fit`` that overrule those of the recipe.
        record: What the result says about them: ``settings``, what was spent on ``tuning``, and whose time all
            trainings have (``equal_time``).
    """

    options: list[str] = field(default_factory=list)
    record: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, options: list[str], settings: dict[str, Any]) -> None:
        """Add options, and what the result says about them."""
        self.options += options
        self.record.setdefault("settings", {}).update(settings)


def make_plans(options: Namespace, args: list[str], folder: Path, runs: Path) -> tuple[dict[str, Plan], list[str]]:
    """A plan for each mixer, once steps are timed and learning rates are chosen, as far as the options ask for it.

    Args:
        options: The options of ``minrnn compare``.
        args: The options of ``minrnn fit``.
        folder: Folder of the results.
        runs: Folder for logs and checkpoints.

    Returns:
        The plans by mixer, and a sentence for each mixer that has none because all its trials failed.

    Raises:
        InputError: The recipe does not fit the options, or files in the folder are of another comparison.
    """
    plans = {mixer: Plan() for mixer in options.mixers}
    failures: list[str] = []
    if options.tune is None and options.equal_time is None:
        return plans, failures
    recipe = read_recipe(args, options.mixers[0])
    optimizers = list(recipe.starts()) if options.tune is not None else [recipe.optimizer]
    steps = {(mixer, optimizer): recipe.max_steps for mixer in plans for optimizer in optimizers}
    budget = 0.0
    if options.equal_time is not None:
        steps, budget = _equal_time(options, args, recipe, steps, folder, runs)
    used = dict.fromkeys(plans, recipe.optimizer)
    if options.tune is not None:
        tuning = _tune(options, args, recipe, steps, folder, runs)
        chosen = {}
        for mixer, plan in list(plans.items()):
            try:
                rates, spent = tuning.choose(mixer)
            except InputError as error:
                failures.append(str(error))
                del plans[mixer]
            else:
                plan.add(rates.options(), asdict(rates))
                plan.record["tuning"] = spent
                used[mixer] = rates.optimizer
                chosen[mixer] = asdict(rates) | spent
        tuning.write("chosen", chosen)
    if options.equal_time is not None:
        for mixer, plan in plans.items():
            number = steps[mixer, used[mixer]]
            plan.add(recipe.steps_options(number), {"max_steps": number})
            plan.record["equal_time"] = {"mixer": options.equal_time, "seconds": budget}
    return plans, failures


def _equal_time(
    options: Namespace, args: list[str], recipe: Recipe, steps: Steps, folder: Path, runs: Path
) -> tuple[Steps, float]:
    """The steps that take as long as the reference takes for those of the recipe, and these seconds."""
    timing = Timing(folder, args, (options.equal_time, recipe.optimizer))
    recipe.round_steps(recipe.max_steps)  # refuses a recipe that does not count steps
    timing.measure(steps, recipe, runs / "trials", options.devices[0], len(options.devices))
    budget = recipe.max_steps * timing.seconds(timing.reference)
    return {variant: recipe.round_steps(budget / timing.seconds(variant)) for variant in steps}, budget


def _tune(options: Namespace, args: list[str], recipe: Recipe, steps: Steps, folder: Path, runs: Path) -> Tuning:
    """All trials, for each mixer and optimizer with a share of its steps."""
    if options.tune < 1:
        steps = {variant: recipe.round_steps(options.tune * number) for variant, number in steps.items()}
    tuning = Tuning(folder, args, options.metric, options.mode, steps)
    run_jobs((tuning.job(*variant, recipe, runs / "trials") for variant in steps), options.devices)
    return tuning
