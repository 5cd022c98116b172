"""``check_mixer``: the contract that every sequence mixer satisfies, clause by clause."""

import copy
import inspect
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from minrnn_lightning.nn.mixers.base import Mixer
from minrnn_lightning.nn.state import State, select_state, where
from minrnn_lightning.ops import state_dtype

DIM, BATCH, LENGTH = 8, 3, 21
TOLERANCE = 1e-9  # absolute and relative, of float64

Clause = Callable[[Callable[[], Any]], None]


def check_mixer(mixer: type[Mixer] | Callable[..., nn.Module], **arguments: Any) -> None:
    """Check that a mixer satisfies the contract of ``Mixer``.

    Args:
        mixer: The class, or a function that makes a model with the same interface, such as a ``Backbone``; called with
            the width 8 and the ``arguments``.
        **arguments: Arguments of its constructor, other than the width.

    Raises:
        AssertionError: The mixer violates a clause; the message begins with the name of the first one.
    """

    def build() -> Any:
        return mixer(DIM, **arguments)

    with torch.random.fork_rng(devices=[]):
        build()  # for wrong arguments, the error is that of the constructor
        for name, clause in CLAUSES.items():
            torch.manual_seed(0)
            try:
                clause(build)
            except Exception as error:
                raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def parallel_equals_steps(build: Callable[[], Any]) -> None:
    """A parallel pass equals a loop of steps, with no state and with the initial one."""
    model, x = build().double(), _input()
    result = model(x)
    _same(model, _steps(model, x, model.initial_state(BATCH)), result)
    _same(model, model(x, model.initial_state(BATCH)), result)


def any_chunking(build: Callable[[], Any]) -> None:
    """A sequence in chunks, with the state passed on, equals the sequence in one pass; steps may follow a chunk."""
    model, x = build().double(), _input()
    result = model(x)
    for cuts in ([1], [9], [LENGTH - 1], [2, 3, 5, 16]):
        outputs, state = [], None
        for start, stop in itertools.pairwise([0, *cuts, LENGTH]):
            y, state = model(x[:, start:stop], state)
            outputs.append(y)
        _same(model, (torch.cat(outputs, 1), state), result)
    y, state = model(x[:, :9])
    rest, state = _steps(model, x[:, 9:], state)
    _same(model, (torch.cat([y, rest], 1), state), result)


def causal(build: Callable[[], Any]) -> None:
    """An output depends on the input of its step, and on none after it."""
    model, x = build().double(), _input()
    y, _ = model(x)
    for t in (1, 5, LENGTH - 1):
        changed = x.clone()
        changed[:, t:] = changed[:, t:].flip(-1)  # a norm would remove a constant
        y_changed, _ = model(changed)
        torch.testing.assert_close(y_changed[:, :t], y[:, :t], rtol=0, atol=1e-12)
        assert (y_changed[:, t] - y[:, t]).abs().max() > 1e-6, f"output {t} does not depend on input {t}"


def reset(build: Callable[[], Any]) -> None:
    """A reset equals two separate sequences, with and without a state before them; no gradient crosses it."""
    model, x = build().double(), _input()
    starts = [[0, 1, 9], [LENGTH - 2], []]  # of each row
    resets = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for row, begin in enumerate(starts):
        resets[row, begin] = True
    for state in (None, model(x.flip(1))[1]):
        y, after = model(x, state, resets)
        for row, begin in enumerate(starts):
            one = slice(row, row + 1)
            own = None if state is None else select_state(state, one)
            chunks, last = [], None
            for start, stop in itertools.pairwise([*sorted({0, *begin}), LENGTH]):
                chunk, last = model(x[one, start:stop], None if start in begin else own)
                chunks.append(chunk)
            _same(model, (torch.cat(chunks, 1), last), (y[one], select_state(after, one)))
    x.requires_grad_()
    resets = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    resets[:, 9] = True
    y, _ = model(x, None, resets)
    (grad,) = torch.autograd.grad(y[:, 9:].square().sum(), x)
    assert grad[:, :9].abs().max() == 0, "a gradient crosses the reset"
    assert grad[:, 9:].abs().min() > 0, "a gradient after the reset is missing"


