"""The S4D mixer against the state-space model it samples, beyond one block of the convolution, and its options."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning.nn.mixers.s4d import S4DMixer
from minrnn_lightning.nn.mixers.segments import split_at_resets

DIM, BATCH, LENGTH = 3, 2, 150  # more than two blocks


@pytest.fixture(params=["lin", "inv"])
def mixer(request):
    torch.manual_seed(0)
    return S4DMixer(DIM, 2.0, state_size=8, init=request.param).double()


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step_by_step(mixer, x, state):
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def by_the_matrix_exponential(mixer, x):
    """The sampled model with all N states, conjugates written out: exp(Δ [[A, B], [0, 0]]) = [[Ā, B̄], [0, 1]]."""
    half = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    a = torch.cat([half, half.conj()], 1)
    inner, states = a.shape
    system = torch.zeros(inner, states + 1, states + 1, dtype=a.dtype)
    system[:, :states, :states] = torch.diag_embed(a)
    system[:, :states, states] = 1
    sampled = torch.linalg.matrix_exp(mixer.log_dt.exp()[:, None, None] * system)
    c = torch.view_as_complex(mixer.C)
    c = torch.cat([c, c.conj()], 1)
    u = F.linear(x, mixer.in_proj.weight, mixer.in_proj.bias)
    h, outputs = torch.zeros(len(x), inner, states, dtype=a.dtype), []
    for t in range(x.shape[1]):
        inputs = u[:, t, :, None].to(a.dtype)
        h = torch.einsum("dij,bdj->bdi", sampled[:, :states], torch.cat([h, inputs], 2))
        y = (c * h).sum(-1)
        assert y.imag.abs().max() < 1e-12
        outputs.append(F.gelu(y.real + mixer.D * u[:, t]))
    return F.linear(torch.stack(outputs, 1), mixer.out_proj.weight, mixer.out_proj.bias), h[..., : states // 2]


def test_equals_the_sampled_model(mixer, x):
    y, state = mixer(x)
    expected, h = by_the_matrix_exponential(mixer, x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.view_as_complex(state), h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 150])
def test_blocks_do_not_show(mixer, x, length):
    before = mixer(x.flip(1))[1]
    torch.testing.assert_close(mixer(x[:, :length], before), step_by_step(mixer, x[:, :length], before))


def test_long_segments_equal_separate_sequences(mixer, x):
    before = mixer(x.flip(1))[1]
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[0, [0, 70, 71, LENGTH - 1]] = True  # row 1 goes on from the state
    y, after = mixer(x, before, reset)
    pieces = [mixer(x[:1, start:stop]) for start, stop in itertools.pairwise([0, 70, 71, LENGTH - 1, LENGTH])]
    torch.testing.assert_close(y[:1], torch.cat([piece for piece, _ in pieces], 1))
    torch.testing.assert_close(after[:1], pieces[-1][1])
    torch.testing.assert_close((y[1:], after[1:]), mixer(x[1:], before[1:]))


def test_gradients_equal_those_of_the_recurrence(mixer, x):
    """Of the parameters, the inputs and the state, through outputs and final state."""
    before = mixer(x.flip(1))[1].detach().requires_grad_()
    x.requires_grad_()
    weights = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    gradients = []
    for run in (mixer, lambda x, state: step_by_step(mixer, x, state)):
        y, after = run(x, before)
        loss = (y * weights).sum() + after.square().sum()
        gradients.append(torch.autograd.grad(loss, [x, before, *mixer.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("init", ["lin", "inv"])
def test_single_precision_holds_over_thousands_of_steps(init):
    torch.manual_seed(0)
    mixer = S4DMixer(2, 4.0, init=init)
    x = torch.randn(1, 3000, 2)
    y, state = mixer(x)
    assert state.dtype == torch.float32
    mixer.double()
    exact, exact_state = mixer(x.double())
    assert (y - exact).abs().max() < 1e-4 * exact.abs().max()
    assert (state - exact_state).abs().max() < 1e-3 * exact_state.abs().max()


def test_the_ssm_runs_in_float32_under_autocast(x, monkeypatch):
    types = []
    transform = torch.fft.rfft
    monkeypatch.setattr(
        torch.fft, "rfft", lambda u, *size, **options: types.append(u.dtype) or transform(u, *size, **options)
    )
    mixer, x = S4DMixer(DIM, 2.0), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        before = mixer(x.flip(1))[1]
        y, state = mixer(x, before)
        stepwise, last = step_by_step(mixer, x, before)
    assert set(types) == {torch.float32}
    assert y.dtype == stepwise.dtype == torch.bfloat16
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)  # bfloat16 would be off by 1e-2


def test_state_stays_float32_in_bfloat16(x):
    mixer = S4DMixer(DIM, 2.0).bfloat16()
    y, state = mixer(x.bfloat16())
    y_t, state_t = mixer.step(x[:, 0].bfloat16(), mixer.initial_state(BATCH))
    assert (y.dtype, y_t.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (state.dtype, state_t.dtype, mixer.initial_state(1).dtype) == (torch.float32, torch.float32, torch.float32)


def test_exports_for_more_blocks_than_it_saw(mixer, x):
    program = torch.export.export(mixer, (x[:, :9].clone(),), dynamic_shapes=({1: torch.export.Dim("length", min=2)},))
    torch.testing.assert_close(program.module()(x), mixer(x))


def test_nothing_to_mix(mixer, x):
    state = mixer(x)[1]
    reset = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    y, after = mixer(x[:, :0], state, reset[:, :0])
    assert y.shape == (BATCH, 0, DIM)
    assert torch.equal(after, state)
    y, after = mixer(x[:0], None, reset[:0])
    assert y.shape == (0, LENGTH, DIM)
    assert after.shape == (0, *state.shape[1:])


def test_initialisation():
    """The formulas of section 4 of the paper, for N = 4; Δ within its range."""
    torch.manual_seed(0)
    lin, inv = (S4DMixer(100, 1.0, state_size=4, init=init) for init in ("lin", "inv"))
    torch.testing.assert_close(lin.A_imag, torch.tensor([0, math.pi]).expand(100, 2))
    torch.testing.assert_close(inv.A_imag, torch.tensor([12 / math.pi, 4 / math.pi * (4 / 3 - 1)]).expand(100, 2))
    torch.testing.assert_close(lin.log_A_real.exp(), torch.full((100, 2), 0.5))
    dt = lin.log_dt.exp()
    assert 0.001 <= dt.min() < 0.002
    assert 0.05 < dt.max() <= 0.1
    assert S4DMixer(4).initial_state(3).shape == (3, 4, 32, 2)


@pytest.mark.parametrize("size", [0, 1, 7, -2])
def test_state_size_is_even(size):
    with pytest.raises(ValueError, match=f"state_size must be even and at least 2, got {size}"):
        S4DMixer(4, state_size=size)


def test_unknown_initialisation():
    with pytest.raises(ValueError, match="init is 'legs'; it can be 'lin' or 'inv'"):
        S4DMixer(4, init="legs")


def test_pieces_go_back_to_their_places():
    x = torch.arange(1.0, 11).view(2, 5, 1)
    reset = torch.tensor([[False, False, True, False, False], [True, True, False, False, False]])
    rows, places = split_at_resets(x, reset)
    assert rows.squeeze(2).tolist() == [[1, 2, 0, 0], [3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10]]
    assert torch.equal(rows[places], x)


def test_resets_at_short_distances_equal_steps(mixer, x):
    """Every sequence is then shorter than half of the convolution's kernel."""
    reset = torch.arange(LENGTH).expand(BATCH, -1) % 7 == 3
    outputs, state = [], mixer.initial_state(BATCH)
    for t in range(LENGTH):
        y, state = mixer.step(x[:, t], state, reset[:, t])
        outputs.append(y)
    torch.testing.assert_close(mixer(x, None, reset), (torch.stack(outputs, 1), state))
