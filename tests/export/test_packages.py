import json

import pytest
import torch
from exported import make_inputs, run_without_package
from old_torch import every_export

from minrnn_lightning import ClassificationTask, LanguageTask, MinGRU, MinLSTM, PolicyTask
from minrnn_lightning.errors import InputError
from minrnn_lightning.export import export, packages
from minrnn_lightning.export.flatten import flatten

pytestmark = every_export
SMALL = {"dim": 8, "depth": 1}
SIGNED = {"signed": True, "normalize": False, "learn_initial_state": True}
MODELS = {
    "layer of two directions": lambda: MinLSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True, **SIGNED),
    "layer": lambda: MinLSTM(3, 4, **SIGNED),
    "language": lambda: LanguageTask(5, 5, mixer="minlstm", **SMALL),
    "classification": lambda: ClassificationTask(5, 3, **SMALL),
    "policy": lambda: PolicyTask(3, 2, **SMALL),
}
SIZES = {
    "step": [{"batch": 1}, {"batch": 5}],
    "sequence": [{"batch": 1 + length % 3, "length": length} for length in (1, 2, 3, 63, 64, 65, 200, 4096)],
}


def write_cases(model, format_, mode, path, sizes, reset=False):
    """Export, and write inputs beside the file; returns the module."""
    export(model, path, format=format_, mode=mode, reset=reset)
    module = flatten(model, mode, reset=reset)
    torch.save([make_inputs(module, **each) for each in sizes], path.with_suffix(".inputs"))
    return module


def check(module, path):
    with torch.no_grad():
        expected = [module(*inputs) for inputs in torch.load(path.with_suffix(".inputs"))]
    for got, want in zip(torch.load(path.with_suffix(".outputs")), expected, strict=True):
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["step", pytest.param("sequence", marks=pytest.mark.slow)])
def test_programs_run_without_the_package(mode, tmp_path, monkeypatch):
    """Of up to 4,096 steps, of a policy 3 tokens each; the test of a library and test_export.py have longer ones."""
    monkeypatch.setattr(packages, "MOST_STEPS", 1 << 14)
    modules = {}  # by the file; one process runs them all
    for name, make in MODELS.items():
        if (name, mode) not in (("layer of two directions", "step"), ("layer", "sequence")):  # two have no step
            reset = mode == "sequence" and name in ("layer of two directions", "language")
            path = tmp_path / f"{name}.pt2"
            modules[path] = write_cases(make(), "torch", mode, path, SIZES[mode], reset)
    run_without_package("torch", list(modules))
    for path, module in modules.items():
        check(module, path)


def test_metadata_are_extra_files(tmp_path):
    export(LanguageTask(5, 5, **SMALL), tmp_path / "step.pt2", format="torch")
    files = {"class": "", "inputs": ""}
    torch.export.load(tmp_path / "step.pt2", extra_files=files)
    assert files["class"] == "LanguageTask"
    assert json.loads(files["inputs"])["input"] == {"type": "int64", "shape": ["batch"]}


@pytest.mark.slow
def test_a_library_runs_without_the_package(tmp_path):
    """A sequence; a step is in tests/commands/test_export.py."""
    path = tmp_path / "sequence.pt2"
    module = write_cases(MinGRU(3, 4, batch_first=True), "aotinductor", "sequence", path, SIZES["sequence"], reset=True)
    run_without_package("aotinductor", [path])
    check(module, path)
    assert torch._inductor.aoti_load_package(str(path)).get_metadata()["class"] == "MinGRU"


def test_an_old_pytorch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    with pytest.raises(InputError, match=r"^format torch needs at least torch 2\.13, and this is 2\.6\.0$"):
        export(MinGRU(3, 4), tmp_path / "step.pt2", format="torch")


def test_a_missing_compiler_is_named(tmp_path):
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-compiler",)})
    with (
        missing,
        pytest.raises(InputError, match=r"^format aotinductor needs a C\+\+ compiler such as g\+\+, and found none$"),
    ):
        export(MinGRU(3, 4), tmp_path / "step.pt2", format="aotinductor")


def test_a_model_that_contains_a_layer_keeps_the_operator_of_the_scan():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = MinGRU(3, 4)

        def forward(self, x):
            return self.rnn(x)[0]

    length = torch.export.Dim("length", min=2)
    program = torch.export.export(Model(), (torch.randn(5, 2, 3),), dynamic_shapes=({0: length},))
    assert torch.ops.minrnn.scan.default in {node.target for node in program.graph.nodes}
    x, model = torch.randn(9, 2, 3), program.module()
    assert model(x).shape == (9, 2, 4)
