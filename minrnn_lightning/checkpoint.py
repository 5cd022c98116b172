"""Checkpoints of Lightning: written whole or not at all, read without unpickling code, taken from by what fits."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from tokenizers import Tokenizer
from torch import nn

from minrnn_lightning.errors import InputError


class CheckpointError(InputError):
    """A file that cannot be used as a checkpoint; its message says which file and why."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Plugin of the Trainer that writes a checkpoint beside its place and then renames it, and never unpickles code.

    Lightning moves it there from the folder for temporary files, which may be another disk: on a full one, half a file
    would take the place of the checkpoint before. What Lightning finds by itself, such as the checkpoint that SLURM
    left, is read here too.
    """

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read plain tensors and values only, whatever ``weights_only`` says.

        Raises:
            CheckpointError: the checkpoint is not a local file, or holds Python objects.
        """
        return read_checkpoint(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint; after an error there is what was there before."""
        if "://" in str(path):  # not a file
            return super().save_checkpoint(checkpoint, path, storage_options)
        partial = Path(f"{path}.partial")
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning to the CPU.

    Args:
        path: the ``.ckpt`` file.

    Returns:
        Lightning's dictionary: ``state_dict``, ``hyper_parameters``, what the data module saved, and more.

    Raises:
        CheckpointError: the file is missing, damaged, holds Python objects or comes from another program.
    """
    if not Path(path).is_file():
        if "://" in str(path):
            raise CheckpointError(
                f"{path} is an address, and a checkpoint is read from a local file only: download it and give its path"
            )
        raise CheckpointError(f"{path}: there is no such file; give the path of a .ckpt file that `minrnn fit` wrote")
    try:
        with ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not look at the checksums
                raise BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes of any kind make the reader fail in any way
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors and values: it is damaged, cut short or from another program"
        ) from error
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise CheckpointError(f"{path} is a PyTorch file, but not a checkpoint of Lightning: it has no `state_dict`")
    return checkpoint


def load_matching(module: nn.Module, path: str | Path) -> tuple[list[str], list[str]]:
    """Copy from a checkpoint the tensors whose name and shape fit, to fine-tune a model of another size.

    Args:
        module: the model to fill; its other tensors stay as they are.
        path: the checkpoint to take from.

    Returns:
        The names of the tensors of ``module`` that were taken, and of those that were left.

    Raises:
        CheckpointError: the checkpoint cannot be read, or no tensor in it fits.
    """
    saved = read_checkpoint(path)["state_dict"]
    own = module.state_dict()
    taken = [name for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape]
    if not taken:
        raise CheckpointError(f"{path} holds no tensor whose name and shape fit {type(module).__name__}")
    module.load_state_dict({name: saved[name] for name in taken}, strict=False)
    return taken, [name for name in own if name not in taken]


def check_fits(module: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of another class or of a model of another size.

    Args:
        module: the model that is to continue from the checkpoint.
        checkpoint: what `read_checkpoint` returned.
        path: where it came from, for the message.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; the message names the first of them.
    """
    saved, own = checkpoint["state_dict"], module.state_dict()
    for name in sorted(own.keys() | saved.keys()):
        here, there = (str(tuple(part[name].shape)) if name in part else "missing" for part in (own, saved))
        if here != there:
            raise CheckpointError(
                f"{path} does not fit this {type(module).__name__}: {name} is {here} in the model and {there} in the "
                "checkpoint; use the recipe it was trained with, or start from its weights with --model.init_from"
            )


def tokenizer_of(checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> Tokenizer:
    """The vocabulary that a text data module left in a checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returned.
        path: where it came from, for the message.

    Raises:
        CheckpointError: the model was not trained through one of the text data modules.
    """
    for name, part in checkpoint.items():
        if isinstance(part, dict) and "tokenizer" in part and not name.endswith("hyper_parameters"):
            return Tokenizer.from_str(part["tokenizer"])
    raise CheckpointError(
        f"{path} holds no vocabulary: it was not trained on text through TextDataModule or ShakespeareDataModule"
    )


def last_checkpoint(folder: str | Path) -> Path | None:
    """The ``last.ckpt`` that was written last among the runs of a folder; None where there is none.

    Args:
        folder: the ``default_root_dir`` of the runs, with a folder ``version_N`` for each.
    """
    return max(Path(folder).glob("version_*/checkpoints/last.ckpt"), key=os.path.getmtime, default=None)


def find_checkpoint(word: str, folder: str | Path) -> Path:
    """The checkpoint that ``last`` or ``best`` stands for: of the run of a folder that was written to last.

    Args:
        word: ``last`` is the end of the run, ``best`` what its ModelCheckpoint with a ``monitor`` kept.
        folder: the ``default_root_dir`` of the runs.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    last = last_checkpoint(folder)
    if last is None:
        raise CheckpointError(f"--ckpt_path {word} finds no run with a last.ckpt in {folder}; give a file instead")
    if word == "last":
        return last
    for name, state in read_checkpoint(last).get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and isinstance(state, dict) and state.get("best_model_path"):
            if "'monitor': None" in name:
                continue
            best = last.parent / Path(state["best_model_path"]).name  # the folder may have been moved since
            if best.is_file():
                return best
    raise CheckpointError(
        f"--ckpt_path {word} finds none in {last.parent}: a run keeps it where a ModelCheckpoint with a monitor is "
        "among trainer.callbacks; give last or a file instead"
    )


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some hyper-parameters that have a plain value; a task refuses the others before training starts."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        with suppress(ValueError):
            found[name] = plain(value, name)
    return found


def plain(value: Any, name: str) -> Any:
    """A hyper-parameter as the plain value that a checkpoint can hold: NumPy's and PyTorch's numbers become Python's.

    Args:
        value: what was given.
        name: its name, for the message.

    Raises:
        InputError: it has no plain value, so that a checkpoint with it could not be read without executing code.
    """
    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.dtype, torch.device):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, name)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype != object:
        return value.tolist()
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(key, name): plain(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        values = [plain(each, name) for each in value]
        return tuple(values) if isinstance(value, tuple) else values
    for kind in (bool, int, float, str):  # of a subclass
        if isinstance(value, kind):
            return kind(value)
    raise InputError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: give a number, a text, a list or a "
        "dictionary of these, or take it out of hparams"
    )
