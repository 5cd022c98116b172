"""At most ten lines of Python that use an exported file, without this package."""

from __future__ import annotations

from typing import NamedTuple

from minrnn_lightning.export.modules import FlatModule


class Runtime(NamedTuple):
    """How a program of one format is loaded and run."""

    load: str  # imports, and the lines that define ``about``, the metadata
    run: str  # the outputs, from the list ``inputs``
    zeros: str  # an input, from ``x``, its description in the metadata, and ``sizes``
    initial: str  # an initial state, from ``v``, its values, and ``x``, zeros


TORCH = {
    "run": "model(*inputs)",
    "zeros": 'torch.zeros([sizes.get(n, n) for n in x["shape"]], dtype=getattr(torch, x["type"]))',
    "initial": "x + torch.tensor(v, dtype=x.dtype)",
}
LOAD = {  # by format
    "onnx": Runtime(
        load="""\
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({path})
about = session.get_modelmeta().custom_metadata_map
""",
        run="session.run(None, dict(zip(tensors, inputs)))",
        zeros='np.zeros([sizes.get(n, n) for n in x["shape"]], x["type"])',
        initial="x + np.array(v, x.dtype)",
    ),
    "torch": Runtime(
        load="""\
import json
import torch

about = {{"inputs": "", "initial_state": ""}}
model = torch.export.load({path}, extra_files=about).module()
""",
        **TORCH,
    ),
    "aotinductor": Runtime(
        load="""\
import json
import torch

model = torch._inductor.aoti_load_package({path})
about = model.get_metadata()
""",
        **TORCH,
    ),
    "executorch": Runtime(
        load="""\
import json
import torch
from executorch.runtime import Runtime

about, model = map(Runtime.get().load_program({path}).load_method, ("metadata", "forward"))
about = json.loads(about.execute([])[0])
""",
        **{**TORCH, "run": "model.execute(inputs)"},
    ),
}
SIZES = {"batch": 1, "length": 16, "past": 0}  # for each size that varies


def snippet(module: FlatModule, format: str, path: str) -> str:  # noqa: A002
    """Lines that run a file once, or several steps of it, with zeros as input.

    Args:
        module: What was exported, whose states have the batch first.
        format: A name in ``LOAD``.
        path: The file.
    """
    runtime, given = LOAD[format], module.given
    varying = {name for each in module.inputs for name in each.varying.values()}
    state, result = f"inputs[{given}:{given + len(module.starts)}]", module.outputs[0]
    text = runtime.load.format(path=repr(path))
    text += f"""\
tensors, sizes = json.loads(about["inputs"]), { {name: size for name, size in SIZES.items() if name in varying} }
inputs = [{runtime.zeros} for x in tensors.values()]
"""
    names = ", ".join(each.name for each in module.inputs[:given])
    if any(each.name == "lengths" for each in module.inputs):
        text += f"inputs[1][:] = {SIZES['length']}\n"
    if not module.starts:
        return f"{text}({result},) = {runtime.run}  # of {names}\n"
    sequence = type(module).__name__.endswith("Sequence")
    if any(module.initial_values().values()) and (sequence or not module.has_reset):  # a reset starts with it too
        values = 'json.loads(about["initial_state"]).values()'
        text += f"{state} = [{runtime.initial} for x, v in zip({state}, {values})]\n"
    run = f"{result}, *{state} = {runtime.run}"
    if sequence:
        return f"{text}{run}  # of {names}\n"
    reset = "    inputs[-1][:] = step == 0\n" if module.has_reset else ""
    return f"{text}for step in range(3):  # set inputs[:{given}], {names}, here\n{reset}    {run}\n"
