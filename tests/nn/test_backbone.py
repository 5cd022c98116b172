"""Backbone: sizes, dropout, convolution and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.dropout import Dropout


def test_shakespeare_backbone_has_the_size_of_the_paper():
    backbone = Backbone(384, 3, "mingru", expansion=2, kernel_size=4, mlp_ratio=4)
    d, h = 384, 768
    mixer = d * 2 * h + 2 * h + h * d + d
    mlp = 2 * 4 * d * d + 5 * d
    assert sum(p.numel() for p in backbone.parameters()) == 3 * (4 * d + 5 * d + mixer + mlp) + 2 * d


def test_conv_and_mlp_are_optional():
    names = {
        name.split(".")[2]
        for name, _ in Backbone(8, 1, kernel_size=0, mlp_ratio=0).named_parameters()
        if "." in name[7:]
    }
    assert names == {"mixer", "mixer_norm"}
    y, state = Backbone(8, 2, kernel_size=0, mlp_ratio=0)(torch.randn(2, 5, 8))
    assert y.shape == (2, 5, 8)
    assert len(state) == 2


def test_a_pattern_repeats_to_the_depth():
    backbone = Backbone(8, 5, ["mingru", "mingru", "minlstm"])
    kinds = [type(block.mixer).__name__ for block in backbone.blocks]
    assert kinds == ["MinGRUMixer", "MinGRUMixer", "MinLSTMMixer", "MinGRUMixer", "MinGRUMixer"]


def test_mixers_get_their_own_arguments():
    args = {"attention": {"window": 3, "expansion": 1.0}, "minlstm": {"normalize": False}, "gru": {}}
    one, two, three = Backbone(8, 3, ["attention", "minlstm", "mingru"], expansion=2, mixer_args=args).blocks
    assert (one.mixer.window, one.mixer.out.in_features, two.mixer.out.in_features) == (3, 8, 16)
    assert not two.mixer.options["normalize"]
    assert three.mixer.activation == "positive"


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_conv_equals_conv1d(kernel_size):
    conv = CausalConv(6, kernel_size).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64, requires_grad=True)
    weight = conv.weight.flip(0).t().unsqueeze(1)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (kernel_size - 1, 0)), weight, conv.bias, groups=6).transpose(1, 2)
    y, sources, grad = conv(x)[0], [x, conv.weight, conv.bias], torch.randn_like(x)
    torch.testing.assert_close(y, expected)
    for actual, right in zip(*(torch.autograd.grad(out, sources, grad) for out in (y, expected)), strict=True):
        torch.testing.assert_close(actual, right)


def test_conv_in_half_precision_and_for_a_gradient_of_each_sample():
    conv, x = CausalConv(6, 4), torch.randn(3, 11, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)[0]
    assert y.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y.float().square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(conv(x)[0].square().sum(), x)[0], atol=0.05, rtol=0.05)
    per_sample = torch.func.vmap(torch.func.grad(lambda row: conv(row[None])[0].square().sum()))(x.detach())
    torch.testing.assert_close(per_sample, torch.autograd.grad(conv(x)[0].square().sum(), x)[0])


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("shape", [(7,), (64, 33, 5)])
def test_dropout(p, shape):
    torch.manual_seed(0)  # otherwise the share of zeros is too far off once in a thousand times
    dropout = Dropout(p)
    x = torch.ones(1000, *shape, requires_grad=True)
    y = dropout(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, y)
    assert abs((y == 0).float().mean() - p) < 0.02
    assert abs(y.mean() - 1) < 0.05
    assert len(y.unique()) == (1 if p == 0 else 2)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_follows_the_seed():
    x = torch.ones(100)
    dropout = Dropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    assert not torch.equal(dropout(x), first)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)


def test_convolution_before_the_mlp():
    torch.manual_seed(0)
    model, x = Backbone(8, 2, mlp_kernel_size=3).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    block = model.blocks[0]
    assert block.mlp_conv is not None
    assert block.mlp is not None
    mixed = x + block.mixer(block.conv(block.mixer_norm(x))[0])[0]
    normed = F.pad(block.mlp_norm(mixed), (0, 0, 2, 0))
    lags = [normed[:, 2 - lag : 11 - lag] * weight for lag, weight in enumerate(block.mlp_conv.weight)]
    torch.testing.assert_close(block(x)[0], mixed + block.mlp(sum(lags) + block.mlp_conv.bias))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim must be above 0, got 0"),
        ({"depth": -1}, "depth must be above 0, got -1"),
        ({"expansion": 0}, "expansion must be above 0, got 0"),
        ({"expansion": 0.01}, "leaves no hidden unit"),
        ({"kernel_size": -1}, "must be at least 0, got -1"),
        ({"mlp_ratio": -1.0}, "must be at least 0"),
        ({"mlp_kernel_size": -1}, "mlp_kernel_size must be at least 0, .* got -1 and mlp_ratio 4.0"),
        ({"mlp_kernel_size": 4, "mlp_ratio": 0}, "and 0 where mlp_ratio 0 leaves out the MLPs, got 4 and mlp_ratio 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"mixer": "mamba9"}, "mixer 'mamba9' is unknown; it can be .*mingru, minlstm"),
        ({"mixer_args": {"mamba9": {}}}, "mixer 'mamba9' is unknown"),
        (
            {"mixer_args": {"attention": {"windw": 3}}},
            "mixer_args: attention has no windw; it has expansion, heads, kv_heads",
        ),
        ({"mixer_args": {"attention": {"window": 0}}, "mixer": "attention"}, "window must be at least 1"),
        ({"mixer_args": {"attention": {"window": 2.5}}}, r"window of attention must be int \| null, got 2.5"),
        ({"mixer_args": {"mingru": {"timescale": "long"}}}, "timescale of mingru must be float, got 'long'"),
        ({"mixer_args": {"mingru": {"timescale": -1}}}, "timescale must be at least 1 step and finite, got -1"),
        (
            {"mixer_args": {"mingru": {"counters": 1.5}}},
            "counters must be a fraction of the units from 0 to 1, got 1.5",
        ),
        (
            {"mixer_args": {"mingru": {"counters": float("nan")}}},
            "counters must be a fraction .*, got nan",
        ),
        ({"mixer_args": {"attention": {"base": 0.0}}, "mixer": "attention"}, "base must be above 0, got 0.0"),
        ({"mixer": None}, "mixer must name 1 to 2 mixers for depth 2, got 0"),
        ({"mixer": []}, "mixer must name 1 to 2 mixers for depth 2, got 0"),
        ({"mixer": ["mingru"] * 3}, "mixer must name 1 to 2 mixers for depth 2, got 3"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Backbone(**{"dim": 8, "depth": 2, **options})


def test_dropout_for_a_gradient_of_each_sample():
    """Each sample draws numbers of its own, as with PyTorch's dropout."""
    dropout, x = Dropout(0.5), torch.ones(64, 100)
    rows = torch.vmap(dropout, randomness="different")(x)
    assert ((rows == 0) | (rows == 2)).all()
    assert 0.4 < (rows == 0).float().mean() < 0.6
    assert len(rows.unique(dim=0)) == 64


def test_float64_stays_under_autocast():
    backbone, x = Backbone(8, 1).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    expected = backbone(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(x)[0], expected, rtol=0, atol=0)
