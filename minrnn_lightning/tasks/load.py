"""``load_task``: a trained task from nothing but its checkpoint."""

import inspect
from pathlib import Path
from typing import Any, TypeVar

from minrnn_lightning import tasks
from minrnn_lightning.checkpoint import CheckpointError, check_fits, read_checkpoint
from minrnn_lightning.tasks.task import Task

T = TypeVar("T", bound=Task)


def load_task(path: str | Path, kind: type[T], use: str) -> tuple[T, dict[str, Any]]:
    """The trained task, in evaluation mode, and the checkpoint.

    Args:
        path: the ``.ckpt`` file of such a task or of a subclass that keeps its architecture.
        kind: the class of the task.
        use: what it is wanted for, for the message.

    Raises:
        CheckpointError: the file cannot be read, or holds another task.
    """
    checkpoint = read_checkpoint(path)
    saved = getattr(tasks, str(checkpoint.get("task")), kind)  # a class from elsewhere may be a subclass
    if not issubclass(saved, kind):
        raise CheckpointError(f"{path} holds a {saved.__name__}; only a {kind.__name__} can {use}")
    known = {*inspect.signature(Task).parameters, *inspect.signature(kind).parameters}  # a subclass may have more
    values = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name in known}
    try:
        task = kind(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is not a checkpoint of a {kind.__name__}: {error}") from error
    check_fits(task, checkpoint, path)
    task.load_state_dict(checkpoint["state_dict"])
    task.on_load_checkpoint(checkpoint)
    return task.eval(), checkpoint
