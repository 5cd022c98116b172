"""The Mamba mixer against the layer of transformers and a plain recurrence, its memory, its kernel, its options."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning.nn.mixers import selective_scan as scans
from minrnn_lightning.nn.mixers.mamba import MambaMixer
from minrnn_lightning.nn.mixers.selective_scan import selective_scan
from minrnn_lightning.ops import use_kernel

DIM, BATCH, LENGTH = 12, 2, 40


@pytest.fixture
def mixer():
    """One whose every parameter differs from what it would be without effect."""
    torch.manual_seed(0)
    mixer = MambaMixer(DIM, 2.0, state_size=5, dt_rank=3)
    with torch.no_grad():
        for parameter in (mixer.A_log, mixer.D, mixer.conv.bias):
            parameter += 0.3 * torch.randn_like(parameter)
        mixer.dt_proj.bias += 3  # longer steps, whose sums are larger
    return mixer


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, DIM, generator=torch.Generator().manual_seed(1))


def scan_inputs(state_size=4, inner=6, dtype=torch.float64):
    torch.manual_seed(0)
    u, dt = torch.randn(BATCH, LENGTH, inner, dtype=dtype), torch.rand(BATCH, LENGTH, inner, dtype=dtype)
    b, c = torch.randn(2, BATCH, LENGTH, state_size, dtype=dtype)
    return u, dt, -torch.rand(inner, state_size, dtype=dtype), b, c


def recurrence(u, dt, a, b, c, h):
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * a) * h + dt[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1), h


def in_transformers(mixer):
    """MambaMixer of transformers with the same weights, and for each of its parameters ours in its layout."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer as Reference

    state_size, rank, taps = mixer.A_log.shape[1], mixer.dt_proj.in_features, mixer.conv.kernel_size
    config = MambaConfig(
        hidden_size=DIM, state_size=state_size, expand=2, conv_kernel=taps, time_step_rank=rank, num_hidden_layers=1
    )

    def renamed(tensors):
        tensors = {name.replace("conv.", "conv1d."): tensor for name, tensor in tensors.items()}
        return tensors | {"conv1d.weight": tensors["conv1d.weight"].flip(0).t().unsqueeze(1)}

    reference = Reference(config, layer_idx=0).eval()
    reference.load_state_dict(renamed(mixer.state_dict()))
    return reference, renamed


def test_equals_the_layer_of_transformers(mixer, x):
    reference, renamed = in_transformers(mixer)
    weights = torch.randn(BATCH, LENGTH, DIM)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = mixer(ours)[0], reference(theirs)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    gradients = renamed({name: parameter.grad for name, parameter in mixer.named_parameters()})
    for name, parameter in reference.named_parameters():
        assert parameter.grad.abs().max() > 1e-3
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-4, atol=1e-4)
    assert not gradients


