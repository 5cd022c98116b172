"""Whether a data module gives the batches that a task takes."""

from collections.abc import Iterator
from typing import Any

from minrnn_lightning.errors import InputError

PACKAGE = __name__.partition(".")[0]


def check_batch_type(task: Any, data: Any, base: type[Any]) -> None:
    """Refuse a data module that is for another task.

    Args:
        task: A task, with ``batch_type``.
        data: A data module with ``batch_type``; any other is accepted.
        base: The base class of all tasks.

    Raises:
        InputError: The batches are of another class than those that the task takes.
    """
    taken, given = task.batch_type, getattr(data, "batch_type", None)
    if taken is None or given is None or issubclass(given, taken):
        return
    fitting = sorted({each.__name__ for each in _subclasses(base) if getattr(each, "batch_type", None) is given})
    other = f", or {' or '.join(fitting)} for this" if fitting else ""
    raise InputError(
        f"{type(task).__name__} takes data in batches of {taken.__name__}, and {type(data).__name__} gives "
        f"{given.__name__}: use other data{other}"
    )


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Classes of this package that derive from another one."""
    for each in base.__subclasses__():
        if each.__module__.partition(".")[0] == PACKAGE:
            yield each
        yield from _subclasses(each)
