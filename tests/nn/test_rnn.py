"""MinGRU and MinLSTM against a float64 loop: whole, cut, stepped, reset, reversed, packed."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from minrnn_lightning.nn import MinGRU, MinLSTM

CELLS = {
    f"{name}-{activation}": partial(cell, activation=activation)
    for name, cell in {"mingru": MinGRU, "minlstm": MinLSTM, "minlstm_raw": partial(MinLSTM, normalize=False)}.items()
    for activation in ("positive", "identity")
}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
check_close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def build(cell, *sizes, seed=0, **options):
    """A layer in float64 whose gates are far from ½."""
    torch.manual_seed(seed)
    rnn = cell(*sizes, dtype=torch.float64, **options)
    for parameter in rnn.parameters():
        parameter.data *= 2
    return rnn


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def loop(rnn, x, h_0=None):
    """States (batch, length, directions · hidden) and h_n, one step after the other, by the paper's equations."""

    def c(v):
        return v if rnn.activation == "identity" else torch.where(v >= 0, v + 0.5, 1 / (1 + torch.exp(-v)))

    final = []
    for layer in range(rnn.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + rnn.bidirectional]:
            weight, bias = (getattr(rnn, f"{kind}_ih_l{layer}{suffix}").double() for kind in ("weight", "bias"))
            h = x.new_zeros(len(x), rnn.hidden_size, dtype=torch.float64) if h_0 is None else h_0[len(final)]
            states = {}
            for t in sorted(range(x.shape[1]), reverse=bool(suffix)):
                *gates, v = (x[:, t].double() @ weight.T + bias).split(rnn.hidden_size, -1)
                gates = [torch.sigmoid(gate) for gate in gates]
                if isinstance(rnn, MinGRU):
                    (z,) = gates
                    h = (1 - z) * h + z * c(v)
                else:
                    f, i = gates
                    f, i = (f / (f + i), i / (f + i)) if rnn.normalize else (f, i)
                    h = f * h + i * c(v)
                states[t] = h
            outputs.append(torch.stack([states[t] for t in range(x.shape[1])], 1))
            final.append(h)
        x = torch.cat(outputs, -1)
    return x, torch.stack(final)


def gradients(outputs, inputs):
    """The gradients of a sum in which every element of the outputs has its own weight."""
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    return torch.autograd.grad(loss, inputs)


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_the_loop_forward_and_backward(cell, bidirectional, batch_first):
    rnn = build(cell, 3, 4, 2, batch_first=batch_first, bidirectional=bidirectional)
    x, h_0 = randn(2, 9, 3), randn(4 if bidirectional else 2, 2, 4)
    expected = loop(rnn, x, h_0)
    output, h_n = rnn(x if batch_first else x.transpose(0, 1), h_0)
    actual = output if batch_first else output.transpose(0, 1), h_n
    check_close(actual, expected)
    inputs = [x, h_0, *rnn.parameters()]
    check_close(gradients(actual, inputs), gradients(expected, inputs))


@every_cell
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_chunking_equals_the_whole(cell, data):
    layers, batch, length = (data.draw(st.integers(1, n), name) for n, name in ((3, "layers"), (3, "batch"), (24, "T")))
    cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=5), "cuts") - {0, length})
    rnn = build(cell, 3, 5, layers, batch_first=True, seed=data.draw(st.integers(0, 99), "seed"))
    x, h_0 = randn(batch, length, 3), randn(layers, batch, 5) if data.draw(st.booleans(), "h_0 given") else None
    outputs, h = [], h_0
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        output, h = rnn(x[:, start:stop], h)
        outputs.append(output)
    check_close((torch.cat(outputs, 1), h), loop(rnn, x, h_0))


@every_cell
def test_gradient_crosses_a_cut(cell):
    rnn = build(cell, 3, 4, 2, batch_first=True)
    x, h_0 = randn(2, 8, 3), randn(2, 2, 4)
    first, h = rnn(x[:, :5], h_0)
    second, h = rnn(x[:, 5:], h)
    inputs = [x, h_0, *rnn.parameters()]
    check_close(gradients((torch.cat([first, second], 1), h), inputs), gradients(loop(rnn, x, h_0), inputs))


@every_cell
@pytest.mark.parametrize("given_state", [False, True])
def test_steps_equal_the_whole_with_gradients(cell, given_state):
    rnn = build(cell, 3, 4, 2)
    x, h_0 = randn(7, 2, 3), randn(2, 2, 4)
    outputs, h = [], h_0 if given_state else None
    for x_t in x:
        output_t, h = rnn.step(x_t, h)
        outputs.append(output_t)
    actual, expected = (torch.stack(outputs), h), rnn(x, h_0 if given_state else None)
    check_close(actual, expected)
    inputs = [x, *rnn.parameters(), *([h_0] if given_state else [])]
    check_close(gradients(actual, inputs), gradients(expected, inputs))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_reset_equals_separate_sequences(cell, bidirectional, batch_first):
    """h_0 reaches the first piece only, or, running backward, the last one; no gradient crosses."""
    rnn = build(cell, 3, 4, bidirectional=bidirectional, batch_first=batch_first)
    x, h_0 = randn(2, 10, 3), randn(2 if bidirectional else 1, 2, 4)
    starts = [[4], [0, 1, 7, 9]]
    reset = torch.zeros(2, 10, dtype=torch.bool)
    outputs, finals = [], []
    for row, begin in enumerate(starts):
        reset[row, begin] = True
        edges = sorted({0, *begin, 10})
        pieces = []
        for start, stop in pairwise(edges):
            state = torch.zeros_like(h_0[:, :1])
            if start == 0 and 0 not in begin:
                state = torch.cat([h_0[:1, row : row + 1], state[1:]])
            if stop == 10 and bidirectional:
                state = torch.cat([state[:1], h_0[1:, row : row + 1]])
            pieces.append(loop(rnn, x[row : row + 1, start:stop], state))
        outputs.append(torch.cat([output for output, _ in pieces], 1))
        finals.append(torch.cat([pieces[-1][1][:1], pieces[0][1][1:]]))
    expected = torch.cat(outputs), torch.cat(finals, 1)
    if batch_first:
        actual = rnn(x, h_0, reset=reset)
    else:
        output, h_n = rnn(x.transpose(0, 1), h_0, reset=reset.T)
        actual = output.transpose(0, 1), h_n
    check_close(actual, expected)
    inputs = [x, h_0, *rnn.parameters()]
    check_close(gradients(actual, inputs), gradients(expected, inputs))


