"""The contract that every mixer keeps, alone and inside a backbone: being listed in MIXERS is enough to be tested."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

from minrnn_lightning.nn import MIXERS, Backbone
from minrnn_lightning.nn.mixers import Mixer

DIM, BATCH, LENGTH = 8, 3, 21
OPTIONS = {  # of mixers, where other code runs than by default
    "signed mingru": {"signed": True, "activation": "identity"},
    "learned mingru": {"learn_initial_state": True},
    "counting mingru": {"counters": 0.5, "activation": "identity"},
    "signed minlstm": {"signed": True, "learn_initial_state": True},
    "unnormalised minlstm": {"normalize": False, "forget_bias": 1.0, "learn_initial_state": True},
    "windowed attention": {"window": 5, "heads": 4, "kv_heads": 2},
}
KINDS = [*MIXERS, *OPTIONS, *(f"stacked {name}" for name in MIXERS), "stacked hybrid"]


def build(kind):
    """The mixer alone, or with convolution, norm and MLP around it; a hybrid of all kinds last."""
    torch.manual_seed(0)
    how, _, name = kind.rpartition(" ")
    if how == "stacked":
        pattern = list(MIXERS) if name == "hybrid" else [name] * 2
        return Backbone(DIM, len(pattern), pattern, expansion=2, kernel_size=4, mlp_ratio=2)
    return MIXERS[name](DIM, 2.0, **OPTIONS.get(kind, {}))


@pytest.fixture(params=KINDS)
def model(request):
    return build(request.param).double()


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step_by_step(model, x, state):
    outputs = []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def assert_same(model, one, two):
    """Outputs alike, and states that go on alike: a cache may also hold what is never seen again."""
    (y, state), (y2, state2) = one, two
    more = torch.randn(len(y), 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for a, b in ((y, y2), (model(more, state)[0], model(more, state2)[0])):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def row_of(state, row):
    return tree_map(lambda s: s[row : row + 1], state)


class TestMixer:
    def test_parallel_equals_step_by_step(self, model, x):
        whole = model(x)
        assert_same(model, step_by_step(model, x, model.initial_state(BATCH)), whole)
        assert_same(model, model(x, model.initial_state(BATCH)), whole)

    @settings(deadline=None, max_examples=15)
    @given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=5, unique=True), kind=st.sampled_from(KINDS))
    def test_whole_equals_any_chunking(self, cuts, kind):
        model = build(kind).double()
        x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
        outputs, state = [], None
        for start, stop in itertools.pairwise([0, *sorted(cuts), LENGTH]):
            y, state = model(x[:, start:stop], state)
            outputs.append(y)
        assert_same(model, (torch.cat(outputs, 1), state), model(x))

    def test_steps_continue_a_parallel_pass(self, model, x):
        y, state = model(x[:, :9])
        rest, state = step_by_step(model, x[:, 9:], state)
        assert_same(model, (torch.cat([y, rest], 1), state), model(x))

    def test_causal(self, model, x):
        y, _ = model(x)
        for t in (1, 5, LENGTH - 1):
            changed = x.clone()
            changed[:, t:] = changed[:, t:].flip(-1)  # a constant would be taken out by the norm
            y_changed, _ = model(changed)
            torch.testing.assert_close(y_changed[:, :t], y[:, :t], rtol=0, atol=1e-12)
            assert (y_changed[:, t] - y[:, t]).abs().max() > 1e-6

    @pytest.mark.parametrize("carried", [False, True])
    def test_a_reset_equals_separate_sequences(self, model, x, carried):
        state = model(x.flip(1))[1] if carried else None
        reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
        reset[0, [0, 1, 9]] = reset[1, LENGTH - 2] = True  # row 2 has none
        y, after = model(x, state, reset)
        for row, starts in enumerate([[0, 1, 9], [LENGTH - 2], []]):
            own = None if state is None else row_of(state, row)
            pieces = []
            for start, stop in itertools.pairwise([*sorted({0, *starts}), LENGTH]):
                piece, last = model(x[row : row + 1, start:stop], None if start in starts else own)
                pieces.append(piece)
            assert_same(model, (torch.cat(pieces, 1), last), (y[row : row + 1], row_of(after, row)))

    @pytest.mark.parametrize(("batch", "length"), [(BATCH, 0), (0, LENGTH), (BATCH, 1)])
    def test_little_or_nothing_to_mix(self, model, x, batch, length):
        x, rest = x[:batch, :length].clone().requires_grad_(), x[:batch, length : length + 3]
        reset = torch.ones(batch, length, dtype=torch.bool)
        for y, state in (model(x), model(x, model(rest)[1], reset) if length else model(x, None, reset)):
            assert y.shape == x.shape
            y.sum().backward()
            torch.testing.assert_close(torch.cat([y, model(rest, state)[0]], 1), model(torch.cat([x, rest], 1))[0])

    def test_no_gradient_crosses_a_reset(self, model, x):
        x.requires_grad_()
        reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
        reset[:, 9] = True
        y, _ = model(x, None, reset)
        (grad,) = torch.autograd.grad(y[:, 9:].square().sum(), x)
        assert grad[:, :9].abs().max() == 0
        assert grad[:, 9:].abs().min() > 0

    def test_state_has_the_batch_first_and_grows_by_steps_at_most(self, model, x):
        before, after = (tree_leaves(state) for state in (model.initial_state(BATCH), model(x)[1]))
        for one, two in zip(before, after, strict=True):
            if one is not None:
                assert one.shape[0] == two.shape[0] == BATCH
                assert two.shape in (one.shape, (BATCH, one.shape[1] + LENGTH, *one.shape[2:]))

    def test_gradients_reach_every_parameter(self, model, x):
        model(x)[0].square().sum().backward()
        parallel = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert all(grad.abs().max() > 0 for grad in parallel.values())
        model.zero_grad()
        step_by_step(model, x, model.initial_state(BATCH))[0].square().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, parallel[name], rtol=1e-8, atol=1e-8)

    def test_gradients_reach_the_state(self, model, x):
        state = tree_map(lambda s: s.detach().requires_grad_(s.is_floating_point()), model(x)[1])
        leaves = [leaf for leaf in tree_leaves(state) if leaf is not None and leaf.requires_grad]
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(model(x, state)[0].square().sum(), leaves))

    def test_bfloat16(self, model, x):
        model, x = model.float(), x.float()
        exact, _ = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = model(x)
            y2, _ = model(x, state)
            assert y2.isfinite().all()
            y_t, _ = model.step(x[:, 0], model.initial_state(BATCH))
        assert (y.float() - exact).abs().mean() < 0.03 * exact.abs().mean()
        assert (y_t.float() - exact[:, 0]).abs().mean() < 0.03 * exact.abs().mean()
        y, _ = model.bfloat16()(x.bfloat16())
        assert y.dtype == torch.bfloat16
        assert (y.float() - exact).abs().mean() < 0.06 * exact.abs().mean()

    def test_compiles_without_a_graph_break(self, model, x):
        model, x = model.float(), x.float().requires_grad_()  # as in a stack; PyTorch fails on an LSTM's input without
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        y, state = compiled(x)
        torch.testing.assert_close(y, model(x)[0], rtol=1e-4, atol=1e-5)
        y.sum().backward()
        torch.compiler.reset()
        step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(step(x[:, 0], state)[0], model.step(x[:, 0], state)[0], rtol=1e-4, atol=1e-5)
        torch.compiler.reset()

    def test_exports(self, model, x):
        model, x = model.float().eval(), x.float()
        length = torch.export.Dim("length", min=2, max=1000)
        program = torch.export.export(model, (x,), dynamic_shapes=({1: length},))
        longer = torch.randn(BATCH, 3 * LENGTH, DIM)
        torch.testing.assert_close(program.module()(longer)[0], model(longer)[0])


def test_table_holds_mixers():
    for name, mixer in MIXERS.items():
        assert isinstance(mixer(DIM, 1.0), Mixer), name


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_gates_start_with_spread_time_constants(name):
    mixer = MIXERS[name](64, 1.0, timescale=100.0)
    torch.nn.init.zeros_(mixer.rnn.weight_ih_l0)
    state = torch.ones(1, 64)
    _, after = mixer.step(torch.zeros(1, 64), state)
    bias = mixer.rnn.bias_ih_l0.view(-1, 64)[-1]
    candidate = torch.where(bias >= 0, bias + 0.5, bias.sigmoid())
    forgotten = ((state - after) / (state - candidate)).squeeze(0)
    assert 0.35 < forgotten[0] < 0.65  # about one step
    assert 0.005 < forgotten[-1] < 0.02  # about a hundred


def test_counters_add_up():
    mixer = MIXERS["mingru"](DIM, 2.0, activation="identity", counters=0.25).double()
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    gate, candidate = (x @ mixer.rnn.weight_ih_l0.T + mixer.rnn.bias_ih_l0).chunk(2, -1)
    h = mixer.rnn(x)[0].clone()
    h[..., 12:] = ((gate + math.log(1e6)).exp() * candidate).cumsum(1)[..., 12:]
    torch.testing.assert_close(mixer(x)[0], mixer.out(h), rtol=1e-3, atol=1e-3)


def test_counters_refuse_float16():
    mixer = MIXERS["mingru"](DIM, 2.0, counters=0.25).half()
    with pytest.raises(ValueError, match="float16 cannot hold the small states of counters"):
        mixer(torch.zeros(BATCH, LENGTH, DIM, dtype=torch.float16))
