"""linear_scan and gated_scan against a float64 step loop that is written here, for every kernel."""

import itertools
import math
import threading
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import assert_close

from minrnn_lightning.ops import gated_scan, linear_scan, use_kernel
from minrnn_lightning.ops.reference import gated_scan_loop

KERNELS = ["auto", "torch", "triton"]
KINDS = ["linear", "positive", "identity"]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def run(kind, k, v, initial=None, **options):
    if kind == "linear":
        return linear_scan(k, v, initial, **options)
    return gated_scan(k, v, initial, activation=kind, **options)


def loop(kind, k, v, initial=None, reset=None, reverse=False, forget=None):
    """The recurrence in float64 NumPy, one step after the other."""
    k, v = (x.detach().double().numpy() for x in (k, v))
    if kind != "linear":
        if forget is not None:  # σ(k) : σ(f) = z : 1 − z
            k = np.logaddexp(0, -forget.detach().double().numpy()) - np.logaddexp(0, -k)
        with np.errstate(over="ignore"):
            z, k = 1 / (1 + np.exp(-k)), 1 / (1 + np.exp(k))
        v = z * (np.where(v >= 0, v + 0.5, 1 / (1 + np.exp(-v))) if kind == "positive" else v)
    h = np.zeros(k[:, 0].shape) if initial is None else initial.detach().double().numpy()
    out = np.empty(k.shape)
    for t in range(k.shape[1])[:: -1 if reverse else 1]:
        if reset is not None:
            h = np.where(reset[:, t].numpy()[:, None], 0, h)
        h = k[:, t] * h + v[:, t]
        out[:, t] = h
    return torch.from_numpy(out)


def differentiable_loop(kind, k, v, initial, reset, reverse, forget=None):
    """The same in PyTorch, whose autograd makes the gradient."""
    a, b = k, v
    if kind != "linear":
        c = torch.where(v >= 0, v + 0.5, v.sigmoid()) if kind == "positive" else v
        z = k.sigmoid() if forget is None else k.sigmoid() / (k.sigmoid() + forget.sigmoid())
        a, b = 1 - z, z * c
    h, out = initial, {}
    for t in range(k.shape[1])[:: -1 if reverse else 1]:
        h = a[:, t] * torch.where(reset[:, t, None], 0.0, h) + b[:, t]
        out[t] = h
    return torch.stack([out[t] for t in range(k.shape[1])], 1)


