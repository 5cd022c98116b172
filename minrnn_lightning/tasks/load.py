"""Loading a trained task from its checkpoint alone."""

import inspect
import sys
from pathlib import Path
from typing import Any, TypeVar

from minrnn_lightning import tasks
from minrnn_lightning.checkpoint import CheckpointError, check_fits, read_checkpoint
from minrnn_lightning.nn.mixers import MIXERS
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
        CheckpointError: The file cannot be read, holds another task, or names a mixer of a module that is not imported.
    """
    checkpoint = read_checkpoint(path)
    saved = getattr(tasks, str(checkpoint.get("task")), task_class)  # a class from elsewhere may be a subclass
    if not issubclass(saved, task_class):
        raise CheckpointError(f"{path} holds a {saved.__name__}; only a {task_class.__name__} can {use}")
    known = {*inspect.signature(Task).parameters, *inspect.signature(task_class).parameters}  # a subclass may have more
    _refuse_imports(checkpoint.get("hyper_parameters", {}).get("mixer"), path)
    values = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name in known}
    try:
        task = task_class(**values)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # values may be anything
        raise CheckpointError(f"{path} is not a checkpoint of a {task_class.__name__}: {error}") from error
    check_fits(task, checkpoint, path)
    task.load_state_dict(checkpoint["state_dict"])
    task.on_load_checkpoint(checkpoint)
    return task.eval(), checkpoint


def _refuse_imports(mixer: Any, path: str | Path) -> None:
    """Refuse a mixer whose module is not imported yet: a file must not decide which code runs here."""
    for name in mixer if isinstance(mixer, list) else [mixer]:
        module = str(name).rpartition(".")[0]
        if module and name not in MIXERS and module not in sys.modules:
            raise CheckpointError(
                f"{path} was trained with the mixer {name!r}, and loading it would import the module {module}: if you "
                f"trust that module, import it first, or list it in the environment variable MINRNN_IMPORT"
            )
