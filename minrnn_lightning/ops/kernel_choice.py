"""The choice of kernels for the scan: those for the device of the tensors, or others by name."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops import eager
from minrnn_lightning.ops.cuda.compilers import TRITON_RANGE, CompilerError

Kernel = Literal["auto", "torch", "triton"]

KERNELS = ("auto", "torch", "triton")
_chosen: str = os.environ.get("MINRNN_KERNEL", "auto")
if _chosen not in KERNELS:
    raise InputError(f"MINRNN_KERNEL is {_chosen!r}; it can be {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")
_loaded: dict[str, ModuleType] = {}  # the kernels that 'auto' chooses, by type of device


@contextmanager
def use_kernel(name: Kernel) -> Iterator[None]:
    """Choose the kernel inside a ``with`` block.

    The environment variable ``MINRNN_KERNEL`` chooses it for the whole process.

    Args:
        name: ``auto`` for the fastest kernel of the device, ``torch`` for plain PyTorch, ``triton`` for the kernel for
            GPUs, which runs on CPU tensors only if Triton was imported with ``TRITON_INTERPRET=1`` in the environment
            (slowly, for tests).

    Raises:
        InputError: The name is not one of the three.
    """
    global _chosen
    if name not in KERNELS:
        raise InputError(f"the kernel is {name!r}; it can be 'auto', 'torch' or 'triton'")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _compiled(name: str, compiler: str) -> ModuleType:
    """The compiled kernels for a type of device, or the eager ones if their compiler cannot be imported."""
    if name not in _loaded:
        try:
            _loaded[name] = import_module(f"minrnn_lightning.ops.{name}.launch")
        except Exception as error:  # a version that the kernels were not written for fails in any way
            supported = f"; {TRITON_RANGE} are supported" if compiler == "Triton" else ""
            _fall_back(name, f"{_version(compiler)} does not load ({error}{supported})")
    return _loaded[name]


def _fall_back(name: str, reason: str) -> None:
    """Warn, and use the eager kernels for this type of device from now on."""
    warnings.warn(f"{reason}: the slower torch kernel runs instead", stacklevel=3)
    _loaded[name] = eager


def _version(compiler: str) -> str:
    """Name of the compiler, with its version if it could be imported."""
    return f"{compiler} {getattr(sys.modules.get(compiler.lower()), '__version__', '')}".rstrip()


def _triton(device: torch.device) -> ModuleType:
    """The Triton kernels, chosen by name.

    Raises:
        RuntimeError: Triton cannot be imported, or cannot run on this device.
    """
    try:
        from minrnn_lightning.ops.cuda import launch as cuda
    except Exception as error:
        raise RuntimeError(
            f"the triton kernel needs Triton {TRITON_RANGE}, and {_version('Triton')} does not load ({error}): "
            "install one of these, or choose the kernel 'auto' or 'torch'"
        ) from error
    if device.type != "cuda" and not cuda.INTERPRETED:
        raise RuntimeError(
            f"the triton kernel runs on CUDA tensors, got {device}: "
            "choose the kernel 'auto', or set TRITON_INTERPRET=1 in the environment to interpret it (slowly, for tests)"
        )
    return cuda


def _kernels(device: torch.device) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run on this device."""
    if _chosen == "triton":
        return _triton(device)
    compiler = {"cpu": "Numba", "cuda": "Triton"}.get(device.type)
    return eager if _chosen == "torch" or compiler is None else _compiled(device.type, compiler)


def runs_numba(device: torch.device) -> bool:
    """Whether Numba's kernels run on this device; importing them is tried at the first call."""
    return device.type == "cpu" and _chosen == "auto" and _compiled("cpu", "Numba") is not eager


def run_kernel(function: str, sequence: Tensor, *rest: Any) -> Any:
    """Call a function of the kernels for the device, or of the eager ones if those cannot be compiled.

    Raises:
        RuntimeError: The kernels that were chosen by name cannot be compiled.
    """
    kernels = _kernels(sequence.device)
    try:
        return getattr(kernels, function)(sequence, *rest)
    except CompilerError as error:
        if _chosen == "triton":
            raise RuntimeError(
                f"{error}: install Triton {TRITON_RANGE}, or choose the kernel 'auto' or 'torch'"
            ) from error
        _fall_back(sequence.device.type, str(error))
        return getattr(eager, function)(sequence, *rest)