def sequences(kind, shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (k.sigmoid() if kind == "linear" else 2 * k).to(dtype), v.to(dtype)


@contextmanager
def threads(count):
    """Also for few elements as many threads as that, so that the length is split where the channels do not suffice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with mock.patch("minrnn_lightning.ops.cpu.launch.MIN_PARALLEL_ELEMENTS", 0):
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_equals_the_loop_forward_and_backward(kernel, kind, data):
    most = 1 if kernel == "triton" else 4  # interpreted, every row takes a program of its own: cuda/test_launch.py
    batch, length = data.draw(st.integers(1, most)), data.draw(st.integers(1, 70))
    dim = data.draw(st.sampled_from([1, 3, 16, 33, 300]))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    reverse, seed = data.draw(st.booleans()), data.draw(st.integers(0, 1000))
    k, v = (x.requires_grad_() for x in sequences(kind, (batch, length, dim), dtype, seed))
    generator = torch.Generator().manual_seed(seed)
    reset = torch.rand(batch, length, generator=generator) < data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    initial = torch.rand(batch, dim, generator=generator)
    weight = torch.randn(batch, length, dim, generator=generator).to(dtype)

    given_initial = initial.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    forget = {}
    if kind != "linear" and data.draw(st.booleans()):
        forget = {"forget": sequences(kind, k.shape, dtype, seed + 1)[0].requires_grad_()}
    given = k, v, given_initial, *forget.values()
    with use_kernel(kernel), threads(data.draw(st.sampled_from([1, 2, 7]))):
        h = run(kind, k, v, given_initial, reset=reset, reverse=reverse, **forget)
        grads = torch.autograd.grad(h, given, weight)
    assert h.dtype == dtype
    assert_close(h, loop(kind, k, v, given_initial, reset, reverse, **forget), TOLERANCE[dtype])

    given64 = [x.detach().double().requires_grad_() for x in given]
    k64, v64, initial64, *forget64 = given64
    expected = differentiable_loop(kind, k64, v64, initial64, reset, reverse, *forget64)
    expected_grads = torch.autograd.grad(expected, given64, weight.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 50), max_size=4), reverse=st.booleans())
@settings(deadline=None, max_examples=20)
def test_cut_anywhere_and_carried_equals_the_whole(kernel, kind, cuts, reverse):
    k, v = sequences(kind, (1 if kernel == "triton" else 3, 50, 20), torch.float64)
    whole = loop(kind, k, v, reverse=reverse)
    edges = [0, *sorted(cuts), 50]
    pieces, state = [], None
    with use_kernel(kernel):
        for start, stop in list(itertools.pairwise(edges))[:: -1 if reverse else 1]:
            piece = run(kind, k[:, start:stop], v[:, start:stop], state, reverse=reverse)
            pieces.append(piece)
            if stop > start:
                state = piece[:, 0 if reverse else -1]
    assert_close(torch.cat(pieces[:: -1 if reverse else 1], 1), whole, 1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_any_strides(kernel, kind, dtype):
    k, v = sequences(kind, (4, 30, 40), dtype)
    expected = loop(kind, k, v)
    views = {
        "halves of one projection": torch.cat([k, v], -1).chunk(2, -1),
        "length first": (k.transpose(0, 1).contiguous().transpose(0, 1), v),
        "channels second": (k.transpose(1, 2).contiguous().transpose(1, 2), v),
        "every second step": (k.repeat_interleave(2, 1)[:, ::2], v.repeat_interleave(2, 1)[:, 1::2]),
        "offset": (torch.cat([v[:1], k])[1:], v),
    }
    with use_kernel(kernel):
        for name, (k_view, v_view) in views.items():
            assert torch.equal(k_view, k), name
            assert_close(run(kind, k_view, v_view), expected, TOLERANCE[dtype])
        one_row = run(kind, k[:1].expand(4, -1, -1), v[:1].expand(4, -1, -1))
    assert_close(one_row[3], expected[0], TOLERANCE[dtype])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0), (1, 1, 1)])
def test_empty_and_smallest_shapes(kernel, shape):
    k, v = (torch.randn(shape, requires_grad=True) for _ in range(2))
    initial = torch.rand(shape[0], shape[2], requires_grad=True)
    with use_kernel(kernel):
        h = gated_scan(k, v, initial)
        grads = torch.autograd.grad(h.sum(), (k, v, initial))
    assert h.shape == shape
    assert [g.shape for g in grads] == [k.shape, v.shape, initial.shape]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["positive", "identity"])
def test_extreme_logits_and_nan(kernel, kind):
    k = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, float("inf"), -float("inf")]).view(1, 1, -1)
    v = torch.full_like(k, -0.3)
    initial = torch.ones(1, 9)
    with use_kernel(kernel):
        h = run(kind, k, v, initial)
        assert_close(h, loop(kind, k, v, initial), 2e-6)
        for bad_k, bad_v in ((float("nan"), 1.0), (1.0, float("nan"))):
            assert run(kind, torch.full((1, 3, 40), bad_k), torch.full((1, 3, 40), bad_v)).isnan().all()
            bf16 = torch.full((1, 3, 40), bad_k).bfloat16(), torch.full((1, 3, 40), bad_v).bfloat16()
            assert run(kind, *bf16).isnan().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_gates_of_any_size(kernel):
    """Far below zero both σ vanish and their ratio does not."""
    logits = torch.tensor([-1e4, -200.0, -100.0, -88.0, -3.0, 0.0, 2.0, 90.0, 1e4, float("inf")])
    gate, forget = (x.reshape(1, 1, -1) for x in torch.meshgrid(logits, logits, indexing="ij"))
    gate, forget = torch.cat([gate, gate + 1], 1), torch.cat([forget, forget - 0.5], 1)
    v, initial = torch.full_like(gate, -0.3), torch.full((1, gate.shape[2]), 2.0)
    with use_kernel(kernel):
        sequences = [x.clone().requires_grad_() for x in (gate, v, forget)]
        h = gated_scan(*sequences[:2], initial, forget=sequences[2])
        assert_close(h, loop("positive", gate, v, initial, forget=forget), 2e-6)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(h.sum(), sequences))
        for bad in ({"forget": torch.full_like(gate, float("nan"))}, {"forget": forget, "gate": float("nan") * gate}):
            assert gated_scan(**{"gate": gate, "candidate": v} | bad).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_does_not_depend_on_the_number_of_threads(kind, dtype):
    k, v = (x.requires_grad_() for x in sequences(kind, (3, 200, 290), dtype))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            h = run(kind, k, v)
            results.append((h, *torch.autograd.grad(h.sum(), (k, v))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_concurrent_calls():
    k, v = sequences("positive", (8, 300, 256))
    expected = gated_scan(k, v)
    results = [None] * 6

    def call(i):
        results[i] = gated_scan(k, v)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("activation", ["positive", "identity"])
def test_infinite_gates_open_and_shut(activation, kernel):
    gate = torch.tensor([0.0, math.inf, -math.inf, 0.5]).view(1, 4, 1)
    candidate = torch.tensor([1.0, 2.0, 3.0, -4.0]).view(1, 4, 1)
    exact = gated_scan_loop(gate.double(), candidate.double(), activation=activation)
    with use_kernel(kernel):
        assert torch.allclose(gated_scan(gate, candidate, activation=activation).double(), exact, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_an_infinite_candidate_spoils_its_channel_from_there_on_only(kernel):
    gate, candidate = torch.randn(2, 1, 9, 5)
    candidate[0, 4, 2] = math.inf
    with use_kernel(kernel):
        h = gated_scan(gate, candidate)
    spoilt = torch.zeros_like(h, dtype=torch.bool)
    spoilt[0, 4:, 2] = True
    assert h[~spoilt].isfinite().all()
    assert not h[spoilt].isfinite().any()
