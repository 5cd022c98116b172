"""Lightning checkpoints: read without unpickling code, loaded in full or where tensors match."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from minrnn_lightning.errors import InputError, packages_passed
from minrnn_lightning.hub import is_pretrained, read_pretrained
from minrnn_lightning.sharded_checkpoint import is_sharded, read_parts

TYPES: dict[str, Any] = {  # of the parts that Lightning and this package write, down to what their readers rely on
    "callbacks": dict,
    "datamodule_hyper_parameters": dict,
    "environment": {"action_low": [int | float], "action_high": [int | float]},
    "epoch": int,
    "global_step": int,
    "hyper_parameters": dict,
    "loops": {"fit_loop": dict, "validate_loop": dict, "test_loop": dict, "predict_loop": dict},
    "lr_schedulers": [dict],
    "max_steps": int,
    "metrics": dict,
    "optimizer": str,
    "optimizer_states": [{"state": dict, "param_groups": [dict]}],
    "parameters": int,
    "pytorch-lightning_version": str,
    "seed": int | None,
    "task": str,
    "training": {"data": str, "data_hyper_parameters": dict, "steps": int, "metrics": dict},  # of a pretrained model
}
LIBRARIES = {"lightning", "torch", *sys.stdlib_module_names}  # that read their own parts of a checkpoint
READING_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # which they raise if it is damaged


class CheckpointError(InputError):
    """A file that cannot be used as a checkpoint; its message says which file and why."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning, or a model that ``save_pretrained`` wrote, to the CPU.

    Args:
        path: The ``.ckpt`` file, or the folder or name on the Hugging Face Hub of a model.

    Returns:
        Lightning's dictionary: ``state_dict``, ``hyper_parameters``, what the data module saved, and more.

    Raises:
        CheckpointError: The file is missing, damaged, contains Python objects or was written by another program.
    """
    if is_sharded(path):
        try:
            checkpoint = read_parts(path)
        except Exception as error:  # as below
            raise CheckpointError(
                f"{path} is not a checkpoint of plain tensors and values, a file for each process: one is missing, "
                "damaged or from another program"
            ) from error
        _check_types(checkpoint, TYPES, "", path)
        return cast("dict[str, Any]", checkpoint)
    if is_pretrained(path):
        try:
            checkpoint = read_pretrained(path)
        except InputError as error:
            raise CheckpointError(str(error)) from error
        _check_types(checkpoint, TYPES, "", path)
        return checkpoint
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
    except Exception as error:  # arbitrary bytes make the reader fail in arbitrary ways
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors and values: it is damaged, cut short or from another program"
        ) from error
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise CheckpointError(f"{path} is a PyTorch file, but not a checkpoint of Lightning: it has no `state_dict`")
    _check_types(checkpoint, TYPES, "", path)
    return checkpoint


def _check_types(part: Any, expected: Any, name: str, path: str | Path) -> None:
    """Refuse a part of another type than is expected, its items included; what is missing is left to what needs it."""
    kind: Any = expected if isinstance(expected, type | UnionType) else type(expected)
    if not isinstance(part, kind) or isinstance(part, bool):
        raise CheckpointError(
            f"{path} is damaged or from another program: {name} must be a {getattr(kind, '__name__', kind)}, "
            f"got a {type(part).__name__}"
        )
    if isinstance(expected, list):
        for item in part:
            _check_types(item, expected[0], f"an item of {name}", path)
    elif isinstance(expected, dict):
        for key in expected.keys() & part.keys():
            _check_types(part[key], expected[key], f"{key} of {name}" if name else key, path)


def explain_damage(path: str | Path, error: Exception) -> None:
    """Raise another error instead of one of restoring a checkpoint, where the checkpoint is at fault.

    It is where Lightning and PyTorch cannot read their own part of it, which they find in many ways. An error that has
    passed a function of another package, such as this one, keeps its traceback: each checks what it reads.

    Args:
        path: Path of the checkpoint.
        error: What was raised, as `restore_with` has caught it.

    Raises:
        CheckpointError: A part of the checkpoint is missing or of another kind.
    """
    if isinstance(error, InputError):
        if str(path) not in str(error):
            raise CheckpointError(f"{path} cannot be restored: {error}") from error
    elif isinstance(error, READING_ERRORS) and LIBRARIES.issuperset(packages_passed(error)[1:]):
        raise CheckpointError(
            f"{path} cannot be restored: a part of it is missing or of another kind ({type(error).__name__}: {error}); "
            "start from its weights with --model.init_from"
        ) from error


def load_matching(module: nn.Module, path: str | Path) -> tuple[list[str], list[str]]:
    """Copy the tensors of a checkpoint whose name and shape match, to fine-tune a model of another size.

    Args:
        module: The model to load into; its other tensors are unchanged.
        path: The checkpoint to load from.

    Returns:
        The names of the tensors of ``module`` that were loaded, and of those that were not.

    Raises:
        CheckpointError: The checkpoint cannot be read, or no tensor in it matches.
    """
    saved = read_checkpoint(path)["state_dict"]
    check_weights(saved, path)
    own = module.state_dict()
    loaded = [name for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape]
    if not loaded:
        raise CheckpointError(f"{path} holds no tensor whose name and shape fit {type(module).__name__}")
    module.load_state_dict({name: saved[name] for name in loaded}, strict=False)
    return loaded, [name for name in own if name not in loaded]


def check_fits(module: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of another class or of a model of another size.

    Args:
        module: The model that is to resume from the checkpoint.
        checkpoint: What `read_checkpoint` returned.
        path: Its path, for the error message.

    Raises:
        CheckpointError: A tensor is missing, unknown, of another shape or not finite; the message names the first.
    """
    saved, own = checkpoint["state_dict"], module.state_dict()
    check_weights(saved, path)
    for name in sorted(own.keys() | saved.keys()):
        expected, found = (str(tuple(state[name].shape)) if name in state else "missing" for state in (own, saved))
        if expected != found:
            raise CheckpointError(
                f"{path} does not fit this {type(module).__name__}: {name} is {expected} in the model and {found} in "
                "the checkpoint; use the recipe it was trained with, or start from its weights with --model.init_from"
            )