def test_scan_equals_the_recurrence():
    inputs = [tensor.requires_grad_() for tensor in scan_inputs()]
    before = torch.randn(BATCH, 6, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(BATCH, LENGTH, 6, dtype=torch.float64)
    results, gradients = [], []
    for run in (selective_scan, recurrence):
        y, after = run(*inputs, before)
        results.append((y, after))
        gradients.append(torch.autograd.grad((y * weights).sum() + after.square().sum(), [*inputs, before]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_scan_starts_anew_at_a_reset():
    u, dt, a, b, c = scan_inputs()
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[:, 9] = True
    y, after = selective_scan(u, dt, a, b, c, torch.randn(BATCH, 6, 4, dtype=torch.float64), reset)
    expected, last = selective_scan(u[:, 9:], dt[:, 9:], a, b[:, 9:], c[:, 9:])
    torch.testing.assert_close((y[:, 9:], after), (expected, last))


@pytest.mark.parametrize(("batch", "length", "inner", "size"), [(1, 1, 3, 1), (2, 40, 6, 4), (3, 33, 130, 16)])
@pytest.mark.parametrize("stateful", [False, True])
def test_compiled_scan_equals_the_recurrence_in_float64(batch, length, inner, size, stateful):
    torch.manual_seed(length)
    u, dt = torch.randn(batch, length, inner), torch.rand(batch, length, inner)
    b, c = torch.randn(2, batch, length, size)
    inputs = [u, dt, -3 * torch.rand(inner, size), b, c, *[torch.randn(batch, inner, size)] * stateful]
    reset = torch.rand(batch, length) < 0.1 if stateful else None
    weights, last_weights = torch.randn(batch, length, inner), torch.randn(batch, inner, size)

    def run(function, dtype):
        arguments = [x.to(dtype).requires_grad_() for x in inputs]
        before = arguments[5] if stateful else None
        y, after = function(*arguments[:5], before, reset)
        loss = (y * weights).sum() + (after * last_weights).sum()
        return y, after, *torch.autograd.grad(loss, arguments)

    for made, exact in zip(run(selective_scan, torch.float32), run(scans._scan_each, torch.float64), strict=True):
        assert (made - exact).abs().max() <= 1e-6 * exact.abs().max()
    with use_kernel("torch"):
        for made, exact in zip(run(selective_scan, torch.float32), run(scans._scan_each, torch.float64), strict=True):
            assert (made - exact).abs().max() <= 3e-6 * exact.abs().max()


def test_compiled_scan_is_what_runs(monkeypatch):
    monkeypatch.setattr(scans, "_scan_each", None)
    inputs = scan_inputs(dtype=torch.float32)
    y, _ = selective_scan(*(tensor.requires_grad_() for tensor in inputs))
    y.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(selective_scan(*inputs)[0], y.detach(), rtol=0, atol=0)


def test_compiled_scan_has_second_derivatives():
    def second(dtype):
        inputs = [tensor.requires_grad_() for tensor in scan_inputs(dtype=torch.float64)]
        y, after = selective_scan(*(tensor.to(dtype) for tensor in inputs))
        gradients = torch.autograd.grad(y.square().sum() + after.sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)

    for made, exact in zip(second(torch.float32), second(torch.float64), strict=True):
        assert (made - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_a_graph_of_the_gradient_does_not_change_it(mixer, x):
    """Δ, B and C depend on u, through which the gradient of the scan alone must not go."""
    inputs = [x.requires_grad_(), *mixer.parameters()]
    loss = mixer(x)[0].sin().sum()
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    for made, expected in zip(torch.autograd.grad(loss, inputs, create_graph=True), plain, strict=True):
        assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("which", range(5))
def test_second_derivatives_of_one_input(which):
    inputs = scan_inputs(dtype=torch.float32)
    y, _ = selective_scan(*(tensor.requires_grad_(n == which) for n, tensor in enumerate(inputs)))
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[which], create_graph=True)
    made = torch.autograd.grad(gradient.square().sum(), inputs[which])[0]
    wide = [tensor.detach().double().requires_grad_(n == which) for n, tensor in enumerate(inputs)]
    (gradient,) = torch.autograd.grad(selective_scan(*wide)[0].square().sum(), wide[which], create_graph=True)
    exact = torch.autograd.grad(gradient.square().sum(), wide[which])[0]
    assert (made - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_state_of_another_type_is_converted(mixer, x, dtype):
    with torch.no_grad():
        _, state = mixer(x)
        stored = [each.to(dtype) for each in state]
        made, expected = mixer(x, stored)[0], mixer(x, [each.float() for each in stored])[0]
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)


def test_wrong_arguments_are_named():
    u, dt, a, b, c = scan_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"initial must have shape \(2, 6, 4\), got \(1, 6, 4\)"):
        selective_scan(u, dt, a, b, c, torch.zeros(1, 6, 4))
    with pytest.raises(TypeError, match=r"reset must be bool, got torch.int64"):
        selective_scan(u, dt, a, b, c, reset=torch.zeros(BATCH, LENGTH, dtype=torch.int64))


@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_scan_gives_the_same_bits_with_any_number_of_threads(threads):
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(16, 200, torch.float32)]
    before = torch.get_num_threads()
    results = []
    try:
        for number in (2, threads):
            torch.set_num_threads(number)
            y, after = selective_scan(*inputs)
            results.append([y, after, *torch.autograd.grad(y.square().sum() + after.sum(), inputs)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_backward_keeps_only_the_inputs():
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(16)]
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(*inputs)
    long = {pointer for pointer, tensor in kept.items() if tensor.dim() == 3}
    assert long == {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.dim() == 3}


@pytest.fixture
def kernel_calls(monkeypatch):
    """A stand-in for ``mamba_ssm`` with the signature of its function, and tensors that claim to be on CUDA."""
    calls = []

    def selective_scan_fn(u, delta, a, b, c, *, return_last_state):  # the first five are u, delta, A, B, C there too
        calls.append((u, delta, a, b, c))
        y, h = recurrence(*(x.transpose(1, 2) for x in (u, delta)), a, *(x.transpose(1, 2) for x in (b, c)), 0)
        assert return_last_state
        return y.transpose(1, 2), h

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    scans._mamba_ssm.cache_clear()
    yield calls
    scans._mamba_ssm.cache_clear()


def test_the_kernel_of_mamba_ssm_gets_what_it_takes(mixer, x, kernel_calls):
    y, (_, h) = mixer(x)
    ((u, delta, a, b, c),) = kernel_calls
    assert u.shape == delta.shape == (BATCH, 2 * DIM, LENGTH)
    assert a.shape == (2 * DIM, 5)
    assert b.shape == c.shape == (BATCH, 5, LENGTH)
    assert {tensor.dtype for tensor in (u, delta, a, b, c)} == {torch.float32}
    assert not h.requires_grad
    state = mixer.initial_state(BATCH)
    expected, (_, last) = mixer(x, state)  # the zero state, given, takes the portable way
    assert len(kernel_calls) == 1
    torch.testing.assert_close((y, h), (expected, last))


def test_the_kernel_of_mamba_ssm_is_left_alone_where_it_does_not_fit(mixer, x, kernel_calls):
    mixer(x, mixer.initial_state(BATCH))
    mixer(x, None, torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    mixer.double()(x.double())
    assert not kernel_calls


def test_state_stays_float32_in_bfloat16(mixer, x):
    mixer.bfloat16()
    y, (_, h) = mixer(x.bfloat16())
    y_t, (_, h_t) = mixer.step(x[:, 0].bfloat16(), mixer.initial_state(BATCH))
    assert (y.dtype, y_t.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (h.dtype, h_t.dtype, mixer.initial_state(1)[1].dtype) == (torch.float32, torch.float32, torch.float32)


def test_nothing_to_mix(mixer, x):
    _, state = mixer(x)
    reset = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    y, after = mixer(x[:, :0], state, reset[:, :0])
    assert y.shape == (BATCH, 0, DIM)
    assert all(map(torch.equal, after, state))
    y, after = mixer(x[:0], None, reset[:0])
    assert y.shape == (0, LENGTH, DIM)
    assert [part.shape for part in after] == [(0, *part.shape[1:]) for part in state]


def test_initialisation():
    torch.manual_seed(0)
    mixer = MambaMixer(100, 2.0)
    assert mixer.dt_proj.in_features == 7  # 100/16, rounded up
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(200, 16))
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.00099 < dt.min() < 0.002
    assert 0.05 < dt.max() < 0.101
    window, h = mixer.initial_state(3)
    assert (window.shape, h.shape) == ((3, 3, 200), (3, 200, 16))


@pytest.mark.parametrize("name", ["state_size", "d_conv", "dt_rank"])
def test_sizes_are_above_zero(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MambaMixer(4, **{name: 0})


def test_one_tap_of_convolution_needs_no_window(x):
    mixer = MambaMixer(DIM, d_conv=1)
    y, state = mixer(x[:, :10])
    rest, _ = mixer(x[:, 10:], state)
    torch.testing.assert_close(torch.cat([y, rest], 1), mixer(x)[0])
