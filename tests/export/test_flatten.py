"""What is exported: names, examples, metadata and what is refused."""

import json
import sys

import pytest
import torch
from torch import nn

from minrnn_lightning import Backbone, ClassificationTask, LanguageTask, MinGRU, PolicyTask, PPOTask
from minrnn_lightning.data.text.tokenizer import char_tokenizer
from minrnn_lightning.errors import InputError
from minrnn_lightning.export import export
from minrnn_lightning.export.flatten import flatten
from minrnn_lightning.export.metadata import metadata
from minrnn_lightning.export.quantize import quantize
from minrnn_lightning.nn.mixers import MIXERS, PointwiseMixer

SMALL = {"dim": 8, "depth": 1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "tflite"}, "format must be one of onnx, "),
        ({"mode": "both"}, "mode must be step or sequence, got 'both'"),
        ({"model": MinGRU(3, 4, bidirectional=True)}, "a bidirectional MinGRU has no step, since it reads the whole"),
        ({"model": nn.GRU(3, 4)}, "a GRU cannot be exported; what can is a MinGRU or MinLSTM"),
        ({"model": ClassificationTask(7, 5, pairs=True, **SMALL)}, "a task of pairs has no step"),
        ({"path": "no/such/folder/m.onnx"}, "no/such/folder/m.onnx: give the path of a file in a folder that exists"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:20],
)
def test_refused(options, sentence, tmp_path):
    arguments = {"model": MinGRU(3, 4), "path": tmp_path / "m.onnx"} | options
    with pytest.raises(InputError) as error:
        export(arguments.pop("model"), arguments.pop("path"), **arguments)
    assert str(error.value).startswith(sentence)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r'needs the package onnxscript: pip install "minrnn-lightning\[export\]"'):
        export(MinGRU(3, 4), tmp_path / "m.onnx")


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("rounded", [False, True])
def test_a_mixer_takes_its_width(name, rounded):
    """With more hidden units than channels, and with weights in int8."""
    mixer = MIXERS[name](8, 2.0)
    module = flatten(quantize(mixer).model if rounded else mixer, "step")
    assert module.inputs[0].example.shape == module(*module.examples)[0].shape == (2, 8)


def test_a_mixer_of_unknown_width_is_refused():
    mixer = PointwiseMixer(8)
    del mixer.dim, mixer.linear
    with pytest.raises(InputError, match=r"^the width of a PointwiseMixer is unknown: set self\.dim in its __init__"):
        flatten(mixer)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classification_steps_equal_sequences_of_every_length(pooling):
    torch.manual_seed(0)
    task = ClassificationTask(7, 5, pooling=pooling, **SMALL)
    step, whole = flatten(task, "step", reset=True), flatten(task, "sequence")
    tokens = torch.randint(0, 7, (3, 9))
    state = [each.example.new_full((3, *each.example.shape[1:]), 5) for each in step.inputs[1:-1]]
    for t, token in enumerate(tokens.T):
        logits, *state = step(token, *state, torch.full((3,), t == 0))
        (expected,) = whole(tokens, torch.full((3,), t + 1))
        torch.testing.assert_close(logits, expected)


def test_policy_steps_equal_its_sequence():
    torch.manual_seed(0)
    task = PolicyTask(5, 3, **SMALL)
    step, whole = flatten(task, "step"), flatten(task, "sequence")
    given = [torch.randn(2, 6, 5), torch.rand(2, 6, 3), torch.randn(2, 6), torch.arange(6).expand(2, 6)]
    state, found = [each.example for each in step.inputs[4:-1]], []
    for t in range(6):
        before = given[1][:, max(t - 1, 0)]
        action, *state = step(given[0][:, t], before, given[2][:, t], given[3][:, t], *state, torch.full((2,), t == 0))
        found.append(action)
    torch.testing.assert_close(torch.stack(found, 1), whole(*given)[0])