@every_cell
def test_bidirectional_equals_two_runs(cell):
    both, forward, backward = build(cell, 3, 4, bidirectional=True), build(cell, 3, 4), build(cell, 3, 4)
    forward.load_state_dict({name: both.state_dict()[name] for name in forward.state_dict()})
    backward.load_state_dict({name: both.state_dict()[f"{name}_reverse"] for name in backward.state_dict()})
    x, h_0 = randn(6, 2, 3), randn(2, 2, 4)
    (ahead, h_ahead), (back, h_back) = forward(x, h_0[:1]), backward(x.flip(0), h_0[1:])
    check_close(both(x, h_0), (torch.cat([ahead, back.flip(0)], -1), torch.cat([h_ahead, h_back])))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("lengths", "enforce_sorted"), [([5, 2, 7, 1, 5], False), ([7, 5, 5, 2, 1], True)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_equals_each_sequence_alone(cell, bidirectional, lengths, enforce_sorted, batch_first):
    rnn = build(cell, 3, 4, 2, bidirectional=bidirectional, batch_first=batch_first)
    sequences = [randn(length, 3) for length in lengths]
    h_0 = randn(4 if bidirectional else 2, len(lengths), 4)
    packed = pack_sequence(sequences, enforce_sorted=enforce_sorted)
    output, h_n = rnn(packed, h_0)
    assert isinstance(output, PackedSequence)
    for mine, given_ in zip(output[1:], packed[1:], strict=True):  # batch_sizes, sorted_indices, unsorted_indices
        assert mine is given_ or torch.equal(mine, given_)
    alone = [loop(rnn, x[None], h_0[:, [n]]) for n, x in enumerate(sequences)]
    expected = [o[0] for o, _ in alone], torch.cat([h for _, h in alone], 1)
    actual = unpack_sequence(output), h_n
    check_close(actual, expected)
    inputs = [*sequences, h_0, *rnn.parameters()]
    check_close(gradients([*actual[0], h_n], inputs), gradients([*expected[0], expected[1]], inputs))


@every_cell
def test_unbatched_equals_a_batch_of_one(cell):
    rnn = build(cell, 3, 4, 2, bidirectional=True)
    x, h_0, reset = randn(6, 3), randn(4, 4), torch.arange(6) == 3
    output, h_n = rnn(x[:, None], h_0[:, None], reset=reset[:, None])
    check_close(rnn(x, h_0, reset=reset), (output[:, 0], h_n[:, 0]))
    rnn = build(cell, 3, 4, 2, batch_first=True)
    output, h_n = rnn(x[None], h_0[:2, None])
    check_close(rnn(x, h_0[:2]), (output[0], h_n[:, 0]))
    output_t, h = rnn.step(x[:1], h_0[:2, None])
    check_close(rnn.step(x[0], h_0[:2]), (output_t[0], h[:, 0]))
    assert rnn.step(x[0])[1].shape == (2, 4)


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck(cell, bidirectional):
    rnn = build(cell, 2, 2, 2, bidirectional=bidirectional)
    names = [name for name, _ in rnn.named_parameters()]

    def run(x: Tensor, h_0: Tensor, *parameters: Tensor):
        return torch.func.functional_call(rnn, dict(zip(names, parameters, strict=True)), (x, h_0))

    assert torch.autograd.gradcheck(run, (randn(4, 2, 2), randn(4 if bidirectional else 2, 2, 2), *rnn.parameters()))


@every_cell
def test_float32_stays_accurate_over_a_long_sequence(cell):
    torch.manual_seed(0)
    rnn = cell(3, 8, batch_first=True)
    x = torch.randn(1, 4096, 3)
    with torch.no_grad():
        torch.testing.assert_close(rnn(x)[0].double(), loop(rnn, x)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ["positive", "identity"])
def test_normalised_gates_survive_where_both_sigmoids_vanish(activation):
    """f / (f + i) is ½ for f = i, however small the two are."""
    rnn = MinLSTM(1, 1, activation=activation)
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.bias_ih_l0.copy_(torch.tensor([-1000.0, -1000.0, 1.0]))
        c = 1.5 if activation == "positive" else 1.0
        for h in (rnn(torch.ones(1, 1, 1))[1], rnn.step(torch.ones(1, 1))[1]):
            torch.testing.assert_close(h, torch.full((1, 1, 1), c / 2))