def state_layout(build: Callable[[], Any]) -> None:
    """The state is a tree of tensors alone; each has the batch first and grows at most by the number of steps."""
    model, x = build(), _input().float()
    initial, after, stepped = _states(model, x)
    for length, leaves in ((LENGTH, after), (1, stepped)):
        for before, now in zip(initial, leaves, strict=True):
            for leaf in (before, now):
                assert isinstance(leaf, Tensor), f"the state contains {leaf}, which is no tensor"
                assert leaf.shape[:1] == (BATCH,), f"got the shape {tuple(leaf.shape)}"
            grown = (BATCH, before.shape[1] + length, *before.shape[2:]) if before.dim() > 1 else before.shape
            assert now.shape in (before.shape, grown), f"{tuple(before.shape)} became {tuple(now.shape)}"
            assert now.dtype == before.dtype, f"{before.dtype} became {now.dtype}"


def state_types(build: Callable[[], Any]) -> None:
    """A state is float32 in float32, bfloat16 and under autocast, and float64 in float64; its type never changes."""
    x = _input()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        kinds = [[leaf.dtype for leaf in leaves] for leaves in _states(build().to(dtype), x.to(dtype))]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            kinds += [[leaf.dtype for leaf in leaves] for leaves in _states(build().to(dtype), x.to(dtype))]
        for initial, later in itertools.product(kinds[:1], kinds):
            wrong = [kind for kind in later if kind.is_floating_point and kind != state_dtype(dtype)]
            assert not wrong, f"the state has the type {wrong[0]} for inputs of {dtype}"
            assert later == initial, f"{initial} became {later}"


def reset_of_a_step(build: Callable[[], Any]) -> None:
    """A step with a reset equals a parallel pass with it, for each row on its own and whatever the state before."""
    model, x = build().double(), _input()
    resets = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    resets[0, [0, 1, 9]] = resets[1, LENGTH - 2] = True
    before = model(x.flip(1))[1]
    outputs, state = [], before
    for t in range(LENGTH):
        y, state = _step(model, x[:, t], state, resets[:, t])
        outputs.append(y)
    _same(model, (torch.stack(outputs, 1), state), model(x, before, resets))


def gradients(build: Callable[[], Any]) -> None:
    """Gradients reach every parameter, the same in parallel and step by step, and flow into the state."""
    model, x = build().double(), _input()
    torch.autograd.backward(model(x)[0].square().sum())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not missing, f"no gradient reaches {', '.join(missing)}"
    parallel = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.autograd.backward(_steps(model, x, model.initial_state(BATCH))[0].square().sum())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, parallel[name], rtol=1e-8, atol=1e-8)
    state = tree_map(lambda s: s.detach().requires_grad_(s.is_floating_point()), model(x)[1])
    leaves = [leaf for leaf in tree_leaves(state) if leaf.requires_grad]
    for grad in torch.autograd.grad(model(x, state)[0].square().sum(), leaves):
        assert grad.abs().max() > 0, "no gradient flows into the state"


def bfloat16(build: Callable[[], Any]) -> None:
    """Under autocast and with bfloat16 weights, results are close to those in float32."""
    model, x = build(), _input().float()
    exact, _ = model(x)
    size = exact.abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = model(x)
        assert model(x, state)[0].isfinite().all(), "a state under autocast gives infinite outputs"
        y_t, _ = model.step(x[:, 0], model.initial_state(BATCH))
    for low, high in ((y, exact), (y_t, exact[:, 0])):
        assert (low.float() - high).abs().mean() < 0.03 * high.abs().mean(), "autocast is too far from float32"
    y, _ = model.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16, f"bfloat16 inputs give {y.dtype}"
    assert (y.float() - exact).abs().mean() < 0.06 * size, "bfloat16 is too far from float32"


