"""What goes beyond the paper's layers: negative factors, a learned initial state, irregular times, both directions."""

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning import LanguageTask
from minrnn_lightning.nn import Backbone, MinGRU, MinLSTM
from minrnn_lightning.nn.functional import min_gru, min_lstm
from minrnn_lightning.nn.mixers import MinGRUMixer

LAYERS = [(MinGRU, {}), (MinLSTM, {}), (MinLSTM, {"normalize": False})]


def gates(rnn, x, delta_t=None):
    """The definition: a, i and v of every step, from the products of one layer."""
    logits = F.linear(x, rnn.weight_ih_l0, rnn.bias_ih_l0)
    if isinstance(rnn, MinGRU):
        k, v = logits.chunk(2, -1)
        a = 1 - k.sigmoid()
    else:
        f, i, v = logits.chunk(3, -1)
        a, i = f.sigmoid(), i.sigmoid()
        if not rnn.normalize:
            return a if delta_t is None else a ** delta_t.unsqueeze(-1), i, v
        a = a / (a + i)
    a = a if delta_t is None else a ** delta_t.unsqueeze(-1)
    return a, 1 - a, v


def loop(rnn, x, h, reset=None, delta_t=None):
    a, i, v = gates(rnn, x, delta_t)
    c = torch.where(v >= 0, v + 0.5, v.sigmoid()) if rnn.activation == "positive" else v
    start, states = h, []
    for t in range(x.shape[1]):
        if reset is not None:
            h = torch.where(reset[:, t, None], start, h)
        h = (2 * a[:, t] - 1 if rnn.signed else a[:, t]) * h + i[:, t] * c[:, t]
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize(("layer", "options"), LAYERS)
@pytest.mark.parametrize("activation", ["positive", "identity"])
def test_signed(layer, options, activation):
    rnn = layer(5, 7, batch_first=True, signed=True, activation=activation, **options).double()
    torch.nn.init.normal_(rnn.weight_ih_l0)
    x, h_0 = torch.randn(2, 30, 5, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    torch.testing.assert_close(rnn(x, h_0.unsqueeze(0))[0], loop(rnn, x, h_0))


def test_signed_counts_modulo_two():
    """Shut at a 0, wide open at a 1, the state goes from c to 0 and back: parity at any length, from two numbers."""
    rnn = MinGRU(1, 1, batch_first=True, signed=True, activation="identity")
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.tensor([[80.0], [0.0]]))
        rnn.bias_ih_l0.copy_(torch.tensor([-40.0, 1.0]))
    bits = torch.randint(2, (3, 5000, 1)).float()
    torch.testing.assert_close(rnn(bits)[0], bits.cumsum(1) % 2)


@pytest.mark.parametrize(("layer", "options"), LAYERS)
@pytest.mark.parametrize("activation", ["positive", "identity"])
def test_learned_initial_state(layer, options, activation):
    torch.manual_seed(0)  # one in 128 identity starts has no negative unit
    rnn = layer(5, 7, batch_first=True, learn_initial_state=True, activation=activation, **options).double()
    x = torch.randn(3, 30, 5, dtype=torch.float64)
    start = rnn.initial_state(3)[0]
    assert start.abs().min() > 0
    assert (activation == "identity") == bool((start < 0).any())
    torch.testing.assert_close(rnn(x)[0], loop(rnn, x, start))
    reset = torch.rand(3, 30) < 0.2
    torch.testing.assert_close(rnn(x, reset=reset)[0], loop(rnn, x, start, reset))
    torch.testing.assert_close(rnn.step(x[:, 0])[0], rnn(x)[0][:, 0])
    rnn(x, reset=reset)[0].sum().backward()
    assert rnn.initial.grad.abs().min() > 0


def test_learned_initial_states_of_layers_and_directions():
    rnn = MinLSTM(5, 7, 2, batch_first=True, bidirectional=True, learn_initial_state=True).double()
    x, reset = torch.randn(3, 30, 5, dtype=torch.float64), torch.rand(3, 30) < 0.2
    reset[:, 12] = True
    y, _ = rnn(x, reset=reset)
    for part in (slice(0, 12), slice(12, 30)):
        torch.testing.assert_close(rnn(x[:, part], reset=reset[:, part])[0], y[:, part])
    assert not torch.equal(rnn.initial[0], rnn.initial[3])


@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_irregular_times(layer, options):
    rnn = layer(5, 7, batch_first=True, **options).double()
    x, h_0 = torch.randn(2, 30, 5, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    delta_t = torch.rand(2, 30, dtype=torch.float64) * 5
    delta_t[:, 4] = 0
    y, h_n = rnn(x, h_0.unsqueeze(0), delta_t=delta_t)
    torch.testing.assert_close(y, loop(rnn, x, h_0, delta_t=delta_t))
    h, steps = h_0.unsqueeze(0), []
    for t in range(30):
        y_t, h = rnn.step(x[:, t], h, delta_t=delta_t[:, t])
        steps.append(y_t)
    torch.testing.assert_close((torch.stack(steps, 1), h), (y, h_n))
    torch.testing.assert_close(rnn(x, delta_t=torch.ones(2, 30))[0], rnn(x)[0])
    unbatched, _ = rnn(x[1], h_0[None, 1], delta_t=delta_t[1])
    torch.testing.assert_close(unbatched, y[1])


def test_times_of_the_backward_direction_are_those_to_the_right():
    rnn = MinGRU(5, 7, bidirectional=True).double()
    one = MinGRU(5, 7).double()
    with torch.no_grad():
        one.weight_ih_l0.copy_(rnn.weight_ih_l0_reverse)
        one.bias_ih_l0.copy_(rnn.bias_ih_l0_reverse)
    x, delta_t = torch.randn(9, 2, 5, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64) + 0.5
    mirrored = torch.cat([torch.ones(1, 2), delta_t.flip(0)[:-1]])
    expected = one(x.flip(0), delta_t=mirrored)[0].flip(0)
    torch.testing.assert_close(rnn(x, delta_t=delta_t)[0][..., 7:], expected)


def test_gradients_of_no_time_are_finite():
    rnn = MinGRU(5, 7)
    delta_t = torch.zeros(9, 2, requires_grad=True)
    rnn(torch.randn(9, 2, 5), delta_t=delta_t)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in (delta_t, *rnn.parameters()))


