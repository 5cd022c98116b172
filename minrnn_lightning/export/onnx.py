"""ONNX files, with standard operators only.

The scan becomes the operator ``Scan`` (see ``minrnn_lightning.ops.decomposition``): in onnxruntime it is faster than
the scan by doubling of ``plain.py`` at 1 to 16 sequences of 512 steps, and it needs no longest length.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minrnn_lightning.errors import InputError, first_line
from minrnn_lightning.export.extra import extra_module
from minrnn_lightning.export.modules import FlatModule, too_old

OPSET = 18
INT8 = 3  # ONNX's number of the type


def write_onnx(module: FlatModule, metadata: dict[str, str], path: Path) -> None:
    """Write an ONNX file whose inputs and outputs have the names of the module's.

    Raises:
        InputError: A package is missing, or the model has an operator that ONNX has not.
    """
    extra_module("onnx")
    optimizer = extra_module("onnxscript").optimizer
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                module.examples,
                dynamo=True,
                dynamic_shapes=module.dynamic_shapes(),
                input_names=[each.name for each in module.inputs],
                output_names=module.outputs,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            old = f"; that of some models {needed}" if (needed := too_old()) else ""
            name = type(module.model).__name__
            raise InputError(f"a {name} cannot be exported to ONNX: {_reason(error)}{old}") from error
        assert program is not None, "dynamo=True returns a program"
        optimizer.optimize_ir(program.model, should_fold=_folds)
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _folds(node: Any) -> bool | None:
    """Whether constants are computed when the file is written: int8 weights remain int8, all else as by default."""
    return False if node.op_type == "Cast" and node.inputs[0].dtype == INT8 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says of its own use of PyTorch, and of packages that are of no use here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