@pytest.mark.parametrize("actions", ["discrete", "continuous", [2, 1]], ids=str)
def test_steps_of_an_online_policy_equal_its_own_and_its_sequence(actions):
    torch.manual_seed(0)
    task = PPOTask(5, 3, actions=actions, previous_action=True, **SMALL)
    with torch.no_grad():
        task.observation_mean.fill_(0.5)
        task.observation_std.fill_(2)
        task.head.apply(lambda each: each.weight.mul_(100) if isinstance(each, nn.Linear) else None)
    if actions == "continuous":
        task.distribution.bounds.set([-1, -2, 0], [1, 4, 1])
    step, whole = flatten(task, "step"), flatten(task, "sequence", reset=True)
    observations, reset = torch.randn(2, 7, 5), torch.zeros(2, 7, dtype=torch.bool)
    reset[:, 0] = reset[1, 4] = True
    state, before = [each.example for each in step.inputs[2:-1]], step.inputs[1].example
    expected_state, last = task.initial_state(2), None  # as the actor of a rollout has them
    outputs, given = [], []
    for t in range(7):
        given.append(before)
        output, *state = step(observations[:, t], before, *state, reset[:, t])
        expected, _, expected_state = task.step(observations[:, t], expected_state, reset[:, t], last)
        last = task.distribution.mode(expected)
        torch.testing.assert_close(output, task.decide(expected) if actions == "continuous" else expected)
        outputs.append(output)
        before = task.decide(expected).detach()
    torch.testing.assert_close(
        torch.stack(outputs, 1), whole(observations, torch.stack(given, 1), *_start(whole), reset)[0]
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: Backbone(**options),
        lambda **options: LanguageTask(3, 3, **options),
        lambda **options: ClassificationTask(3, 3, pooling="last", **options),
        lambda **options: PolicyTask(3, 3, **options),
        lambda **options: PPOTask(3, 3, **options),
    ],
    ids=["backbone", "language", "classification", "policy", "online"],
)
def test_a_step_without_any_state_equals_a_sequence_of_one(make):
    torch.manual_seed(0)
    model = make(mixer=PointwiseMixer, kernel_size=0, **SMALL)
    step, whole = flatten(model, "step"), flatten(model, "sequence")
    (output,) = step(*step.examples)
    given = [each.example.unsqueeze(1) for each in step.inputs[: len(whole.inputs)]]
    given += [torch.ones(2, dtype=torch.long)] * (len(whole.inputs) - len(given))  # the lengths of a classification
    (expected,) = whole(*given)
    torch.testing.assert_close(output, expected.view_as(output))


def _start(module):
    return [each.example for each in module.inputs if each.name.startswith("state")]


def test_metadata_has_what_is_needed_to_use_a_model():
    tokenizer = char_tokenizer("abc")
    task = LanguageTask(3, 3, mixer_args={"mingru": {"learn_initial_state": True}}, **SMALL)
    about = metadata(task, flatten(task), "step", tokenizer)
    assert about["class"] == "LanguageTask"
    assert about["tokenizer"] == tokenizer.to_str()
    assert json.loads(about["hyper_parameters"])["dim"] == 8
    assert json.loads(about["inputs"])["input"] == {"type": "int64", "shape": ["batch"]}
    start = json.loads(about["initial_state"])
    assert start["state_0"] == 0.0
    torch.testing.assert_close(torch.tensor(start["state_1"]), task.backbone.initial_state(1)[0][1][0].detach())
    policy = PolicyTask(2, 1, **SMALL)
    policy.bound_actions([-2], [4])
    about = metadata(policy, flatten(policy), "step")
    assert (about["action_low"], about["action_high"], about["observation_std"]) == ("[-2.0]", "[4.0]", "[1.0, 1.0]")
    online = PPOTask(2, 1, actions="continuous", **SMALL)
    online.distribution.bounds.set([-2], [4])
    online.update_observations(torch.tensor([[5.0, 0.0], [5.0, 4.0]]))  # the first is constant, and not scaled
    about = metadata(online, flatten(online), "step")
    assert (about["action_low"], about["action_high"], about["observation_std"]) == ("[-2.0]", "[4.0]", "[1.0, 2.0]")
    discrete = PPOTask(2, 1, **SMALL)
    assert "action_low" not in metadata(discrete, flatten(discrete), "step")


def test_the_model_remains_as_it_is():
    backbone = Backbone(8, 1, dropout=0.5).bfloat16().train()
    module = flatten(backbone)
    assert backbone.training
    assert not module.model.training
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
