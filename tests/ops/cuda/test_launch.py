"""The Triton kernels, interpreted: tiles and chunks of any size against a float64 loop, alone and by autograd."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import assert_close

from minrnn_lightning.commands.benchmark.gpu_checks import LAYOUTS
from minrnn_lightning.ops import eager, gated_scan, kernel_choice
from minrnn_lightning.ops.reference import linear_scan_loop

KINDS = ["linear", "positive", "identity"]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@contextmanager
def cut(steps, tile=(16, 16)):
    """The length in chunks of so many steps, walked in tiles of (steps, channels)."""
    sizes = {"BLOCK_L": tile[0], "BLOCK_D": tile[1]}
    with (
        mock.patch("minrnn_lightning.ops.cuda.launch.chunk_length", return_value=steps),
        mock.patch("minrnn_lightning.ops.cuda.launch.TILE", sizes),
    ):
        yield


def loop(kind, k, v, f, initial, reset, reverse):
    """The definition, step by step; autograd makes the gradient."""
    a, b = k, v
    if kind != "linear":
        z = k.sigmoid() if f is None else k.sigmoid() / (k.sigmoid() + f.sigmoid())
        c = torch.where(v >= 0, v + 0.5, v.sigmoid()) if kind == "positive" else v
        a, b = 1 - z, z * c
    return linear_scan_loop(a, b, initial, reset=reset, reverse=reverse)


def relative_error(actual, expected):
    return ((actual.double() - expected).abs() / expected.abs()).max().item()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_chunks_and_tiles_equal_the_loop(cuda, kind, data):
    batch, length, dim = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 35), st.sampled_from([1, 7, 16, 19])))
    steps, tile = data.draw(st.integers(max(1, length // 5), 40)), data.draw(st.sampled_from([4, 16, 32]))
    dtype, reverse = data.draw(st.sampled_from(list(TOLERANCE))), data.draw(st.booleans())
    layout = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    k, v, f, grad = torch.randn(4, batch, length, dim, generator=generator, dtype=torch.float64).to(dtype)
    k, f = k.sigmoid() if kind == "linear" else 2 * k, None if kind == "linear" or data.draw(st.booleans()) else f
    initial = torch.rand(batch, dim, generator=generator).to(eager.state_dtype(dtype))
    reset = torch.rand(batch, length, generator=generator) < data.draw(st.sampled_from([0.0, 0.1]))
    given_initial, given_reset = (initial, reset) if data.draw(st.booleans()) else (None, None)

    k_, v_, f_, grad_ = (None if x is None else layout(x) for x in (k, v, f, grad))
    with cut(steps, (tile, 16)):
        h, final = cuda.forward(k_, v_, f_, given_initial, given_reset, kind, reverse)
        grads = cuda.backward(grad_, k_, v_, f_, h, given_initial, given_reset, kind, reverse)
    assert h.is_contiguous()
    assert [x.dtype for x in (h, *grads)] == [*[dtype] * 4, initial.dtype]

    initial = torch.zeros_like(initial) if given_initial is None else initial
    exact = [None if x is None else x.double().requires_grad_() for x in (k, v, f, initial)]
    expected = loop(kind, *exact, given_reset, reverse)
    assert_close(h, expected.detach(), TOLERANCE[dtype])
    assert final.dtype == initial.dtype
    assert_close(final, expected[:, 0 if reverse else -1].detach(), TOLERANCE[final.dtype])
    wanted = [x for x in exact if x is not None]
    for actual, exact_grad in zip(
        [x for x, source in zip(grads, exact, strict=True) if source is not None],
        torch.autograd.grad(expected, wanted, grad.double()),
        strict=True,
    ):
        assert_close(actual, exact_grad, 3 * TOLERANCE[dtype])


def test_without_a_forget_gate_its_gradient_is_empty(cuda):
    k = torch.rand(2, 5, 3)
    assert cuda.backward(k, k, k, None, k, None, None, "positive", False)[2].shape == (2, 0, 3)


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_in_chunks(forget, reverse):
    k, v, f = torch.randn(3, 1, 5, 1, dtype=torch.float64).unbind()
    initial, reset = torch.rand(1, 1, dtype=torch.float64), torch.arange(5).view(1, 5) == 3
    inputs = [x.requires_grad_() for x in (k, v, initial, *[f] * forget)]

    def run(k, v, initial, f=None):
        return gated_scan(k, v, initial, forget=f, reset=reset, reverse=reverse)

    with kernel_choice.use_kernel("triton"), cut(2, (2, 4)):  # chunks of 2, 2 and 1 steps
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)  # along one direction that is drawn: few passes


@pytest.mark.parametrize("steps", [70, 11])
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_crosses_a_reset(cuda, steps, reverse):
    """Not even what is not a number."""
    k, v = torch.zeros(1, 30, 4), torch.ones(1, 30, 4)
    before = slice(20, None) if reverse else slice(None, 10)  # in the order of the scan
    v[:, before] = float("nan")
    reset = torch.zeros(1, 30, dtype=torch.bool)
    reset[:, 19 if reverse else 10] = True
    with cut(steps):
        h, _ = cuda.forward(k, v, None, None, reset, "positive", reverse)
        assert h[:, before].isnan().any()
        assert h.isnan().sum() == h[:, before].isnan().sum()

        clean, after = torch.ones_like(v), slice(None, 20) if reverse else slice(10, None)
        grad = torch.ones_like(v)
        grad[:, after] = float("nan")
        d_k, d_v, _, d_initial = cuda.backward(grad, k, clean, None, clean, None, reset, "positive", reverse)
    for x in (d_k, d_v):
        assert x[:, before].isfinite().all()
        assert x[:, after].isnan().all()
    assert d_initial.isfinite().all()


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("steps", [8, 3])
def test_extreme_logits(cuda, forget, steps):
    values = torch.tensor([-1e4, -200.0, -88.0, 0.0, 1.0, 88.0, 1e4, float("inf")])
    k, f = (x.reshape(1, 8, 8) for x in torch.meshgrid(values, values, indexing="ij"))
    f = f if forget else None
    v, initial, grad = torch.full_like(k, -0.3), torch.full((1, 8), 2.0), torch.ones_like(k)
    logit = eager.gate_logit(k.double(), None if f is None else f.double())
    logit = torch.where((k == f) if forget else torch.zeros_like(k).bool(), 0, logit)
    expected = loop("positive", logit, v.double(), None, initial.double(), None, False)
    with cut(steps, (4, 8)):
        h, final = cuda.forward(k, v, f, initial, None, "positive", False)
        grads = cuda.backward(grad, k, v, f, h, initial, None, "positive", False)
        assert_close(h, expected, 2e-6)
        assert torch.equal(final, h[:, -1])
        assert all(x.isfinite().all() for x in grads)
        broken = [x if x is None else x * float("nan") for x in (k, v, f)]
        assert all(x.isnan().all() for x in cuda.forward(*broken, initial, None, "positive", False))


@pytest.mark.parametrize("steps", [4096, 512])
def test_long_memories_stay_exact(cuda, steps):
    """Decays near one, the same at every step: roundings would not cancel."""
    gate, candidate = torch.full((1, 4096, 8), -7.0), torch.rand(1, 4096, 8) + 0.1
    decay, exact = torch.full((1, 4096, 8), 0.9991), {}
    z = gate.double().sigmoid()
    exact["identity"] = linear_scan_loop(1 - z, z * candidate.double())
    exact["linear"] = linear_scan_loop(decay.double(), candidate.double())
    with cut(steps, (32, 8)):
        for kind, k in (("identity", gate), ("linear", decay)):
            h, _ = cuda.forward(k, candidate, None, None, None, kind, False)
            assert relative_error(h, exact[kind]) < 1e-6


def test_the_length_is_cut_only_where_the_device_is_not_full(cuda):
    device = torch.device("cuda")
    with mock.patch.object(cuda, "_multiprocessors", return_value=108):
        assert cuda.chunk_length(64, 2048, 1024, device) == 2048
        assert cuda.chunk_length(1, 500, 64, device) == 500
        steps = cuda.chunk_length(1, 1 << 20, 64, device)
        assert -(-(1 << 20) // steps) >= 16 * 108 - 1  # one program a chunk
        assert cuda.chunk_length(1, 5000, 64, device) == cuda.MIN_CHUNK_LENGTH


def test_a_fixed_tile_where_results_may_not_differ(cuda):
    kernel, tuned = mock.MagicMock(), mock.Mock()
    kernel.configs = [mock.Mock(all_kwargs=lambda: {"tile": "first"})]
    kernel.__getitem__.return_value, kernel.fn = tuned, {"grid": mock.Mock()}
    with mock.patch.object(cuda, "INTERPRETED", False):
        cuda._launch(kernel, "grid", 1, KIND="linear")
        tuned.assert_called_once_with(1, KIND="linear")
        with mock.patch("torch.are_deterministic_algorithms_enabled", return_value=True):
            cuda._launch(kernel, "grid", 1, KIND="linear")
    kernel.fn["grid"].assert_called_once_with(1, KIND="linear", tile="first")
