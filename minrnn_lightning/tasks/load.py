"""Loading a trained task from its checkpoint alone."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from minrnn_lightning import tasks
from minrnn_lightning.annotations import accepted, fits, type_hints
from minrnn_lightning.checkpoint import CheckpointError, check_fits, read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.hub import CONFIG, PACKAGE, is_pretrained
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.tasks.task import Task

T = TypeVar("T", bound=Task)


def load_task(path: str | Path, task_class: type[T], use: str) -> tuple[T, dict[str, Any]]:
    """Load a trained task.

    Args:
        path: The ``.ckpt`` file of such a task or of a subclass that keeps its architecture, a folder that
            ``save_pretrained`` wrote, or a model of the Hugging Face Hub.
        task_class: Class of the task.
        use: What it is loaded for, as a verb, for the error message.

    Returns:
        The task in evaluation mode, and the checkpoint.

    Raises:
        CheckpointError: The file cannot be read, holds another task, lacks a value or holds one of another type, or
            names a mixer of a module that is not imported.
    """
    checkpoint = read_checkpoint(path)
    return build_task(checkpoint, path, task_class, use), checkpoint


def build_task(checkpoint: dict[str, Any], path: str | Path, task_class: type[T], use: str) -> T:
    """The task in a checkpoint, in evaluation mode.

    Args:
        checkpoint: What ``read_checkpoint`` returned.
        path: Its path.
        task_class: As for ``load_task``.
        use: As for ``load_task``.

    Raises:
        CheckpointError: As ``load_task``, but for reading.
    """
    name = str(checkpoint.get("task")).removeprefix(PACKAGE)
    saved = getattr(tasks, name) if name in tasks.__all__ else task_class  # a class from elsewhere may be a subclass
    if not issubclass(saved, task_class):
        raise CheckpointError(f"{path} holds a {saved.__name__}; only a {task_class.__name__} can {use}")
    hyper_parameters = checkpoint.get("hyper_parameters", {})
    if is_pretrained(path) and name in tasks.__all__:
        _refuse_unknown(saved, hyper_parameters, path)
    _refuse_imports(hyper_parameters.get("mixer"), path)
    values = _arguments(task_class, hyper_parameters, path)
    try:
        task = task_class(**values)
    except InputError as error:
        raise CheckpointError(f"{path} is not a checkpoint of a {task_class.__name__}: {error}") from error
    check_fits(task, checkpoint, path)
    task.load_state_dict(checkpoint["state_dict"])
    try:
        task.on_load_checkpoint(checkpoint)
    except CheckpointError as error:  # which does not know the name of the file
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    return task.eval()


def _arguments(task_class: type[Task], saved: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The hyper-parameters that are arguments of a class; a checkpoint of a subclass may hold more.

    Raises:
        CheckpointError: One that the class needs is missing, or a value is of another type than that of its argument.
    """
    named = _named(task_class)
    hints = type_hints(task_class)
    for name, parameter in named.items():
        if name not in saved and parameter.default is parameter.empty:
            raise CheckpointError(f"{path} is not a checkpoint of a {task_class.__name__}: {name} is missing")
        if name in saved and not fits(saved[name], hints.get(name, Any)):
            raise CheckpointError(
                f"{path} is not a checkpoint of a {task_class.__name__}: {name} must be {accepted(hints[name])}, "
                f"got {saved[name]!r}"
            )
    return {name: saved[name] for name in named if name in saved}


def _named(task_class: type[Task]) -> dict[str, inspect.Parameter]:
    parameters = {**inspect.signature(Task).parameters, **inspect.signature(task_class).parameters}
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _refuse_unknown(task_class: type[Task], saved: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a hyper-parameter that a class of this package does not have: the model would be another one."""
    unknown = sorted(saved.keys() - _named(task_class).keys())
    if unknown:
        raise CheckpointError(
            f"{path} is not a model of this version's {task_class.__name__}: it has no hyper-parameter {unknown[0]}; "
            f"correct {CONFIG}, or use the version of minrnn-lightning that it names"
        )


def _refuse_imports(mixer: Any, path: str | Path) -> None:
    """Refuse a mixer whose module is not imported yet: a file must not decide which code runs here."""
    for name in mixer if isinstance(mixer, list) else [mixer]:
        module = str(name).rpartition(".")[0]
        if module and name not in MIXERS and module not in sys.modules:
            raise CheckpointError(
                f"{path} was trained with the mixer {name!r}, and loading it would import the module {module}: if you "
                f"trust that module, import it first, or list it in the environment variable MINRNN_IMPORT"
            )
