"""What the values of options must be, beyond their types: a table, which is read before anything is built."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from minrnn_lightning.commands.options import split_commas
from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import check_memory

Check = Callable[[Any], str | None]  # what must hold, in words after "must be", if it does not hold

INT64 = 2**63 - 1
SEEDS = 2**32 - 1  # the largest seed of NumPy's generator, which Lightning and Gymnasium seed too
MOST_WORKERS = max(64, os.cpu_count() or 1)  # processes that prepare batches
LAST_PORT = 2**16 - 1
BASES = ("Callback", "Precision", "None")  # what jsonargparse takes for a mapping without a class
NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "PL_GLOBAL_SEED")
DURATION = re.compile(r"\s*(\d{1,6}):(\d\d):(\d\d):(\d\d)\s*")


def at_least(least: float, most: float = INT64) -> Check:
    """Numbers from the least to the most."""

    def check(value: float) -> str | None:
        if not value >= least:  # NaN too
            return f"at least {least}"
        return None if value <= most else f"at most {most}"

    return check


def above(bound: float, most: float = math.inf) -> Check:
    """Finite numbers above a bound."""

    def check(value: float) -> str | None:
        if not bound < value < math.inf:
            return f"a finite number above {bound}"
        return None if value <= most else f"at most {most}"

    return check


def finite(value: float) -> str | None:
    """Finite numbers."""
    return None if math.isfinite(value) else "a finite number"


def sizes(least: int, most: int) -> Check:
    """One whole number, or several that are separated by commas; items that are no numbers are left alone."""
    check = at_least(least, most)
    return lambda value: next(filter(None, map(check, numbers(value))), None) or not_empty(value)


def folder(value: str) -> str | None:
    """A folder that can be written to, or made."""
    path = Path(value).expanduser()
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    right = value.strip() and there.is_dir() and os.access(there, os.W_OK)
    return None if right else "a folder that can be written to, or that can be made"


def not_empty(value: object) -> str | None:
    """Texts that are not empty."""
    return None if str(value).strip() else "given, not empty"


def named(value: object) -> str | None:
    """Arguments by name."""
    right = not isinstance(value, Mapping) or all(isinstance(key, str) for key in value)
    return None if right else "arguments by name, such as {render_mode: rgb_array}"


def one_of(*names: str) -> Check:
    """Names; values that are no text are left alone."""
    return lambda value: None if not isinstance(value, str) or value in names else f"one of {', '.join(names)}"


def count_or_share(value: float) -> str | None:
    """A number of batches, or a share of them."""
    right = 0 <= value <= 1 or (1 < value <= INT64 and value == int(value))
    return None if right else "a whole number of batches, or a share from 0.0 to 1.0"


def interval(value: Any) -> str | None:
    """A number of batches, a share of an epoch, or a time."""
    if isinstance(value, str):
        return duration(value)
    if isinstance(value, int | float) and not (0 < value <= 1 or (1 < value <= INT64 and value == int(value))):
        return "a whole number of batches from 1, a share of an epoch up to 1.0, or a time such as 00:01:30:00"
    return None


def duration(value: Any) -> str | None:
    """A time above 0, as Lightning writes it."""
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    right = any(int(part) for part in match.groups()) if match else not isinstance(value, str)
    return None if right else "a time above 0 in days, hours, minutes and seconds, such as 00:01:30:00"


def epochs_or_steps(value: float) -> str | None:
    """A limit of the training, -1 for none."""
    return None if value == -1 or 1 <= value <= INT64 else f"at least 1, or -1 for no limit, and at most {INT64}"


def seed(value: int) -> str | None:
    """A seed, or false for none and true for a random one."""
    return None if 0 <= value <= SEEDS else f"from 0 to {SEEDS}"


FIT: dict[str, Check] = {  # options of fit, validate, test and predict
    "seed_everything": seed,
    "checkpoint_minutes": at_least(0, 1e6),
    "ckpt_path": not_empty,
    "trainer.num_nodes": at_least(1, 10**6),
    "trainer.fast_dev_run": at_least(0),
    "trainer.max_epochs": epochs_or_steps,
    "trainer.min_epochs": at_least(0),
    "trainer.max_steps": epochs_or_steps,
    "trainer.min_steps": at_least(0),
    "trainer.max_time": duration,
    "trainer.limit_train_batches": count_or_share,
    "trainer.limit_val_batches": count_or_share,
    "trainer.limit_test_batches": count_or_share,
    "trainer.limit_predict_batches": count_or_share,
    "trainer.overfit_batches": count_or_share,
    "trainer.val_check_interval": interval,
    "trainer.check_val_every_n_epoch": at_least(1),
    "trainer.num_sanity_val_steps": at_least(-1),
    "trainer.log_every_n_steps": at_least(0),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.gradient_clip_val": at_least(0, math.inf),
    "trainer.gradient_clip_algorithm": one_of("norm", "value"),
    "trainer.profiler": one_of("simple", "advanced", "pytorch", "xla"),
    "trainer.reload_dataloaders_every_n_epochs": at_least(0),
    "trainer.default_root_dir": not_empty,
    "trainer.callbacks.max_new_tokens": at_least(1, 10**6),
    "trainer.callbacks.temperature": at_least(0),
    "trainer.callbacks.top_k": at_least(1),
    "trainer.callbacks.top_p": above(0, 1),
    "trainer.callbacks.seed": at_least(0, SEEDS),
    "trainer.callbacks.env_id": not_empty,
    "trainer.callbacks.episodes": at_least(1, 10**6),
    "trainer.callbacks.targets": finite,
    "trainer.callbacks.window": at_least(1, 10**8),
    "trainer.callbacks.every_n_validations": at_least(1),
    "model.init_from": not_empty,
    "model.max_timestep": at_least(0, 10**8),
    "data.data_dir": not_empty,
    "data.dataset": not_empty,
    "data.env_id": not_empty,
    "data.epochs": at_least(1, 10**4),
    "data.eval_batches": at_least(0, 10**6),
    "data.eval_episodes": at_least(1, 10**6),
    "data.num_envs": at_least(1, 10**4),
    "data.num_workers": at_least(0, MOST_WORKERS),
    "data.seed": at_least(0),
    "data.shortest": at_least(1),
}


FUNCTIONS: dict[str, Check] = {  # options of the other commands, by command and name or by name alone
    "batch": at_least(1, 10**6),
    "batch_size": sizes(1, 10**8),
    "checkpoint": not_empty,
    "collect output": folder,
    "compare": not_empty,
    "depth": at_least(1, 10**4),
    "device": not_empty,
    "dim": sizes(1, 10**8),
    "env": not_empty,
    "env_args": named,
    "episodes": at_least(1, 10**6),
    "generate seed": at_least(-INT64),
    "histogram": not_empty,
    "iterations": at_least(1, 10**6),
    "kernel_size": at_least(0, 10**6),
    "length": at_least(1, 10**8),
    "lengths": sizes(1, 10**12),
    "metric": not_empty,
    "mlp_kernel_size": at_least(0, 10**6),
    "mlp_ratio": at_least(0, 10**4),
    "namespace": not_empty,
    "num_envs": at_least(1, 10**4),
    "output": not_empty,
    "repeats": at_least(1, 10**6),
    "runs": not_empty,
    "seed": at_least(0, SEEDS),
    "seeds": sizes(0, SEEDS),
    "stats": at_least(0),
    "steps": at_least(1, 10**8),
    "temperature": at_least(0),
    "threads": at_least(1, 10**4),
    "top_k": at_least(1),
    "video": not_empty,
    "window": at_least(1, 10**8),
}


def check_function(command: str, options: Mapping[str, Any]) -> None:
    """Refuse values of a command's options, and benchmarks of sequences for which this machine has no memory.

    Args:
        command: Name of the command.
        options: Values by name.

    Raises:
        InputError: A value is outside the range of its option, or the sequences are too large.
    """
    own = {name: FUNCTIONS[key] for name in options for key in (name, f"{command} {name}") if key in FUNCTIONS}
    check_options(options, own)
    if command.startswith("benchmark ") and "lengths" in options:
        names = [name for name in ("lengths", "batch_size", "num_envs", "dim") if name in options]
        largest = [max(numbers(options[name]), default=1) for name in names]
        factors = (f"{name} {size}" for name, size in zip(names, largest, strict=True))
        check_memory(4 * math.prod(largest), " × ".join(factors))


def numbers(value: object) -> list[int]:
    """The whole numbers in a value such as 8 or 8,16."""
    return [int(item) for item in split_commas(str(value)) if item.isdecimal()]


def check_options(options: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Refuse values that no option can have, and those that are outside the range of theirs.

    Args:
        options: Values by dotted names, from `flatten`.
        checks: What must hold for some of them.

    Raises:
        InputError: A value is NaN, beyond 64 bits or outside its range.
    """
    for name, value in options.items():
        if isinstance(value, int) and abs(value) > INT64:
            raise InputError(f"{name} must be at most {INT64} and at least {-INT64}, got {value}")
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"{name} must be a number, got nan")
        check = checks.get(name)
        if value is not None and check is not None and (expected := check(value)):
            raise InputError(f"{name} must be {expected}, got {value!r}")