def compiles(build: Callable[[], Any]) -> None:
    """``torch.compile`` compiles a parallel pass and a step into one graph each, without graph breaks."""
    model, x = build(), _input().float()
    x.requires_grad_()  # as in a stack; PyTorch fails on an LSTM's input without
    with _fresh_compiler():
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        y, state = compiled(x)
        torch.testing.assert_close(y, model(x)[0], rtol=1e-4, atol=1e-5)
        torch.autograd.backward(y.sum())
    with _fresh_compiler():
        step: Any = torch.compile(model.step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(step(x[:, 0], state)[0], model.step(x[:, 0], state)[0], rtol=1e-4, atol=1e-5)


def exports(build: Callable[[], Any]) -> None:
    """``torch.export`` exports a program for any length."""
    model, x = build().eval(), _input().float()
    length = torch.export.Dim("length", min=2, max=1000)
    program: Any = torch.export.export(model, (x,), dynamic_shapes=({1: length},))
    longer = torch.randn(BATCH, 3 * LENGTH, DIM)
    torch.testing.assert_close(program.module()(longer)[0], model(longer)[0])


def empty(build: Callable[[], Any]) -> None:
    """Batches and lengths of 0, and a length of 1, give outputs of their shape and a state to continue from."""
    model = build().double()
    for batch, length in ((BATCH, 0), (0, LENGTH), (BATCH, 1)):
        x = _input()
        x, rest = x[:batch, :length].clone().requires_grad_(), x[:batch, length : length + 3]
        resets = torch.ones(batch, length, dtype=torch.bool)
        for y, state in (model(x), model(x, model(rest)[1], resets) if length else model(x, None, resets)):
            assert y.shape == x.shape, f"{tuple(x.shape)} became {tuple(y.shape)}"
            torch.autograd.backward(y.sum())
            torch.testing.assert_close(torch.cat([y, model(rest, state)[0]], 1), model(torch.cat([x, rest], 1))[0])


def copies(build: Callable[[], Any]) -> None:
    """A deep copy and a model that loads the saved weights give the same results; saving needs no pickled classes."""
    model, x = build().double(), _input()
    expected, _ = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x)[0], expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    other = build().double()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)


CLAUSES: dict[str, Clause] = {
    "state layout": state_layout,
    "parallel equals step by step": parallel_equals_steps,
    "any chunking": any_chunking,
    "causal": causal,
    "reset": reset,
    "reset of a step": reset_of_a_step,
    "state types": state_types,
    "gradients": gradients,
    "bfloat16": bfloat16,
    "compile": compiles,
    "export": exports,
    "empty batches and lengths": empty,
    "copies and state_dict": copies,
}


def _input() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, generator=generator)


def _steps(model: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """The outputs of a loop of steps, (batch, length, dim), and the last state."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def _step(model: Any, x_t: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
    """A step with resets; of a mixer whose own ``step`` has none, as a ``Block`` takes it."""
    if "reset" in inspect.signature(model.step).parameters:
        return model.step(x_t, state, reset)  # type: ignore[no-any-return]
    return model.step(x_t, where(reset, model.initial_state(len(x_t)), state))  # type: ignore[no-any-return]


def _states(model: Any, x: Tensor) -> list[list[Any]]:
    """The leaves of the initial state, and of those after a parallel pass and after a step."""
    initial = model.initial_state(BATCH)
    return [tree_leaves(state) for state in (initial, model(x)[1], model.step(x[:, 0], initial)[1])]


def _same(model: Any, one: tuple[Tensor, State], two: tuple[Tensor, State]) -> None:
    """Outputs are equal, and states lead to equal outputs: a cache may contain entries that are never read again."""
    (y, state), (y2, state2) = one, two
    more = torch.randn(len(y), 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for a, b in ((y, y2), (model(more, state)[0], model(more, state2)[0])):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()
