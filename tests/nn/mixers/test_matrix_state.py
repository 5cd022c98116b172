"""matrix_mingru and deltanet against loops over their equations in float64; gradients, resets, cost of a step."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from minrnn_lightning.nn.mixers import DeltaNetMixer, MatrixMinGRUMixer
from minrnn_lightning.nn.mixers.chunkwise import delta_rule, linear_attention

BATCH, HEADS, KEY, VALUE = 2, 3, 4, 5


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, *shape, dtype=torch.float64, generator=generator)


def attention_inputs(length):
    q, k, v = numbers(length, KEY), numbers(length, KEY, seed=1), numbers(length, VALUE, seed=2)
    return q, k, v, F.logsigmoid(3 * numbers(length, seed=3)), numbers(KEY, VALUE, seed=4)


def delta_inputs(length, updates):
    q, k = numbers(length, KEY), F.normalize(numbers(length, updates, KEY, seed=1), dim=-1)
    v, beta = numbers(length, updates, VALUE, seed=2), 2 * numbers(length, updates, seed=5).sigmoid()
    return q, k, v, beta, F.logsigmoid(3 * numbers(length, seed=3)), numbers(KEY, VALUE, seed=4)


def resets(length):
    """Several in one chunk, at the first and the last step, and none in one row."""
    reset = torch.zeros(BATCH, length, dtype=torch.bool)
    reset[0, [0, length // 3, length // 2, length - 1]] = True
    return reset


def attention_loop(q, k, v, log_decay, state, reset=None):
    outputs = []
    for t in range(q.shape[2]):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        state = log_decay[:, :, t, None, None].exp() * state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(outputs, 2), state


def delta_loop(q, k, v, beta, log_decay, state, reset=None, start=None):
    identity, outputs = torch.eye(KEY, dtype=q.dtype), []
    start = torch.zeros(HEADS, KEY, VALUE, dtype=q.dtype) if start is None else start
    for t in range(q.shape[2]):
        if reset is not None:
            state = torch.where(reset[:, t, None, None, None], start, state)
        state = log_decay[:, :, t, None, None].exp() * state
        for i in range(k.shape[3]):
            key, share = k[:, :, t, i], beta[:, :, t, i, None, None]
            transition = identity - share * torch.einsum("bhi,bhj->bhij", key, key)
            state = transition @ state + share * torch.einsum("bhk,bhv->bhkv", key, v[:, :, t, i])
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(outputs, 2), state


@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (9, 64), (64, 16), (50, 7), (33, 1)])
@pytest.mark.parametrize("with_resets", [False, True])
def test_linear_attention_equals_the_loop(length, chunk, with_resets):
    inputs, reset = attention_inputs(length), resets(length) if with_resets else None
    torch.testing.assert_close(linear_attention(*inputs, reset, chunk=chunk), attention_loop(*inputs, reset))


@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (9, 64), (64, 16), (50, 7), (33, 1)])
@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("with_resets", [False, True])
def test_delta_rule_equals_the_loop(length, chunk, updates, with_resets):
    inputs, reset = delta_inputs(length, updates), resets(length) if with_resets else None
    start = numbers(KEY, VALUE, seed=6)[0]
    for options in ({}, {"start": start}):
        result = delta_rule(*inputs, reset, chunk=chunk, **options)
        torch.testing.assert_close(result, delta_loop(*inputs, reset, **options), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_resets", [False, True])
def test_gradients(with_resets):
    """Those of finite differences, over several chunks."""
    reset = resets(5) if with_resets else None
    q, k, v, log_decay, state = (x.requires_grad_() for x in attention_inputs(5))

    def attend(*inputs):
        return linear_attention(*inputs, reset, chunk=2)

    assert torch.autograd.gradcheck(attend, (q, k, v, log_decay, state), fast_mode=True)
    inputs = [x.requires_grad_() for x in (*delta_inputs(5, 2), numbers(KEY, VALUE, seed=6)[0].clone())]

    def write(*inputs):
        return delta_rule(*inputs[:-1], reset, start=inputs[-1], chunk=4)

    assert torch.autograd.gradcheck(write, inputs, fast_mode=True)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_decays_stay_finite(logit):
    """In float32, for gates that are all but closed or open, with resets inside a chunk."""
    q, k, v, _, state = (x.float() for x in attention_inputs(100))
    gates = torch.full(q.shape[:3], logit, requires_grad=True)
    k = F.normalize(k, dim=-1)
    beta = torch.full((*k.shape[:3], 1), 2.0)
    for y, after in (
        linear_attention(q, k, v, F.logsigmoid(gates), state, resets(100)),
        delta_rule(q, k.unsqueeze(3), v.unsqueeze(3), beta, F.logsigmoid(gates), state, resets(100)),
    ):
        (gradient,) = torch.autograd.grad(y.square().sum() + after.square().sum(), gates)
        assert all(x.isfinite().all() for x in (y, after, gradient))


def test_reflections_keep_the_size_of_the_state():
    """β = 2 and no decay: after 3,000 steps in float32 no singular value has changed."""
    generator = torch.Generator().manual_seed(0)
    k = F.normalize(torch.randn(1, 1, 3000, 2, 8, generator=generator), dim=-1)
    state, zeros = torch.eye(8)[None, None], torch.zeros(1, 1, 3000)
    _, after = delta_rule(k[:, :, :, 0], k, torch.zeros_like(k), torch.full(k.shape[:4], 2.0), zeros, state)
    torch.testing.assert_close(torch.linalg.svdvals(after), torch.ones(1, 1, 8), rtol=1e-3, atol=1e-3)


@pytest.fixture(params=["matrix_mingru", "deltanet", "reflecting deltanet"])
def mixer(request):
    torch.manual_seed(0)
    if request.param == "matrix_mingru":
        return MatrixMinGRUMixer(16, heads=2, key_size=6)
    if request.param == "deltanet":
        return DeltaNetMixer(16, heads=2, key_size=6)
    options = {"gated": False, "negative": True, "householders": 3, "learn_initial_state": True}
    return DeltaNetMixer(16, heads=2, d_conv=0, **options)


def test_cost_of_a_step_and_size_of_the_state_do_not_grow(mixer):
    state, x_t, costs = mixer.initial_state(1), torch.randn(1, 16), []
    sizes = [leaf.shape for leaf in state]
    for length in (0, 1, 300):
        _, after = mixer(torch.randn(1, length, 16))
        with FlopCounterMode(display=False) as counter:
            _, after = mixer.step(x_t, after)
        costs.append(counter.get_total_flops())
        assert [leaf.shape for leaf in after] == sizes
    assert costs[0] == costs[1] == costs[2] > 0


def test_a_reset_starts_from_the_initial_state(mixer):
    x, reset = torch.randn(2, 9, 16), torch.zeros(2, 9, dtype=torch.bool)
    _, before = mixer(torch.randn(2, 4, 16))
    reset[:, [0, 5]] = True
    y, after = mixer(x, before, reset)
    pieces = [mixer(x[:, start:stop], mixer.initial_state(2)) for start, stop in itertools.pairwise([0, 5, 9])]
    torch.testing.assert_close(y, torch.cat([piece for piece, _ in pieces], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, pieces[-1][1], rtol=1e-4, atol=1e-5)


def test_states_stay_float32_in_bfloat16(mixer):
    mixer, x = mixer.bfloat16(), torch.randn(2, 9, 16).bfloat16()
    for y, state in (mixer(x), mixer.step(x[:, 0], mixer.initial_state(2))):
        assert y.dtype == torch.bfloat16
        assert {leaf.dtype for leaf in state} == {torch.float32}


@pytest.mark.parametrize("cls", [MatrixMinGRUMixer, DeltaNetMixer])
def test_sizes(cls):
    mixer = cls(96)
    assert [leaf.shape for leaf in mixer.initial_state(5)] == [(5, 3, 3 * 96), (5, 3, 32, 32)]
    assert cls(96, key_size=8).initial_state(5)[1].shape == (5, 3, 8, 32)
    assert len(cls(96, d_conv=0).initial_state(5)) == 1
    for arguments, message in (
        ({"heads": 5}, "heads must divide the width 96, got heads=5"),
        ({"key_size": 0}, "key_size must be at least 1, got 0"),
        ({"d_conv": -1}, "d_conv must be at least 0, got -1"),
        ({"timescale": 0.5}, "timescale must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cls(96, **arguments)


def test_without_values_the_state_is_a_product():
    """Of the transitions, from the learned initial state, which reflections leave as large as it was."""
    torch.manual_seed(0)
    options = {"gated": False, "negative": True, "learn_initial_state": True, "values": False}
    mixer = DeltaNetMixer(16, heads=2, key_size=6, d_conv=0, **options).double()
    torch.nn.init.constant_(mixer.beta_proj.bias, 40.0)  # β = 2
    x = torch.randn(1, 30, 16, dtype=torch.float64)
    _, (after,) = mixer(x)
    k = F.normalize(torch.unflatten(mixer.k_proj(x), -1, (2, 6)), dim=-1)
    expected = mixer.initial
    for t in range(30):
        expected = expected - 2 * torch.einsum("hi,hj,hjv->hiv", k[0, t], k[0, t], expected)
    torch.testing.assert_close(after[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.norm(), mixer.initial.norm(), rtol=1e-4, atol=0)


def test_without_values_the_initial_state_is_learned():
    with pytest.raises(ValueError, match="without values the state stays as it starts, at zero"):
        DeltaNetMixer(8, values=False)


def test_householders_are_at_least_one():
    with pytest.raises(ValueError, match="householders must be at least 1, got 0"):
        DeltaNetMixer(8, householders=0)
