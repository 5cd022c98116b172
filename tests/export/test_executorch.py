import json
import sys

import pytest
import torch
from exported import make_inputs

from minrnn_lightning import LanguageTask, MinGRU, PolicyTask
from minrnn_lightning.errors import InputError
from minrnn_lightning.export import export
from minrnn_lightning.export.flatten import flatten


def check(model, mode, path, sizes, **options):
    runtime = pytest.importorskip("executorch.runtime")
    export(model, path, format="executorch", mode=mode, **options)
    program = runtime.Runtime.get().load_program(path)
    method, module = program.load_method("forward"), flatten(model, mode, **options)
    for size in sizes:
        inputs = make_inputs(module, **size)
        with torch.no_grad():
            expected = module(*inputs)
        for got, want in zip(method.execute(inputs), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    return json.loads(program.load_method("metadata").execute([])[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: MinGRU(3, 4, num_layers=2, dropout=0.5),
        lambda: LanguageTask(5, 5, dim=8, depth=1),
        lambda: PolicyTask(3, 2, dim=8, depth=1),
    ],
)
def test_step(make, tmp_path):
    metadata = check(make(), "step", tmp_path / "step.pte", [{"batch": 1}, {"batch": 3}])
    assert metadata["mode"] == "step"
    assert json.loads(metadata["outputs"])[0] in ("output", "logits")


def test_sequence(tmp_path):
    model = MinGRU(3, 4, batch_first=True)
    sizes = [{"batch": 1 + length % 3, "length": length} for length in (1, 2, 63, 64, 65, 1000, 4096)]
    check(model, "sequence", tmp_path / "sequence.pte", sizes)


def test_sequence_of_a_policy_with_several_dynamic_sizes(tmp_path):
    model = PolicyTask(3, 2, dim=8, depth=1)
    check(model, "sequence", tmp_path / "sequence.pte", [{"batch": 1, "length": 1}, {"batch": 3, "length": 65}])


@pytest.mark.slow
def test_sequence_of_a_task_with_resets(tmp_path):
    model = LanguageTask(5, 5, dim=8, depth=1)
    sizes = [{"batch": 1 + length % 3, "length": length} for length in (1, 2, 63, 64, 65, 1000, 4096)]
    check(model, "sequence", tmp_path / "sequence.pte", sizes, reset=True)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(
        InputError, match=r'^this needs the package executorch: pip install "minrnn-lightning\[executorch\]"$'
    ):
        export(MinGRU(3, 4), tmp_path / "step.pte", format="executorch")
