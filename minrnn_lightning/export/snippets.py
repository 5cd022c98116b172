"""About ten lines of Python that use an exported file, without this package."""

from __future__ import annotations

from minrnn_lightning.export.modules import FlatModule

LOAD = {  # by format: imports, and the lines that load a file and define ``about``, its metadata, and ``run``
    "onnx": """\
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({path})
about = session.get_modelmeta().custom_metadata_map
run = lambda inputs: session.run(None, inputs)
""",
    "torch": """\
import json
import numpy as np
import torch

about = {{{names}}}
module = torch.export.load({path}, extra_files=about).module()
run = lambda inputs: [y.numpy() for y in module(*map(torch.from_numpy, inputs.values()))]
""",
    "aotinductor": """\
import json
import numpy as np
import torch

package = torch._inductor.aoti_load_package({path})
about = package.get_metadata()
run = lambda inputs: [y.numpy() for y in package(*map(torch.from_numpy, inputs.values()))]
""",
    "executorch": """\
import json
import numpy as np
import torch
from executorch.runtime import Runtime

program = Runtime.get().load_program({path})
about, forward = json.loads(program.load_method("metadata").execute([])[0]), program.load_method("forward")
run = lambda inputs: [y.numpy() for y in forward.execute([torch.from_numpy(x) for x in inputs.values()])]
""",
}
INPUTS = """\
sizes = {"batch": 1, "length": 16, "past": 0}
inputs = {}
for name, tensor in json.loads(about["inputs"]).items():
    inputs[name] = np.zeros([sizes.get(size, size) for size in tensor["shape"]], tensor["type"])
"""
START = """\
for name, values in json.loads(about["initial_state"]).items():
    inputs[name] += np.array(values, inputs[name].dtype)
"""


def snippet(module: FlatModule, format: str, path: str) -> str:  # noqa: A002
    """Lines that run a file once, or several steps of it, with zeros as input.

    Args:
        module: What was exported, whose states have the batch first.
        format: A name in ``LOAD``.
        path: The file.
    """
    names = ["inputs", *(["initial_state"] if module.starts else [])]
    text = LOAD[format].format(path=repr(path), names=", ".join(f'"{name}": ""' for name in names))
    text += INPUTS + (START if module.starts else "")
    given = ", ".join(each.name for each in module.inputs[: module.given])
    result = module.outputs[0]
    if not module.starts:
        lengths = 'inputs["lengths"][:] = 16\n' if any(each.name == "lengths" for each in module.inputs) else ""
        return f"{text}{lengths}({result},) = run(inputs)  # of {given}\nprint({result}.shape)\n"
    carry = "inputs.update({f'state_{i}': leaf for i, leaf in enumerate(state)})\n"
    if type(module).__name__.endswith("Sequence"):
        return f"{text}{result}, *state = run(inputs)  # of {given}\n{carry}print({result}.shape)\n"
    reset = '    inputs["reset"][:] = step == 0\n' if module.has_reset else ""
    loop = f"for step in range(3):  # set {given} here\n{reset}    {result}, *state = run(inputs)\n    {carry}"
    return f"{text}{loop}print({result}.shape)\n"
