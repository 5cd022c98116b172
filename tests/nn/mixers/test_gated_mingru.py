"""The gated minGRU mixer against its equations, step by step in float64; its initialisation, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning import LanguageTask
from minrnn_lightning.nn.mixers import GatedMinGRUMixer

DIM, BATCH, LENGTH, TAPS = 6, 2, 17, 3


@pytest.fixture
def mixer():
    """One whose every parameter differs from what it would be without effect."""
    torch.manual_seed(0)
    mixer = GatedMinGRUMixer(DIM, 1.5, rank=2, d_conv=TAPS).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return mixer


def equations(mixer, x, reset, delta_t):
    """The outputs one step after the other, from the equations alone."""
    w, inner = dict(mixer.named_parameters()), mixer.D.numel()
    outputs = torch.empty_like(x)
    for row in range(len(x)):
        h, past = torch.zeros(inner, dtype=x.dtype), []
        for t in range(x.shape[1]):
            if reset[row, t]:
                h, past = torch.zeros_like(h), []
            past = [w["u_proj.weight"] @ x[row, t], *past][:TAPS]
            conv = w["conv.bias"] + sum(w["conv.weight"][ago] * value for ago, value in enumerate(past))
            u = conv * torch.sigmoid(conv)
            z = torch.sigmoid(w["gate_proj.weight"] @ w["low_proj.weight"] @ u + w["gate_proj.bias"])
            decay = (1 - z) ** delta_t[row, t]
            h = decay * h + (1 - decay) * u
            skipped = h + w["D"] * u
            normed = skipped / (skipped.pow(2).mean() + 1e-5).sqrt()
            gate = w["output_gate.weight"] @ x[row, t]
            outputs[row, t] = w["out_proj.weight"] @ (normed * gate * torch.sigmoid(gate))
    return outputs


def test_is_its_equations(mixer):
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[0, 5], reset[1, 0], reset[1, 12] = True, True, True
    delta_t = 2 * torch.rand(BATCH, LENGTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x, None, reset, delta_t=delta_t)[0], equations(mixer, x, reset, delta_t))
    one, none = torch.ones_like(delta_t), torch.zeros_like(reset)
    torch.testing.assert_close(mixer(x)[0], equations(mixer, x, none, one))
    state, outputs = mixer.initial_state(BATCH), []
    for t in range(LENGTH):
        y, state = mixer.step(x[:, t], state, delta_t=delta_t[:, t])
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), equations(mixer, x, none, delta_t))


def test_starts_with_time_constants_over_the_octaves():
    mixer = GatedMinGRUMixer(16, 4.0, timescale=64.0)
    torch.nn.init.zeros_(mixer.gate_proj.weight)
    window, h = mixer.initial_state(1)
    _, (_, after) = mixer.step(torch.zeros(1, 16), (window, h + 1))
    forgotten = F.softplus(torch.linspace(0, torch.log(torch.tensor(64.0)), 64)).neg().exp()  # 1 / (1 + τ)
    torch.testing.assert_close(1 - after.squeeze(0), forgotten)


def test_states_stay_exact_in_bfloat16():
    mixer = GatedMinGRUMixer(DIM, 2.0).bfloat16()
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.bfloat16)
    for _, h in (mixer(x)[1], mixer.step(x[:, 0], mixer.initial_state(BATCH))[1]):
        assert h.dtype == torch.float32


def test_skip_and_gate_bias_do_not_decay():
    task = LanguageTask(5, 5, "gated_mingru", dim=8, depth=1, mlp_ratio=0)
    marked = {name for name, p in task.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {f"backbone.blocks.0.mixer.{name}" for name in ("D", "gate_proj.bias")}


def test_brings_its_own_convolution():
    task = LanguageTask(5, 5, "gated_mingru", dim=8, depth=1, kernel_size=4)
    assert task.backbone.blocks[0].conv is None
    assert task.backbone.blocks[0].mixer.conv.kernel_size == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"d_conv": 0}, "d_conv must be at least 1, got 0"),
        ({"timescale": 0.5}, "timescale must be at least 1 step and finite, got 0.5"),
        ({"expansion": 0.01}, "leaves no hidden unit"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        GatedMinGRUMixer(DIM, **options)
