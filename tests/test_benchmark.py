"""The benchmark: what it times computes what it says, in turns, and it writes what it measured. No time is asserted."""

import json

import torch

from minrnn_lightning.benchmark import BASE, interleaved, layers


def test_command_writes_every_layer(minrnn, tmp_path):
    sizes = ["--lengths=[5,8]", "--batch_size=2", "--dim=4", "--repeats=1"]
    code, out, errors = minrnn("benchmark", "layer", *sizes, f"--output={tmp_path}/result.json")
    assert code == 0, errors
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["milliseconds"]) == {"5", "8"}
    assert set(result["milliseconds"]["5"]) == set(layers(4))
    assert all(name.split()[0] in out for name in layers(4))


def test_bad_sizes_are_one_sentence(minrnn):
    code, _, errors = minrnn("benchmark", "layer", "--dim=0")
    assert code == 1
    assert "must be at least 1" in errors
    assert errors.count("\n") == 1


def test_the_paper_s_layer_computes_the_same_as_ours():
    named = layers(6)
    ours, paper = named["MinGRU"], named["minGRU, the paper's log-space scan"]
    with torch.no_grad():
        ours.weight_ih_l0.copy_(torch.cat([paper.gate.weight, paper.candidate.weight]))
        ours.bias_ih_l0.copy_(torch.cat([paper.gate.bias, paper.candidate.bias]))
    x = torch.randn(2, 30, 6)
    torch.testing.assert_close(paper(x), ours(x)[0], rtol=1e-4, atol=1e-5)


def test_all_map_to_the_same_shape():
    x = torch.randn(2, 7, 6)
    for name, module in layers(6).items():
        output = module(x)
        assert (output[0] if isinstance(output, tuple) else output).shape == x.shape, name


def test_steps_take_turns_after_one_untimed_round():
    calls = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert next(iter(layers(2))) == BASE
