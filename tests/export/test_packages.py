import json

import pytest
import torch
from exported import make_inputs, run_without_package

from minrnn_lightning import ClassificationTask, LanguageTask, MinGRU, MinLSTM, PolicyTask
from minrnn_lightning.errors import InputError
from minrnn_lightning.export import export, packages
from minrnn_lightning.export.flatten import flatten

pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < packages.OLDEST, reason="needs a newer PyTorch"
)
SMALL = {"dim": 8, "depth": 1}
MODELS = {
    "layer": lambda: MinGRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "signed": lambda: MinLSTM(3, 4, signed=True, normalize=False, learn_initial_state=True),
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


def check_program(name, mode, path):
    reset = mode == "sequence" and name in ("layer", "signed", "language")
    module = write_cases(MODELS[name](), "torch", mode, path, SIZES[mode], reset)
    run_without_package("torch", [path])
    check(module, path)


def test_a_step_runs_without_the_package(tmp_path):
    check_program("signed", "step", tmp_path / "step.pt2")


def test_a_sequence_runs_without_the_package_at_any_length(tmp_path):
    check_program("signed", "sequence", tmp_path / "sequence.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language", "classification", "policy"])
def test_a_step_of_a_task_runs_without_the_package(name, tmp_path):
    check_program(name, "step", tmp_path / "step.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "language", "classification", "policy"])
def test_a_sequence_of_others_runs_without_the_package(name, tmp_path):
    check_program(name, "sequence", tmp_path / "sequence.pt2")


def test_metadata_are_extra_files(tmp_path):
    export(LanguageTask(5, 5, **SMALL), tmp_path / "step.pt2", format="torch")
    files = {"class": "", "inputs": ""}
    torch.export.load(tmp_path / "step.pt2", extra_files=files)
    assert files["class"] == "LanguageTask"
    assert json.loads(files["inputs"])["input"] == {"type": "int64", "shape": ["batch"]}


def check_library(model, mode, path, **options):
    module = write_cases(model, "aotinductor", mode, path, SIZES[mode], **options)
    run_without_package("aotinductor", [path])
    check(module, path)


@pytest.mark.slow
def test_aotinductor_step(tmp_path):
    check_library(MinGRU(3, 4), "step", tmp_path / "step.pt2")
    metadata = torch._inductor.aoti_load_package(str(tmp_path / "step.pt2")).get_metadata()
    assert metadata["class"] == "MinGRU"


@pytest.mark.slow
def test_aotinductor_sequence(tmp_path):
    check_library(MinGRU(3, 4, batch_first=True), "sequence", tmp_path / "sequence.pt2", reset=True)


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