def check_environment() -> None:
    """Refuse environment variables that Lightning reads as numbers and that are none.

    Raises:
        InputError: One of them is set to something else, or the port is none.
    """
    for name in NUMBERS:
        try:
            int(os.environ.get(name, 0))
        except ValueError:
            raise InputError(
                f"the environment variable {name} must be a whole number, got {os.environ[name]!r}"
            ) from None
    port = os.environ.get("MASTER_PORT", "0")
    if not (port.isdecimal() and int(port) <= LAST_PORT):
        raise InputError(
            f"the environment variable MASTER_PORT must be a whole number from 0 to {LAST_PORT}, got {port!r}"
        )


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse options of the Trainer that contradict each other, times that are none and parts without a class.

    Args:
        trainer: Options of the Trainer.

    Raises:
        InputError: A time that is written as a mapping, such as ``{minutes: 30}``, has other keys than those of
            `datetime.timedelta` or is not above 0; a least number is above the largest; a part is a mapping without
            ``class_path``.
    """
    for name in ("max_time", "val_check_interval"):
        value = trainer.get(name)
        if isinstance(value, Mapping):
            try:
                right = timedelta(**value) > timedelta(0)
            except (TypeError, OverflowError):
                right = False
            if not right:
                raise InputError(f"trainer.{name} must be a time above 0, such as {{minutes: 30}}, got {value}")
    for unit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and 0 <= most < least:
            raise InputError(f"trainer.min_{unit} must be at most max_{unit}, {most}, got {least}")
    for name in ("callbacks", "plugins"):
        for part in as_list(trainer.get(name)):
            base = str(part.get("class_path")).rpartition(".")[2] if isinstance(part, Mapping) else ""
            if base in BASES:
                raise InputError(
                    f"trainer.{name} must name a class, as {{class_path: NAME}}; {base} alone does nothing"
                )


def as_list(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it, and nothing as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def flatten(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted names, without jsonargparse's levels ``init_args`` and ``dict_kwargs``; lists item by item."""
    for key, value in options.items():
        name = prefix if key in ("init_args", "dict_kwargs") else f"{prefix}.{key}".lstrip(".")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Mapping):
                yield from flatten(each, name)
            else:
                yield name, each
