"""The fused kernels of a block compute what PyTorch's operators do, and nothing else reaches them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from minrnn_lightning.nn import fused
from minrnn_lightning.nn.backbone import Block
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.state import State

BATCH, LENGTH, DIM = 4, 130, 64  # three units of work for each row; large enough for the kernels


def make_block(kernel_size: int = 4, dropout: float = 0.0, mlp_kernel_size: int = 0) -> Block:
    torch.manual_seed(0)
    mixer = MinGRUMixer(DIM, activation="identity")  # the slope of g jumps at 0: rounding errors would be large
    sizes = {"kernel_size": kernel_size, "mlp_kernel_size": mlp_kernel_size}
    block = Block(DIM, mixer, mlp_ratio=2, dropout=dropout, **sizes)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def run(block: Block, x: Tensor, state: State = None, reset: Tensor | None = None) -> list[Tensor]:
    """Output, states and gradients of a block."""
    torch.manual_seed(1)
    inputs = [x.clone().requires_grad_(), *block.parameters()]
    if state is not None and state[0].requires_grad:
        state = tuple(each.detach().requires_grad_() for each in state)
        inputs += state
    y, after = block(inputs[0], state, reset)
    made = [y, *after]
    weights = [torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view(each.shape) for each in made]
    gradients = torch.autograd.grad(made, inputs, weights)
    return [each.detach() for each in (*made, *gradients)]


@pytest.fixture
def eagerly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """``run`` by PyTorch's operators."""

    def run_eagerly(*args: object) -> list[Tensor]:
        with monkeypatch.context() as context:
            context.setattr(fused, "MIN_ELEMENTS", 1 << 60)
            return run(*args)  # type: ignore[arg-type]

    return run_eagerly