def test_times_reach_the_mixers_of_a_stack():
    model = LanguageTask(11, 11, ["mingru", "minlstm"], dim=8, depth=2).double()
    tokens, delta_t = torch.randint(11, (3, 12)), torch.rand(3, 12, dtype=torch.float64) * 5
    reset = torch.rand(3, 12) < 0.2
    y, _ = model(tokens, reset=reset, delta_t=delta_t)
    left, state = model(tokens[:, :7], reset=reset[:, :7], delta_t=delta_t[:, :7])
    right, _ = model(tokens[:, 7:], state, reset[:, 7:], delta_t=delta_t[:, 7:])
    torch.testing.assert_close(torch.cat([left, right], 1), y)
    y, _ = model(tokens, delta_t=delta_t)
    state = model.initial_state(3)
    for t in range(12):
        y_t, state = model.step(tokens[:, t], state, delta_t=delta_t[:, t])
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(model(tokens, delta_t=torch.ones(3, 12))[0], model(tokens)[0])
    model(tokens, delta_t=delta_t.requires_grad_())[0].square().sum().backward()
    assert delta_t.grad[:, 1:].abs().min() > 0


def test_a_mixer_that_cannot_tell_the_time_says_so():
    model, times = Backbone(8, 2, ["mingru", "attention"]), torch.ones(2, 9)
    with pytest.raises(ValueError, match=r"AttentionMixer takes no delta_t; .* do are gated_mingru, mingru"):
        model(torch.randn(2, 9, 8), delta_t=times)
    with pytest.raises(ValueError, match="AttentionMixer takes no delta_t"):
        model.step(torch.randn(2, 8), model.initial_state(2), delta_t=times[:, 0])


def test_a_bidirectional_backbone_is_an_encoder():
    model = Backbone(8, 2, mixer_args={"mingru": {"bidirectional": True}}, kernel_size=0)
    x = torch.randn(2, 9, 8)
    y, state = model(x)
    changed = x.clone()
    changed[:, -1] = changed[:, -1].flip(-1)
    assert (model(changed)[0] != y).any(-1).all()
    assert state == [((), ())] * 2
    with pytest.raises(ValueError, match="needs the whole sequence: it has no state and no step"):
        model.initial_state(2)
    with pytest.raises(ValueError, match="needs the whole sequence"):
        MinGRUMixer(8, bidirectional=True)(x, torch.zeros(2, 8))


def test_refuses():
    x = torch.randn(9, 2, 5)
    with pytest.raises(ValueError, match="delta_t needs signed=False"):
        MinGRU(5, 7, signed=True)(x, delta_t=torch.ones(9, 2))
    with pytest.raises(ValueError, match=r"MinGRU: Expected delta_t of shape \(9, 2\), got \(9,\)"):
        MinGRU(5, 7)(x, delta_t=torch.ones(9))
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0]])
    with pytest.raises(ValueError, match="delta_t need padded input"):
        MinGRU(5, 7)(packed, delta_t=torch.ones(9, 1))


WAYS = {
    "signed": {"signed": True},
    "delta_t": {"delta_t": torch.ones(2, 3)},
    "initial_state": {"initial_state": torch.zeros(4), "reset": torch.ones(2, 3) > 0},
    "not normalised": {"normalize": False},
}


@pytest.mark.parametrize(
    ("function", "count", "way"),
    [(min_gru, 2, way) for way in WAYS if way != "not normalised"] + [(min_lstm, 3, way) for way in WAYS],
)
def test_wrong_arguments_are_named(function, count, way):
    logits, options = torch.randn(count, 2, 3, 4), WAYS[way]
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        function(*logits, activation="tanh", **options)
    with pytest.raises(ValueError, match=r"candidate must have the shape of gate.*got \(2, 1, 4\)"):
        function(*logits[:-1], logits[-1][:, :1], **options)
    with pytest.raises(TypeError, match=r"gate must be float16.*got torch.int64"):
        function(*logits.long(), **options)
    with pytest.raises(ValueError, match=r"initial must have shape .*got \(1, 4\)"):
        function(*logits, torch.zeros(1, 4), **options)


@pytest.mark.parametrize("way", [{}, {"signed": True}, {"initial_state": torch.ones(4)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("function", "count"), [(min_gru, 2), (min_lstm, 3)])
def test_no_step_leaves_the_state(function, count, dtype, way):
    nothing, h_0 = torch.zeros(2, 0, 4, dtype=dtype), torch.randn(2, 4)
    h, state = function(*[nothing] * count, h_0, return_state=True, **way)
    assert (h.shape, h.dtype) == ((2, 0, 4), dtype)
    torch.testing.assert_close(state, h_0, rtol=1e-6, atol=1e-6)
    _, state = function(*[nothing] * count, return_state=True, **way)
    assert torch.equal(state, way.get("initial_state", torch.zeros(4)).expand(2, -1))
