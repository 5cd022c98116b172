"""``.pt2`` files of PyTorch: programs of ``torch.export``, and libraries that AOTInductor has compiled.

Both consist of PyTorch's own operators, so that a process without this package can load them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minrnn_lightning.errors import InputError
from minrnn_lightning.export.modules import MOST_BATCH, FlatModule, too_old
from minrnn_lightning.export.plain import export_plain

MOST_STEPS = 1 << 18


def write_torch(module: FlatModule, metadata: dict[str, str], path: Path) -> None:
    """Write a program that ``torch.export.load`` reads; the metadata are its ``extra_files``, by name.

    Raises:
        InputError: PyTorch is older than ``OLDEST``.
    """
    _check_release("torch")
    exported = export_plain(module, batch=MOST_BATCH, longest=MOST_STEPS)
    torch.export.save(exported, path, extra_files=dict(metadata))


def write_aotinductor(module: FlatModule, metadata: dict[str, str], path: Path) -> None:
    """Compile a library for this machine's kind of processor, which ``torch._inductor.aoti_load_package`` reads.

    ``get_metadata`` of what it returns has the metadata. It needs a C++ compiler, and a minute or two for sequences.

    Raises:
        InputError: PyTorch is older than ``OLDEST``, or there is no C++ compiler.
    """
    _check_release("aotinductor")
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError("format aotinductor needs a C++ compiler such as g++, and found none") from error
    exported = export_plain(module, batch=MOST_BATCH, longest=MOST_STEPS)
    # One loop for each round of doubling: a round within the next would be computed anew for each of its two uses.
    rounds = {"realize_reads_threshold": 0, "realize_opcount_threshold": 1, "realize_acc_reads_threshold": 2}
    options = {**rounds, "aot_inductor.metadata": dict(metadata)}
    torch._inductor.aoti_compile_and_package(exported, package_path=str(path.resolve()), inductor_configs=options)


def _check_release(name: str) -> None:
    if needed := too_old():
        raise InputError(f"format {name} {needed}")
