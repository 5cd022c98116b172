"""Optimizers and learning rate schedules of PyTorch that are chosen by name: their options, checked and explained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from lightning.pytorch.cli import instantiate_class

from minrnn_lightning.commands.checks import Check, at_least, check_options, flatten
from minrnn_lightning.errors import InputError, first_line, modules_passed

REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, RuntimeError)
SCHEDULES = ("torch.optim.lr_scheduler", "torch.optim.swa_utils")  # modules
OPTIONS = ("optimizer", "lr_scheduler")
BASES = ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler")

not_negative = at_least(0, math.inf)
RANGES: dict[str, Check] = {  # of options that PyTorch takes without a check
    "optimizer.lr": not_negative,
    "lr_scheduler.T_max": at_least(1),
    "lr_scheduler.base_lr": not_negative,
    "lr_scheduler.cooldown": at_least(0),
    "lr_scheduler.eta_min": not_negative,
    "lr_scheduler.gamma": not_negative,
    "lr_scheduler.last_epoch": at_least(-1),
    "lr_scheduler.max_lr": not_negative,
    "lr_scheduler.milestones": at_least(0),
    "lr_scheduler.min_lr": not_negative,
    "lr_scheduler.patience": at_least(0),
    "lr_scheduler.step_size": at_least(1),
    "lr_scheduler.swa_lr": not_negative,
    "lr_scheduler.total_iters": at_least(0),
}


def check_choices(options: Mapping[str, Any]) -> None:
    """Refuse values that PyTorch's optimizers and schedules would accept silently, or fail on in a later step.

    Args:
        options: All options by name; ``optimizer`` and ``lr_scheduler`` are looked at, where they are PyTorch's.

    Raises:
        InputError: A number is infinite or outside its range, or there are options without a class.
    """
    for name in OPTIONS:
        chosen = options.get(name)
        if isinstance(chosen, Mapping) and str(chosen.get("class_path")).startswith(("torch.", "lightning.")):
            if chosen.get("class_path") in BASES:  # which jsonargparse takes where none is given
                raise InputError(f"{name} needs the name of a class: --{name}=NAME")
            values = dict(flatten({name: chosen}))
            for option, value in values.items():
                if isinstance(value, float) and math.isinf(value):
                    raise InputError(f"{option} must be a finite number, got {value}")
            check_options(values, RANGES)


def make_chosen(option: str, first: Any, chosen: dict[str, Any]) -> Any:
    """Make an optimizer or a schedule of PyTorch, which checks most of its options itself.

    Args:
        option: Name of the option.
        first: First argument: the parameters, or the optimizer.
        chosen: Class and options.

    Raises:
        InputError: It refuses them, or cannot compute with them.
    """
    try:
        return instantiate_class(first, chosen)
    except REFUSALS as error:
        if isinstance(error, InputError) or not modules_passed(error)[-1].startswith("torch."):
            raise
        raise _refusal(option, chosen, error) from error


@contextmanager
def explain_steps(choices: Mapping[str, Any]) -> Iterator[None]:
    """Turn an error of a step of a chosen optimizer or schedule into a sentence that names the option.

    Args:
        choices: Class and options by name of the option; None where the task's own is used.

    Raises:
        InputError: The innermost functions that the error has passed are PyTorch's, one of them of ``torch.optim``.
    """
    try:
        yield
    except REFUSALS as error:
        of_torch = takewhile(lambda name: name.startswith("torch."), reversed(modules_passed(error)))
        module = next((name for name in of_torch if name.startswith("torch.optim.")), None)
        option = "lr_scheduler" if module in SCHEDULES else "optimizer"
        if module is None or not choices.get(option):
            raise
        raise _refusal(option, choices[option], error) from error


def _refusal(option: str, chosen: Mapping[str, Any], error: Exception) -> InputError:
    missing = isinstance(error, KeyError) and error.args  # whose text is a quotation
    reason = str(error.args[0]).partition("\n")[0] if missing else first_line(error)
    return InputError(f"the options of --{option} {chosen['class_path']} cannot be used: {reason}")