def compare(actual: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for one, other in zip(actual, exact, strict=True):
        scale = other.double().norm() / max(other.numel(), 1) ** 0.5 + 1e-3
        assert_close(one.double() / scale, other.double() / scale, rtol=0, atol=tolerance)


def error(actual: list[Tensor], exact: list[Tensor]) -> float:
    """Sum of the relative errors."""
    return sum(float((one - other).norm() / other.norm()) for one, other in zip(actual, exact, strict=True))


@pytest.mark.parametrize("mlp_kernel_size", [0, 3])
@pytest.mark.parametrize(
    ("kernel_size", "with_state", "with_reset"),
    [(4, "", False), (4, "constant", True), (4, "gradient", False), (4, "gradient", True), (1, "", True)],
)
def test_as_exact_as_the_operators(
    eagerly: Callable[..., list[Tensor]], kernel_size: int, with_state: str, with_reset: bool, mlp_kernel_size: int
) -> None:
    block = make_block(kernel_size, mlp_kernel_size=mlp_kernel_size)
    x = torch.randn(BATCH, LENGTH, DIM)
    state = (torch.randn(BATCH, kernel_size - 1, DIM), torch.rand(BATCH, DIM)) if with_state else None
    if state and mlp_kernel_size:
        state += (torch.randn(BATCH, mlp_kernel_size - 1, DIM),)
    reset = torch.rand(BATCH, LENGTH) < 0.2 if with_reset else None
    assert fused.can_fuse(x, block.mixer_norm, block.conv)
    if with_state == "gradient":
        state = tuple(each.requires_grad_() for each in state)
    wide = None if state is None else tuple(each.double() for each in state)
    exact = run(copy.deepcopy(block).double(), x.double(), wide, reset)
    for fused_one, eager_one, right in zip(
        run(block, x, state, reset), eagerly(block, x, state, reset), exact, strict=True
    ):
        assert (fused_one - right).norm() <= 2 * (eager_one - right).norm() + 1e-7 * right.norm()


def test_dropout_takes_the_same_random_numbers(eagerly: Callable[..., list[Tensor]]) -> None:
    block, x = make_block(dropout=0.3), torch.randn(BATCH, LENGTH, DIM)
    compare(run(block, x), eagerly(block, x), 1e-4)
    assert (block.dropout.add(torch.zeros_like(x), torch.ones_like(x)) == 0).float().mean().sub(77 / 256).abs() < 0.02


@pytest.mark.parametrize("mlp_kernel_size", [0, 3])
def test_mixed_precision(eagerly: Callable[..., list[Tensor]], mlp_kernel_size: int) -> None:
    block, x = make_block(dropout=0.3, mlp_kernel_size=mlp_kernel_size), torch.randn(BATCH, LENGTH, DIM)
    exact = eagerly(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual, rounded = run(block, x), eagerly(block, x)
    assert [each.dtype for each in actual] == [each.dtype for each in rounded]
    assert error(actual, exact) < 1.1 * error(rounded, exact)  # no less exact, by fewer roundings


def test_second_derivatives(eagerly: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make_block(dropout=0.3), torch.randn(BATCH, LENGTH, DIM)

    def second() -> list[Tensor]:
        torch.manual_seed(1)
        inputs = [x.clone().requires_grad_(), *block.parameters()]
        y, _ = block(inputs[0])
        gradients = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().mean() for g in gradients), inputs))

    actual = second()
    monkeypatch.setattr(fused, "MIN_ELEMENTS", 1 << 60)
    compare(actual, second(), 1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", ["x", "mixer_norm.weight", "conv.bias", "mlp.0.weight", "mlp.2.bias"])
def test_second_derivatives_beside_what_needs_none(
    monkeypatch: pytest.MonkeyPatch, frozen: str, precision: torch.dtype
) -> None:
    block, x = make_block(), torch.randn(BATCH, LENGTH, DIM, requires_grad=frozen != "x")
    weights = dict(block.named_parameters())
    if frozen != "x":
        weights.pop(frozen).requires_grad_(False)
    inputs = list(weights.values())

    def second(precision: torch.dtype) -> list[Tensor]:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            y, _ = block(x)
        gradients = torch.autograd.grad(y.float().sin().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().mean() for g in gradients), inputs))

    actual = second(precision)
    monkeypatch.setattr(fused, "MIN_ELEMENTS", 1 << 60)
    exact = second(torch.float32)
    assert error(actual, exact) < 1.2 * error(second(precision), exact) + 1e-4  # no less exact than the operators


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_graph_of_the_gradient_does_not_change_it(precision: torch.dtype) -> None:
    """The block is applied twice, so that its second input depends on its own weights."""
    block, x = make_block(), torch.randn(BATCH, LENGTH, DIM)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        y, _ = block(block(x)[0])
    loss, weights = y.float().sin().sum(), list(block.parameters())
    plain = torch.autograd.grad(loss, weights, retain_graph=True)
    made = torch.autograd.grad(loss, weights, create_graph=True)
    assert error([each.detach() for each in made], list(plain)) < (1e-4 if precision == torch.float32 else 0.02)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    block, x, threads = make_block(), torch.randn(BATCH, LENGTH, DIM), torch.get_num_threads()
    norm, conv = block.mixer_norm, block.conv
    gradients = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            _, y = fused.norm_conv(x, norm, conv.weight, conv.bias)
            gradients.append(torch.autograd.grad(y.sin().sum(), [*norm.parameters(), *conv.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *gradients))


def test_what_takes_operators_one_by_one_gets_them() -> None:
    block, x = make_block(), torch.randn(BATCH, LENGTH, DIM)
    assert fused.can_fuse(x, block.mixer_norm)
    assert not fused.can_fuse(x.double(), block.mixer_norm)
    assert not fused.can_fuse(x[:1, :1], block.mixer_norm)
    with FlopCounterMode(display=False):
        assert not fused.can_fuse(x, block.mixer_norm)
    torch.func.vmap(lambda row: pytest.fail("fused") if fused.can_fuse(row) else row)(torch.stack([x, x]))
    with torch.autograd.forward_ad.dual_level():
        assert not fused.can_fuse(x, block.mixer_norm)
    handle, calls = block.mixer_norm.register_forward_hook(lambda *_: calls.append(1)), []
    block(x)
    handle.remove()
    assert calls


@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"])
def test_hooks_of_all_modules_are_called(kind):
    x = torch.randn(4, 128, 64)
    assert fused.can_fuse(x)
    hook = getattr(nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    try:
        assert not fused.can_fuse(x)
    finally:
        hook.remove()


class Tripled(nn.LayerNorm):
    """A norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


NORMS = {
    "without bias": lambda: nn.LayerNorm(DIM, bias=False),
    "without weights": lambda: nn.LayerNorm(DIM, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(DIM),
    "subclass": lambda: Tripled(DIM),
}


@pytest.mark.parametrize("kernel_size", [0, 4])
@pytest.mark.parametrize("name", ["mixer_norm", "mlp_norm"])
@pytest.mark.parametrize("kind", NORMS)
def test_a_replaced_norm_runs(kind: str, name: str, kernel_size: int) -> None:
    block, x = make_block(kernel_size, mlp_kernel_size=kernel_size), torch.randn(BATCH, LENGTH, DIM)
    setattr(block, name, NORMS[kind]())
    with torch.no_grad():
        exact, _ = copy.deepcopy(block).double()(x.double())
        assert_close(block(x)[0], exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(BATCH, LENGTH, DIM), (1, 5, DIM)])
@pytest.mark.parametrize("mlp_kernel_size", [0, 3])
@pytest.mark.parametrize("change", [lambda mlp: mlp.append(nn.Tanh()), lambda mlp: nn.Linear(DIM, DIM)])
def test_a_replaced_mlp_runs(
    change: Callable[[nn.Sequential], nn.Module], mlp_kernel_size: int, shape: tuple[int, ...]
) -> None:
    block, x = make_block(mlp_kernel_size=mlp_kernel_size), torch.randn(shape)
    block.mlp = change(block.mlp)
    with torch.no_grad():
        exact, _ = copy.deepcopy(block).double()(x.double())
        assert_close(block(x)[0], exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mixer_norm", "conv", "mlp_norm", "mlp_conv", "mlp", "mlp.0", "mlp.2", "mixer.out"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_attached_to_a_module_is_called(wrapped: bool, name: str, dtype: torch.dtype) -> None:
    """A hook, or a ``forward`` on the instance, as accelerate puts it there."""
    block, x, calls = make_block(mlp_kernel_size=3).to(dtype), torch.randn(BATCH, LENGTH, DIM, dtype=dtype), []
    module = block.get_submodule(name)
    original = module.forward
    if wrapped:
        module.forward = lambda *args: calls.append(1) or original(*args)  # type: ignore[method-assign]
    else:
        module.register_forward_hook(lambda *_: calls.append(1))
    block(x)
    assert calls


def test_hooks_of_all_modules_see_every_module() -> None:
    block, seen = make_block(mlp_kernel_size=3), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        block(torch.randn(1, 5, DIM))
    finally:
        handle.remove()
    layers = ("mixer_norm", "conv", "mixer.out", "mlp_norm", "mlp_conv", "mlp", "mlp.0", "mlp.2")
    assert seen.issuperset(map(block.get_submodule, layers))


def test_whatever_the_default_type_is() -> None:
    block, x = make_block(mlp_kernel_size=3, dropout=0.3), torch.randn(BATCH, LENGTH, DIM)
    expected = run(block, x)
    torch.set_default_dtype(torch.float64)
    try:
        actual = run(block, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, actual, expected))
