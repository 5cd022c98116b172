"""Loading a trained task from its checkpoint alone."""

import inspect
from pathlib import Path
from typing import Any, TypeVar

from minrnn_lightning import tasks
from minrnn_lightning.checkpoint import CheckpointError, check_fits, read_checkpoint
from minrnn_lightning.tasks.task import Task

T = TypeVar("T", bound=Task)


def load_task(path: str | Path, task_class: type[T], use: str) -> tuple[T, dict[str, Any]]:
    """Load a trained task.

    Args:
        path: The ``.ckpt`` file of such a task or of a subclass that keeps its architecture.
        task_class: Class of the task.
        use: What it is loaded for, as a verb, for the error message.

    Returns:
        The task in evaluation mode, and the checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or holds another task.
    """
    checkpoint = read_checkpoint(path)
    saved = getattr(tasks, str(checkpoint.get("task")), task_class)  # a class from elsewhere may be a subclass
    if not issubclass(saved, task_class):
        raise CheckpointError(f"{path} holds a {saved.__name__}; only a {task_class.__name__} can {use}")
    known = {*inspect.signature(Task).parameters, *inspect.signature(task_class).parameters}  # a subclass may have more
    values = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name in known}
    try:
        task = task_class(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is not a checkpoint of a {task_class.__name__}: {error}") from error
    check_fits(task, checkpoint, path)
    task.load_state_dict(checkpoint["state_dict"])
    task.on_load_checkpoint(checkpoint)
    return task.eval(), checkpoint
