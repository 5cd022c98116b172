"""Checkpoints of Lightning: written whole or not at all, read without unpickling code, taken from by what fits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from tokenizers import Tokenizer
from torch import nn


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; its message says which file and why."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Plugin of the Trainer that writes a checkpoint beside its place and then renames it.

    Lightning moves it there from the folder for temporary files, which may be another disk: on a full one, half a file
    would take the place of the checkpoint before.
    """

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
