"""Norms and MLPs of a block: equations, parameters, contract, refusals."""

import pytest
import torch

from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.mlp import make_mlp
from minrnn_lightning.testing import check_mixer


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("dim", [8, 37, 128])
@pytest.mark.parametrize("ratio", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("mlp", ["swiglu", "geglu"])
def test_gated_mlps_have_the_parameters_of_the_plain_one(mlp, ratio, dim):
    plain = count(make_mlp("gelu", dim, ratio))
    assert abs(count(make_mlp(mlp, dim, ratio)) - plain) <= (3 * dim + 2) / 2  # half a hidden unit


@pytest.mark.parametrize("kind", ["swiglu", "geglu"])
def test_gated_mlps_are_their_equations(kind):
    mlp, x = make_mlp(kind, 5, 3.0).double(), torch.randn(7, 5, dtype=torch.float64)
    w = dict(mlp.named_parameters())
    gate, value = (x @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in ("gate", "value"))
    weight = torch.sigmoid(gate) if kind == "swiglu" else (1 + torch.erf(gate / 2**0.5)) / 2
    torch.testing.assert_close(mlp(x), (weight * gate * value) @ w["out.weight"].T + w["out.bias"])


@pytest.mark.parametrize("options", [{"norm": "rms"}, {"mlp": "swiglu"}, {"mlp": "geglu"}], ids=str)
def test_a_backbone_with_another_norm_or_mlp_keeps_the_contract(options):
    check_mixer(Backbone, depth=2, mlp_ratio=2.0, **options)


def test_rms_norms_everywhere():
    backbone = Backbone(8, 2, norm="rms")
    assert not [name for name, _ in backbone.named_parameters() if name.endswith("norm.bias")]
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(backbone.norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"mlp": "relu"}, "mlp must be one of gelu, swiglu, geglu, got 'relu'"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Backbone(8, 2, **options)