def check_weights(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights that are no tensors, or hold NaN.

    Args:
        tensors: The weights by name.
        path: Path of the checkpoint, for the error message.

    Raises:
        CheckpointError: One of them is none or does; the message names the first.
    """
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise CheckpointError(
                f"{path} is damaged or from another program: {name!r} in its state_dict must be a tensor, "
                f"got a {type(tensor).__name__}"
            )
        if tensor.isnan().any():
            raise CheckpointError(
                f"{path} holds NaN in {name}: its training has diverged; use an earlier checkpoint, or train with a "
                "lower learning rate"
            )


def tokenizer_of(checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> Tokenizer:
    """The vocabulary that a text data module stored in a checkpoint.

    Args:
        checkpoint: What `read_checkpoint` returned.
        path: Its path, for the error message.

    Raises:
        CheckpointError: The model was not trained through one of the text data modules, or the vocabulary is damaged.
    """
    tokenizer = stored_tokenizer(checkpoint, path)
    if tokenizer is None:
        raise CheckpointError(
            f"{path} holds no vocabulary: it was not trained on text through TextDataModule or ShakespeareDataModule"
        )
    return tokenizer


def stored_tokenizer(checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> Tokenizer | None:
    """As ``tokenizer_of``; None if the checkpoint holds no vocabulary."""
    for name, entry in checkpoint.items():
        if isinstance(entry, dict) and "tokenizer" in entry and not name.endswith("hyper_parameters"):
            try:
                return read_tokenizer(entry["tokenizer"])
            except Exception as error:  # tokenizers raises nothing more specific
                raise CheckpointError(f"{path} holds a vocabulary that cannot be read: {error}") from error
    return None


def read_tokenizer(content: str) -> Tokenizer:
    """A vocabulary from its JSON; the lengths to which it would cut texts, or fill them up, are left out."""
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that have a plain value; a task refuses the others before training starts."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        with suppress(ValueError):
            found[name] = plain(value, name)
    return found


def plain(value: Any, name: str) -> Any:
    """Convert a hyper-parameter to a plain value that a checkpoint can hold: numbers of NumPy and PyTorch to Python's.

    Args:
        value: Value of the hyper-parameter.
        name: Its name, for the error message.

    Raises:
        InputError: It has no plain value, so that a checkpoint with it could not be read without executing code.
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
    for base in (bool, int, float, str):  # value may be of a subclass
        if isinstance(value, base):
            return base(value)
    raise InputError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: give a number, a text, a list or a "
        "dictionary of these, or take it out of hparams"
    )
