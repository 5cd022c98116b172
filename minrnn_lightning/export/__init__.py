"""Files of trained models that run without this package: ONNX, ``torch.export``, ExecuTorch, TorchScript."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.export.flatten import MODES, flatten
from minrnn_lightning.export.metadata import metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["FORMATS", "export"]

# The functions in this folder that write a format: of a ``FlatModule``, its metadata (texts by name) and a path.
FORMATS = {
    "onnx": "onnx.write_onnx",
    "torch": "packages.write_torch",
    "aotinductor": "packages.write_aotinductor",
    "executorch": "executorch.write_executorch",
}


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",  # noqa: A002
    mode: str = "step",
    reset: bool = False,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model to a file that runs without this package.

    Names and order of inputs and outputs, by the model and the mode, are those of ``flatten``; the file contains
    them, with the vocabulary and all else that is needed to use it, as metadata. The model is written in float32 and in
    evaluation mode, whatever it was trained in, and remains as it is.

    Args:
        model: A ``MinGRU`` or ``MinLSTM``, a mixer, a ``Backbone``, or a language, tagging, classification or policy
            task.
        path: The file to write; after an error, a previous one is still there.
        format: A name in ``FORMATS``.
        mode: ``step``: one time step with the state as input and output, for streams. ``sequence``: whole sequences of
            any batch size and length.
        reset: Whether the bool input ``reset`` is added, True at the first step of a new sequence. A policy's step
            always has it.
        tokenizer: Vocabulary of a language task; by default that of the data module, where the task has a Trainer, or
            the one that was loaded with the task.

    Raises:
        InputError: The format or mode is unknown or not for this model, a package is missing, or the path is no file in
            an existing folder.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if mode not in MODES:
        raise InputError(f"mode must be step or sequence, got {mode!r}")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: give the path of a file in a folder that exists")
    home, _, function = FORMATS[format].rpartition(".")
    write = getattr(import_module(f"{__name__}.{home}"), function)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        module = flatten(model, mode, reset=reset)
        write(module, metadata(model, module, mode, tokenizer), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
