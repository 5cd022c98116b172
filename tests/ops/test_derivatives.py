"""Forward mode and second derivatives of the scan, for every kernel, against autograd through the float64 loop."""

import itertools
from unittest import mock

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradgradcheck

from minrnn_lightning.ops import gated_scan, linear_scan, use_kernel
from minrnn_lightning.ops.reference import gated_scan_loop, linear_scan_loop
from minrnn_lightning.ops.scan import gated_scan_and_state

KERNELS = ["auto", "torch", "triton"]
CASES = [  # kind, whether there is a forget gate, whether reversed
    ("linear", False, False),
    ("linear", False, True),
    ("positive", False, True),
    ("positive", True, False),
    ("identity", False, False),
    ("identity", True, True),
]
RESET = torch.tensor([[False, False, True, False], [True, False, False, False]])


@pytest.fixture(autouse=True)
def small_tile():
    """These sequences fill a small tile of the interpreted kernels."""
    with mock.patch("minrnn_lightning.ops.cuda.launch.TILE", {"BLOCK_L": 16, "BLOCK_D": 16}):
        yield


def scans(kind, forget, reverse, reset=RESET):
    """The scan and the loop as functions of the same sequences, and these."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 3), (2, 4, 3), (2, 3), *([(2, 4, 3)] if forget else [])]
    given = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    def ours(k, v, initial, f=None):
        if kind == "linear":
            return linear_scan(k, v, initial, reset=reset, reverse=reverse)
        return gated_scan(k, v, initial, forget=f, activation=kind, reset=reset, reverse=reverse)

    def loop(k, v, initial, f=None):
        if kind == "linear":
            return linear_scan_loop(k, v, initial, reset=reset, reverse=reverse)
        logit = k if f is None else torch.log(k.sigmoid() / f.sigmoid())
        return gated_scan_loop(logit, v, initial, activation=kind, reset=reset, reverse=reverse)

    return ours, loop, given


def directions(given, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in given)


def dot(xs, ys):
    return sum((x * y).sum() for x, y in zip(xs, ys, strict=True))


def all_arguments(given):
    return tuple(range(len(given)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_forward_mode(kernel, case):
    ours, loop, given = scans(*case)
    tangents = directions(given)
    expected = func.jvp(loop, given, tangents)
    with use_kernel(kernel):
        torch.testing.assert_close(func.jvp(ours, given, tangents), expected)
        states, push = func.linearize(ours, *given)
        torch.testing.assert_close((states, push(*tangents)), expected)
        with forward_ad.dual_level():
            states = ours(*map(forward_ad.make_dual, given, tangents))
            torch.testing.assert_close(tuple(forward_ad.unpack_dual(states)), expected)


@pytest.mark.parametrize(
    ("kernel", "case"), [*itertools.product(["auto", "torch"], CASES), ("triton", CASES[1]), ("triton", CASES[3])]
)
def test_second_derivatives(kernel, case):
    """H·d, and d·H·d, by reverse and forward mode over each other."""
    ours, loop, given = scans(*case)
    d, weight = directions(given), torch.arange(24, dtype=torch.float64).view(2, 4, 3)
    every = all_arguments(given)

    def loss(scan):
        return lambda *xs: (scan(*xs).pow(3) * weight).sum()

    def reverse_over_reverse(f):
        return func.grad(lambda *xs: dot(func.grad(f, every)(*xs), d), every)(*given)

    def slope(f):
        return lambda *xs: func.jvp(f, xs, d)[1]

    expected = reverse_over_reverse(loss(loop))
    with use_kernel(kernel):
        f = loss(ours)
        torch.testing.assert_close(reverse_over_reverse(f), expected)
        torch.testing.assert_close(func.jvp(func.grad(f, every), given, d)[1], expected)
        torch.testing.assert_close(func.grad(slope(f), every)(*given), expected)
        torch.testing.assert_close(slope(slope(f))(*given), dot(expected, d))
        leaves = [x.clone().requires_grad_() for x in given]
        gradients = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
        torch.testing.assert_close(torch.autograd.grad(dot(gradients, d), leaves), expected)


@pytest.mark.parametrize("case", CASES)
def test_numerical_second_derivatives(case):
    ours, _, given = scans(*case)
    assert gradgradcheck(ours, [x[..., :1].clone().requires_grad_() for x in given], check_fwd_over_rev=True)


@pytest.mark.parametrize("case", CASES)
def test_hessian_and_jacobians(case):
    """Under vmap, as ``torch.func`` and ``torch.autograd.functional`` make them."""
    ours, loop, given = scans(*case)
    every = all_arguments(given)
    expected = func.jacrev(loop, every)(*given)
    torch.testing.assert_close(func.jacrev(ours, every)(*given), expected)
    torch.testing.assert_close(func.jacfwd(ours, every)(*given), expected)

    def loss(scan):
        return lambda *xs: scan(*xs).pow(3).sum()

    hessian = func.jacrev(func.jacrev(loss(loop), every), every)(*given)
    torch.testing.assert_close(func.hessian(loss(ours), every)(*given), hessian)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss(ours), given), hessian)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_each_sample(case):
    ours, loop, given = scans(*case, reset=None)
    every = all_arguments(given)

    def of_each(scan):
        def loss(*xs):
            return scan(*(x.unsqueeze(0) for x in xs)).pow(2).sum()

        return loss

    torch.testing.assert_close(
        torch.vmap(func.grad(of_each(ours), every))(*given), torch.vmap(func.grad(of_each(loop), every))(*given)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gradient_has_a_tangent_where_the_graph_is_not_kept(kernel):
    """Forward over reverse without ``create_graph``: the fused gradient has no forward mode."""
    ours, loop, given = scans("positive", True, False)
    d = directions(given)

    def gradients_and_tangents(scan):
        leaves = [x.clone().requires_grad_() for x in given]
        with forward_ad.dual_level():
            gradients = torch.autograd.grad(scan(*map(forward_ad.make_dual, leaves, d)).pow(2).sum(), leaves)
            return [tuple(forward_ad.unpack_dual(gradient)) for gradient in gradients]

    with use_kernel(kernel):
        torch.testing.assert_close(gradients_and_tangents(ours), gradients_and_tangents(loop))


def test_third_derivatives():
    ours, loop, given = scans("positive", False, False)

    def third(scan):
        def along(f):
            return lambda x: func.grad(f)(x).sum()

        return func.grad(along(along(lambda k: scan(k, *given[1:]).pow(2).sum())))(given[0])

    torch.testing.assert_close(third(ours), third(loop))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_types(dtype):
    ours, loop, given = scans("identity", True, True)
    d = directions(given)
    given, d = ([x.to(dtype) for x in xs] for xs in (given, d))
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype != torch.float32 else {}

    def tangent_and_hessian_product(scan, xs, ds):
        def loss(*xs):
            return scan(*xs).pow(2).sum()

        xs, ds = tuple(xs), tuple(ds)
        return func.jvp(scan, xs, ds)[1], func.jvp(func.grad(loss, all_arguments(xs)), xs, ds)[1]

    tangent, product = tangent_and_hessian_product(ours, given, d)
    assert {x.dtype for x in (tangent, *product)} == {dtype}
    expected = tangent_and_hessian_product(loop, [x.double() for x in given], [x.double() for x in d])
    torch.testing.assert_close((tangent, product), expected, check_dtype=False, **tolerance)


def test_no_grad_inside_a_transform_is_respected():
    ours, _, given = scans("positive", False, False)

    def loss(k):
        with torch.no_grad():
            h = ours(k, *given[1:])
        return (h * k).sum()

    torch.testing.assert_close(func.grad(loss)(given[0]), ours(*given))
    ones = torch.ones_like(given[0])
    tangent = func.jvp(lambda k: ours(k, *given[1:]), (given[0],), (ones,))[1]  # forward mode is no business of no_grad
    torch.testing.assert_close(func.grad(lambda k: func.jvp(loss, (k,), (ones,))[1])(given[0]), tangent)


def test_compiled_transforms():
    ours, _, given = scans("positive", True, False)

    def gradient_and_tangent(k):
        def f(k):
            return ours(k, *given[1:]).pow(2).sum()

        return func.grad(f)(k), func.jvp(f, (k,), (k,))[1]

    compiled = torch.compile(gradient_and_tangent, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given[0]), gradient_and_tangent(given[0]))


def test_training_keeps_the_fused_gradient():
    """Only a gradient that is differentiated in turn is made of many operators."""
    ours, _, given = scans("positive", True, False)
    leaves = [x.clone().requires_grad_() for x in given]
    with torch.profiler.profile() as profile:
        ours(*leaves).sum().backward()
    names = [event.name for event in profile.events() if event.name.startswith("minrnn::")]
    assert names.count("minrnn::scan_backward") == 1
    assert set(names) <= {"minrnn::scan", "minrnn::scan_backward"}
    assert names.count("minrnn::scan") == 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES[2:])
def test_the_final_state_of_16_bits_is_exact_and_has_the_derivatives_of_the_last_one(kernel, case):
    kind, _, reverse = case
    _, loop, given = scans(*case)
    given, d = (tuple(x.bfloat16() for x in xs) for xs in (given, directions(given)))
    every, last = all_arguments(given), (slice(None), 0 if reverse else -1)

    def both(k, v, initial, f=None):
        options = {"forget": f, "activation": kind, "reset": RESET, "reverse": reverse}
        return gated_scan_and_state(k, v, initial, **options)

    def state(*xs):
        return both(*xs)[1]

    def last_one(*xs):
        return both(*xs)[0][last].float()

    def derivatives(f):
        def loss(*xs):
            return f(*xs).pow(2).sum()

        gradient = func.grad(loss, every)
        leaves = [x.clone().requires_grad_() for x in given]
        return (
            func.jvp(f, given, d)[1],
            func.jvp(gradient, given, d)[1],
            func.grad(lambda *xs: dot(gradient(*xs), d), every)(*given),
            torch.autograd.grad(f(*leaves).sum(), leaves),
            torch.vmap(gradient)(*(torch.stack([x, x + 1]) for x in given)),
        )

    with use_kernel(kernel):
        exact = loop(*(x.double() for x in given))[last]
        torch.testing.assert_close(state(*given), exact.float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(derivatives(state), derivatives(last_one), rtol=0.02, atol=0.02)
