import pytest
import torch

from minrnn_lightning import Backbone, LanguageTask, MinGRU, MinLSTM
from minrnn_lightning.export.quantize import Int8Embedding, Int8Linear, quantize, with_linears

LAYERS = [
    lambda: MinGRU(16, 8, num_layers=2, bidirectional=True),
    lambda: MinLSTM(16, 8, bias=False, learn_initial_state=True),
]


def size(model):
    return sum(x.numel() * x.element_size() for x in model.state_dict().values())


@pytest.mark.parametrize("make", LAYERS)
def test_linears_change_nothing(make):
    layer, x = make(), torch.randn(5, 2, 16)
    assert {name.rpartition(".")[2] for name, _ in with_linears(layer).named_parameters()} <= {
        "weight",
        "bias",
        "initial",
    }
    for got, want in zip(with_linears(layer)(x), layer(x), strict=True):
        assert torch.equal(got, want)


def test_each_row_is_rounded_to_its_own_127th():
    linear = torch.nn.Linear(50, 3)
    with torch.no_grad():
        linear.weight[1] *= 1000
        linear.weight[2] = 0
    rounded = Int8Linear(linear)
    assert rounded.rounded.dtype == torch.int8
    unit = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((rounded.weight - linear.weight).abs() <= 0.5001 * unit).all()
    x = torch.randn(4, 50)
    torch.testing.assert_close(
        rounded(x), torch.nn.functional.linear(x, rounded.weight, linear.bias), rtol=1e-4, atol=1e-3
    )


def test_embedding():
    embedding = torch.nn.Embedding(7, 50)
    rounded, tokens = Int8Embedding(embedding), torch.tensor([[0, 6, 3]])
    torch.testing.assert_close(
        rounded(tokens), embedding(tokens), rtol=0, atol=embedding.weight.abs().max().item() / 250
    )
    assert torch.equal(rounded(tokens), rounded.weight[tokens])


@pytest.mark.parametrize("make", LAYERS)
def test_layer(make):
    layer, x = make(), torch.randn(5, 2, 16)
    quantized, left = quantize(layer)
    torch.testing.assert_close(quantized(x)[0], layer(x)[0], rtol=0.05, atol=0.02)
    assert not any("weight" in name for name in left)
    assert size(quantized) < 0.5 * size(layer)


def test_what_is_left_is_named():
    model = Backbone(64, 2, mixer=["mamba", "mingru"], kernel_size=4)
    quantized, left = quantize(model)
    matrices = {name for name, p in quantized.named_parameters() if p.ndim > 1}
    assert {"blocks.0.mixer.A_log", "blocks.1.conv.weight"} <= matrices <= left.keys()
    assert left == {name: p.numel() for name, p in quantized.named_parameters()}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    x = torch.randn(2, 9, 64)
    torch.testing.assert_close(quantized(x)[0], model(x)[0], rtol=0.1, atol=0.1)


def test_task():
    task = LanguageTask(65, 65, dim=64, depth=2).eval()
    quantized, _ = quantize(task)
    assert size(quantized) < 0.3 * size(task)
    state, tokens = quantized.initial_state(2), torch.randint(0, 65, (2, 9))
    with torch.no_grad():
        logits = quantized(tokens)[0]
        for t in range(9):
            step, state = quantized.step(tokens[:, t], state)
            torch.testing.assert_close(step, logits[:, t], rtol=1e-4, atol=1e-5)


def test_torchao_reaches_the_linears_of_a_layer():
    torchao = pytest.importorskip("torchao.quantization")
    layer, x = MinGRU(64, 64), torch.randn(5, 2, 64)
    quantized = with_linears(layer)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig())
    assert all(
        "Int8" in type(module.weight).__name__ for module in quantized.modules() if isinstance(module, torch.nn.Linear)
    )
    with torch.no_grad():
        torch.testing.assert_close(quantized(x)[0], layer(x)[0], rtol=0.05, atol=0.02)
