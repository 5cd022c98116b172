"""``.pte`` files for ExecuTorch, the runtime for phones and microcontrollers, with XNNPACK for what it can run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from minrnn_lightning.errors import InputError
from minrnn_lightning.export.extra import extra_module
from minrnn_lightning.export.modules import FlatModule
from minrnn_lightning.export.plain import export_plain
from minrnn_lightning.export.quantize import with_linears
from minrnn_lightning.nn.linear_views import is_quantized

MOST_SEQUENCES, MOST_STEPS = 4, 4096  # the runtime reserves the memory of the greatest sizes when it loads a program
RESHAPES = ("view_copy.default", "unsqueeze_copy.default")


def write_executorch(module: FlatModule, metadata: dict[str, str], path: Path) -> None:
    """Write a program that takes up to ``MOST_SEQUENCES`` of ``MOST_STEPS`` steps, in float32.

    Its method ``forward`` is the module; its method ``metadata`` returns the metadata as one JSON string.

    Raises:
        InputError: ExecuTorch is not installed, or torchao has quantised the model.
    """
    if any(map(is_quantized, module.parameters())):
        raise InputError(
            "format executorch does not take weights that torchao has quantised: "
            "give the model that minrnn_lightning.export.quantize.quantize returns"
        )
    exir = extra_module("executorch.exir")
    xnnpack = extra_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    config = extra_module("executorch.backends.xnnpack.partition.config")
    module = with_linears(module)  # XNNPACK packs the weights of an nn.Linear once, when it loads a program
    exported = export_plain(module, batch=MOST_SEQUENCES, longest=MOST_STEPS, others=True)
    _remove_identities(exported)
    constants = {"metadata": json.dumps(metadata)}
    # XNNPACK fails on a reshape with several dynamic sizes, which its partitioner gives it; portable kernels take them.
    operators = [each for each in config.ALL_PARTITIONER_CONFIGS if each.target_name not in RESHAPES]
    partitioner = [xnnpack.XnnpackPartitioner(configs=operators)]
    lowered = exir.to_edge_transform_and_lower(exported, partitioner=partitioner, constant_methods=constants)
    path.write_bytes(lowered.to_executorch().buffer)


def _remove_identities(exported: ExportedProgram) -> None:
    """Remove what returns its input; XNNPACK refuses a part of a program whose output is one of its inputs."""
    aten, graph = torch.ops.aten, exported.graph_module.graph
    inputs = {node for node in graph.nodes if node.op == "placeholder"}
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in (aten.dropout.default, aten.clone.default, aten.to.dtype):
            (x, *_) = node.args
            if node.target is aten.to.dtype and x.meta["val"].dtype != node.meta["val"].dtype:
                continue
            if x in inputs and any(user.op == "output" for user in node.users):
                continue
            node.replace_all_uses_with(x)
            graph.erase_node(node)
    exported.graph_module.recompile()
