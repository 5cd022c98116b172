"""The benchmark: what it times computes what it says, in turns, and it writes what it measured. No time is asserted."""

import json

import torch

from minrnn_lightning.benchmark import BASE, LOG_SPACE, PRODUCTS, WHOLE, _Linears, _paper_scan, interleaved, layers
from minrnn_lightning.ops import gated_scan


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


def test_a_recipe_s_training_step(minrnn, monkeypatch):
    """All three kinds are timed, on a small model of the real recipe."""
    monkeypatch.setattr("minrnn_lightning.benchmark.STEPS", 1)
    sizes = ["--model.dim=8", "--model.depth=1", "--data.batch_size=2", "--data.length=16"]
    code, out, errors = minrnn("benchmark", "train", "--config", "shakespeare", *sizes)
    assert code == 0, errors
    assert all(name in out for name in (PRODUCTS, WHOLE, LOG_SPACE))
    assert "1.00" in out


def test_missing_recipe_is_one_sentence(minrnn):
    code, _, errors = minrnn("benchmark", "train", "--config", "nowhere")
    assert code == 1
    assert "nowhere is neither a file nor a packaged recipe" in errors


def test_products_are_those_of_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 2))
    with _Linears() as linears:
        model(torch.randn(4, 7, 3))
    assert [tuple(weight.shape) for _, weight in linears.operands] == [(5, 3), (2, 5)]
    assert [tuple(x.shape) for x, _ in linears.operands] == [(4, 7, 3), (4, 7, 5)]
    linears.products()()


def test_the_paper_s_scan_stands_in_for_ours():
    gate, candidate = torch.randn(2, 2, 20, 3)
    torch.testing.assert_close(
        _paper_scan(gate, candidate, None, reset=None), gated_scan(gate, candidate), rtol=1e-4, atol=1e-5
    )
