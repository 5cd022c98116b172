"""Reading the checkpoints that Lightning writes, without unpickling code: weights, hyper-parameters, vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; its message says which file and why."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning to the CPU, its weights mapped from the file.

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


def tokenizer_of(checkpoint: dict[str, Any]) -> Tokenizer:
    """The vocabulary that a text data module left in a checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returned.

    Raises:
        CheckpointError: the model was not trained through one of the text data modules.
    """
    for part in checkpoint.values():
        if isinstance(part, dict) and isinstance(part.get("tokenizer"), str):
            return Tokenizer.from_str(part["tokenizer"])
    raise CheckpointError(
        "the checkpoint holds no vocabulary: it was not trained on text through TextDataModule or ShakespeareDataModule"
    )
