"""ONNX files in onnxruntime equal the models in PyTorch, at every length and batch size."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from old_torch import every_export

from minrnn_lightning import Backbone, ClassificationTask, LanguageTask, MinGRU, MinLSTM, PolicyTask, PPOTask
from minrnn_lightning.errors import InputError
from minrnn_lightning.export import export
from minrnn_lightning.export.flatten import flatten
from minrnn_lightning.export.quantize import quantize
from minrnn_lightning.nn.mixers import Mixer

SMALL = {"dim": 8, "depth": 1, "mlp_ratio": 1.0}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def session(model, path, **options):
    export(model, path, format="onnx", **options)
    return onnxruntime.InferenceSession(path)


def inputs(module, batch, length, seed=0):
    """Random inputs of a module, by name."""
    torch.manual_seed(seed)
    found = {}
    for name, example, varying in module.inputs:
        sizes = {"batch": batch, "length": length}
        shape = [sizes[varying[d]] if d in varying else size for d, size in enumerate(example.shape)]
        if example.is_floating_point():
            found[name] = torch.randn(shape)
        elif example.dtype == torch.bool:
            found[name] = torch.rand(shape) < 0.3
        else:
            found[name] = torch.randint(1, 4, shape)
    if "previous_action" in found and not found["previous_action"].is_floating_point():
        found["previous_action"] %= 2  # the smallest choice has two actions
    if "lengths" in found:
        found["lengths"] = torch.randint(1, length + 1, found["lengths"].shape)
    return found


def check(model, path, shapes, **options):
    """The outputs at several (batch, length) equal those of PyTorch."""
    run = session(model, path, **options)
    module = flatten(model, **options)
    assert [each.name for each in run.get_inputs()] == [each.name for each in module.inputs]
    assert [each.name for each in run.get_outputs()] == module.outputs
    for batch, length in shapes:
        given = inputs(module, batch, length)
        outputs = run.run(None, {name: x.numpy() for name, x in given.items()})
        with torch.no_grad():
            expected = module(*given.values())
        for found, right in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), right, **TOLERANCE)


@every_export
def test_layer_at_every_length(tmp_path):
    torch.manual_seed(0)
    layer = MinGRU(3, 4, 2, batch_first=True)
    check(layer, tmp_path / "m.onnx", [(1, 1), (3, 2), (2, 17), (1, 512), (1, 4096)], mode="sequence", reset=True)


@every_export
def test_layer_in_both_directions_with_learned_state(tmp_path):
    torch.manual_seed(0)
    layer = MinLSTM(3, 4, bidirectional=True, activation="identity", learn_initial_state=True)
    check(layer, tmp_path / "m.onnx", [(1, 1), (2, 17)], mode="sequence", reset=True)


@every_export
def test_classification_of_pairs(tmp_path):
    torch.manual_seed(0)
    check(ClassificationTask(7, 5, pairs=True, **SMALL), tmp_path / "m.onnx", [(1, 1), (3, 17)], mode="sequence")


@pytest.mark.parametrize("mode", ["step", pytest.param("sequence", marks=every_export)])
def test_policy(mode, tmp_path):
    torch.manual_seed(0)
    task = PolicyTask(5, 3, layout="compact", **SMALL)
    task.bound_actions([-1, -2, 0], [1, 4, 1])
    check(task, tmp_path / "m.onnx", [(1, 1), (3, 17)], mode=mode, reset=True)


def test_online_policy(tmp_path):
    torch.manual_seed(0)
    task = PPOTask(6, 5, actions=[2, 3], previous_action=True, **SMALL)
    check(task, tmp_path / "m.onnx", [(1, 1), (3, 1)], mode="step")


def test_steps_of_a_bfloat16_model_equal_the_sequence(tmp_path):
    torch.manual_seed(0)
    task = LanguageTask(
        7, 7, mixer="minlstm", mixer_args={"minlstm": {"learn_initial_state": True}}, **SMALL
    ).bfloat16()
    run = session(task, tmp_path / "m.onnx", mode="step")
    assert task.head.weight.dtype == torch.bfloat16
    start = json.loads(run.get_modelmeta().custom_metadata_map["initial_state"])
    names = [name for name in (each.name for each in run.get_inputs()) if name.startswith("state")]
    shapes = {each.name: [2, *each.shape[1:]] for each in run.get_inputs()}
    state = {name: np.broadcast_to(np.float32(start[name]), shapes[name]) for name in names}
    tokens = torch.randint(0, 7, (2, 12))
    found = []
    for token in tokens.T:
        logits, *after = run.run(None, {"input": token.numpy(), **state})
        state = dict(zip(names, after, strict=True))
        found.append(torch.from_numpy(logits))
    with torch.no_grad():
        expected, _ = task.float().eval()(tokens)
    torch.testing.assert_close(torch.stack(found, 1), expected, **TOLERANCE)


@every_export
def test_a_layer_exports_by_pytorch_s_own_function(tmp_path):
    torch.manual_seed(0)
    layer, x = MinGRU(3, 4, batch_first=True).eval(), torch.randn(2, 9, 3)
    path = tmp_path / "m.onnx"
    torch.onnx.export(layer, (x,), path, dynamo=True, dynamic_shapes=({0: "batch", 1: "length"},), verbose=False)
    run, x = onnxruntime.InferenceSession(path), torch.randn(3, 20, 3)
    (found, _) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(x)[0].detach(), **TOLERANCE)


def test_an_operator_that_onnx_has_not_is_refused_and_the_file_kept(tmp_path):
    class Bessel(Mixer):
        def __init__(self, dim):
            super().__init__()
            self.linear = torch.nn.Linear(dim, dim)

        def mix(self, x, state, reset):
            return torch.special.bessel_j0(self.linear(x)), state

        def mix_step(self, x_t, state):
            return torch.special.bessel_j0(self.linear(x_t)), state

        def initial_state(self, batch_size):
            return ()

    file = tmp_path / "m.onnx"
    file.write_bytes(b"before")
    with pytest.raises(InputError, match=r"^a Bessel cannot be exported to ONNX: .*bessel_j0"):
        export(Bessel(8), file, mode="step")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


@every_export
@pytest.mark.parametrize("mixer", ["gru", "lstm", "s4d"])
@pytest.mark.parametrize("mode", ["step", "sequence"])
def test_mixers_whose_operators_onnx_has_not_run_as_loops(mixer, mode, tmp_path):
    torch.manual_seed(0)
    model = Backbone(4, 1, mixer, kernel_size=0, mlp_ratio=0)
    check(model, tmp_path / "m.onnx", [(1, 1), (3, 2), (2, 70)], mode=mode, reset=True)


@every_export
def test_attention_sees_nothing_before_a_reset(tmp_path):
    torch.manual_seed(0)
    model = Backbone(4, 1, "attention", kernel_size=0, mlp_ratio=0, mixer_args={"attention": {"window": 3}})
    check(model, tmp_path / "m.onnx", [(3, 1)], mode="step", reset=True)


def test_int8_weights_remain_int8(tmp_path):
    torch.manual_seed(0)
    layer = MinGRU(96, 96)
    export(layer, tmp_path / "float.onnx")
    quantized = quantize(layer).model
    check(quantized, tmp_path / "int8.onnx", [(1, 1), (3, 1)], mode="step")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "float.onnx").stat().st_size
