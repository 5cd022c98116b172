"""The operators inside PyTorch: opcheck, gradcheck, compile, export, vmap, autocast, memory kept for backward."""

from unittest import mock

import pytest
import torch
from clean_process import run_code

from minrnn_lightning.ops import gated_scan, linear_scan, positive, use_kernel
from minrnn_lightning.ops.operators import scan, scan_backward

KERNELS = ["auto", "torch", "triton"]
KINDS = ["linear", "positive", "identity"]


@pytest.fixture(autouse=True)
def small_tile():
    """These sequences fill a small tile of the interpreted kernels."""
    with mock.patch("minrnn_lightning.ops.cuda.launch.TILE", {"BLOCK_L": 16, "BLOCK_D": 16}):
        yield


def inputs(kind, *shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))
    return (k.sigmoid() if kind == "linear" else k), v


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kernel, kind):
    batch = 1 if kernel == "triton" else 2  # interpreted, a scan takes 10 ms for each row
    k, v = (x.requires_grad_() for x in inputs(kind, batch, 7, 5))
    initial = torch.rand(batch, 5, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(batch, 7) < 0.3
    with use_kernel(kernel):
        for f, state, cut, reverse in (
            (None, initial, reset, False),
            (None, None, None, True),
            (k - v, None, reset, True),
        ):
            if f is not None and kind == "linear":
                continue
            f = f if f is None else f.detach().requires_grad_()
            torch.library.opcheck(scan, (k, v, f, state, cut, kind, reverse))
            h = scan(k, v, f, state, cut, kind, reverse)
            given = (torch.randn_like(h), k, v, f, h, state, cut, kind, reverse)
            torch.library.opcheck(scan_backward, [x.detach() if isinstance(x, torch.Tensor) else x for x in given])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(kernel, kind, reverse):
    # Interpreted, along one direction that is drawn: two passes in place of two for each number of the inputs.
    fast = {"fast_mode": kernel == "triton"}
    batch, length, dim = (1, 3, 2) if kernel == "triton" else (2, 9, 4)
    k, v = (x.requires_grad_() for x in inputs(kind, batch, length, dim))
    f = torch.randn(batch, length, dim, dtype=torch.float64, requires_grad=True)
    initial = torch.rand(batch, dim, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(batch, length, dtype=torch.bool)
    reset[0, 1] = True  # inside a sequence
    if batch > 1:
        reset[1, 0] = True  # at an end of one

    def run(k, v, initial, f=None):
        return scan(k, v, f, initial, reset, kind, reverse)

    with use_kernel(kernel):
        assert torch.autograd.gradcheck(run, (k, v, initial), **fast)
        if kind != "linear":
            assert torch.autograd.gradcheck(run, (k, v, initial, f), **fast)


def test_gradient_of_g_at_zero_is_the_slope_from_above():
    v = torch.zeros(1, 1, 3, requires_grad=True)
    gate = torch.full((1, 1, 3), 50.0)  # σ = 1: h is the candidate
    for kernel in KERNELS:
        with use_kernel(kernel):
            assert torch.autograd.grad(gated_scan(gate, v).sum(), v)[0].tolist() == [[[1.0] * 3]]
    assert torch.autograd.grad(positive(v).sum(), v)[0].tolist() == [[[1.0] * 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_compile_fullgraph(kind):
    k, v = (x.requires_grad_() for x in inputs(kind, 2, 12, 5, dtype=torch.float32))

    def run(k, v):
        k, v = 2 * k, v + 1
        h = linear_scan(k, v) if kind == "linear" else gated_scan(k, v, activation=kind)
        return h.square()

    expected = run(k, v)
    actual = torch.compile(run, fullgraph=True)(k, v)
    torch.testing.assert_close(actual, expected)
    for one, two in zip(*(torch.autograd.grad(h.sum(), (k, v)) for h in (actual, expected)), strict=True):
        torch.testing.assert_close(one, two)


def test_export():
    class Model(torch.nn.Module):
        def forward(self, k, v):
            return gated_scan(k, v)

    length = torch.export.Dim("length", min=2, max=100)
    example = torch.randn(2, 8, 3), torch.randn(2, 8, 3)
    program = torch.export.export(Model(), example, dynamic_shapes=({1: length}, {1: length}))
    k, v = torch.randn(2, 31, 3), torch.randn(2, 31, 3)
    torch.testing.assert_close(program.module()(k, v), gated_scan(k, v))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 2, 1), (None, 0, None)])
def test_vmap(in_dims):
    k, v = inputs("positive", 3, 4, 6, 5)
    initial = torch.rand(3, 4, 5, dtype=torch.float64)
    arguments = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((k, v, initial), in_dims, strict=True)]
    picked = [
        [x[0] if dim is None else x[i] for i in range(3)] for x, dim in zip((k, v, initial), in_dims, strict=True)
    ]
    expected = torch.stack([gated_scan(*each) for each in zip(*picked, strict=True)])
    torch.testing.assert_close(torch.vmap(gated_scan, in_dims)(*arguments), expected)


def test_vmap_of_the_gradient():
    k, v = (x.requires_grad_() for x in inputs("positive", 4, 6, 5))
    h = gated_scan(k, v)
    weights = torch.randn(3, *h.shape, dtype=h.dtype)
    batched = torch.autograd.grad(h, (k, v), weights, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad(h, (k, v), weights[i], retain_graph=True)
        torch.testing.assert_close([x[i] for x in batched], list(single))


def test_the_first_scan_imports_no_compiler():
    """Importing torch._dynamo takes longer than all the rest of a first call."""
    code = "import sys, torch; from minrnn_lightning.ops import gated_scan; k = torch.ones(2, 3, 4, requires_grad=True)"
    code += "\ngated_scan(k, k).sum().backward(); raise SystemExit('torch._dynamo' in sys.modules)"
    assert run_code(code).returncode == 0


def test_autocast_keeps_a_float32_state():
    x, weight = torch.randn(2, 4000, 8), torch.randn(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        gate, candidate = torch.nn.functional.linear(x, weight).chunk(2, -1)
        assert gate.dtype == torch.bfloat16
        h = gated_scan(gate, candidate)
        assert h.dtype == torch.bfloat16
        assert gated_scan(gate.float(), candidate).dtype == torch.float32
    exact = gated_scan(gate.double(), candidate.double())
    assert ((h.double() - exact).abs() / exact).max() < 2**-8  # one rounding, of the output


@pytest.mark.parametrize("kernel", KERNELS)
def test_keeps_inputs_and_output_only(kernel):
    k, v = (x.requires_grad_() for x in inputs("positive", 2, 300, 5))
    kept = []
    with use_kernel(kernel), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        h = gated_scan(k, v)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in (k, v, h)}
    assert h.grad_fn.next_functions[0][0].name() == "torch::autograd::AccumulateGrad"  # one node, not one a step
