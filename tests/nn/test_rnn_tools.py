"""MinGRU and MinLSTM under PyTorch's tools: dropout, autocast, 16 bits, copies, compile, export, training."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from minrnn_lightning.nn import MinGRU, MinLSTM

every_cell = pytest.mark.parametrize(
    "cell", [MinGRU, MinLSTM, partial(MinLSTM, normalize=False)], ids=["mingru", "minlstm", "minlstm_raw"]
)


@every_cell
def test_dropout_acts_in_training_between_layers_only(cell):
    """At probability 1 every layer after the first reads zeros, and the last output is left alone."""
    torch.manual_seed(0)
    rnn, x = cell(3, 3, 3, dropout=1.0), torch.randn(6, 2, 3)
    last = cell(3, 3)
    last.load_state_dict({name.replace("l2", "l0"): value for name, value in rnn.state_dict().items() if "l2" in name})
    from_zeros, _ = last(torch.zeros_like(x))
    torch.testing.assert_close(rnn(x)[0], from_zeros)
    torch.testing.assert_close(rnn.step(x[0])[0], from_zeros[0])
    without = cell(3, 3, 3)
    without.load_state_dict(rnn.state_dict())
    assert torch.equal(rnn.eval()(x)[0], without(x)[0])
    assert not torch.allclose(rnn(x)[0], from_zeros)


@every_cell
def test_dropout_with_one_layer_warns_as_gru_does(cell):
    with pytest.warns(UserWarning, match="dropout option") as expected:
        nn.GRU(3, 5, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout option") as actual:
        cell(3, 5, dropout=0.5)
    assert str(actual[0].message) == str(expected[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cell(3, 5, 2, dropout=0.5)


@every_cell
@pytest.mark.parametrize("activation", ["positive", "identity"])
def test_training_reduces_the_loss(cell, activation):
    """To the running mean of what went before, which needs gates that close."""
    torch.manual_seed(0)
    rnn, head = cell(1, 16, activation=activation, batch_first=True), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=2e-2)
    x = torch.randn(32, 20, 1)
    target = x.cumsum(1) / torch.arange(1, 21).view(1, -1, 1)
    losses = []
    for _ in range(60):
        losses.append(nn.functional.mse_loss(head(rnn(x)[0]), target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@every_cell
def test_autocast(cell):
    torch.manual_seed(0)
    rnn, x = cell(8, 16, 2, batch_first=True), torch.randn(2, 64, 8)
    expected, h_expected = rnn(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = rnn(x)
        again, _ = rnn(x.bfloat16(), torch.zeros(2, 2, 16))
        h = None
        for x_t in x.unbind(1):
            output_t, h = rnn.step(x_t, h)
    assert output.dtype == h_n.dtype == output_t.dtype == torch.bfloat16
    assert h.dtype == torch.float32
    near = partial(torch.testing.assert_close, rtol=3e-2, atol=3e-2, check_dtype=False)
    near(output, expected)
    near(again, expected)
    near(h_n, h_expected)
    near(h, h_expected)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_16_bits_do_not_lose_small_updates(cell, dtype):
    """With gates of e^-7 the state moves by less than half a unit of bfloat16."""
    torch.manual_seed(0)
    rnn, x = cell(2, 4, activation="identity"), torch.randn(600, 1, 2) + 2
    with torch.no_grad():
        rnn.weight_ih_l0[:-4].zero_()
        rnn.bias_ih_l0[:4] = -7.0 if isinstance(rnn, MinGRU) else 7.0
        rnn.bias_ih_l0[4:-4] = 0.0 if isinstance(rnn, MinLSTM) and rnn.normalize else -7.0
        rnn.bias_ih_l0[-4:] = 3.0
        rnn, x = rnn.to(dtype), x.to(dtype)
        h = torch.full((1, 1, 4), 2.0, dtype=dtype)
        expected, _ = copy.deepcopy(rnn).double()(x.double(), h.double())
        output, _ = rnn(x, h)
        for x_t in x:
            output_t, h = rnn.step(x_t, h)
    assert output_t.dtype == output.dtype == dtype
    assert not torch.allclose(expected[-1], torch.full_like(expected[-1], 2.0), atol=0.1)
    near = partial(torch.testing.assert_close, rtol=1e-2, atol=1e-2, check_dtype=False)
    near(output, expected)
    near(h[0], expected[-1])


@every_cell
def test_copies_and_state_dicts(cell):
    rnn, x = cell(3, 5, 2, bidirectional=True), torch.randn(6, 2, 3)
    file = io.BytesIO()
    torch.save(rnn.state_dict(), file)
    file.seek(0)
    loaded = cell(3, 5, 2, bidirectional=True)
    assert not torch.equal(loaded(x)[0], rnn(x)[0])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(rnn)
    for other in (loaded, copied):
        assert torch.equal(other(x)[0], rnn(x)[0])
    copied.reset_parameters()
    assert torch.equal(loaded(x)[0], rnn(x)[0])
    empty = cell(3, 5, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in empty.parameters())


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compile(cell, bidirectional):
    """With every layer and its backward pass in one graph, which fits any length from the second one on."""
    rnn = cell(3, 5, 1 if bidirectional else 2, dropout=0.0 if bidirectional else 0.1, bidirectional=bidirectional)
    check_compiled(rnn.eval(), "aot_eager", dynamic=None)


@every_cell
@pytest.mark.slow
def test_compile_to_kernels(cell):
    check_compiled(cell(3, 5), "inductor", dynamic=True)  # one compilation for both lengths


def check_compiled(rnn, backend, dynamic):
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled, parameters = torch.compile(rnn, fullgraph=True, backend=backend, dynamic=dynamic), list(rnn.parameters())
    h_0, reset = torch.randn(rnn.num_layers * (2 if rnn.bidirectional else 1), 2, 5), torch.rand(9, 2) < 0.3
    for length in (9, 6):
        x = torch.randn(length, 2, 3)
        actual, expected = (f(x, h_0, reset=reset[:length]) for f in (compiled, rnn))
        torch.testing.assert_close(actual, expected)
        losses = (output.square().sum() + h_n.sum() for output, h_n in (actual, expected))
        torch.testing.assert_close(*(torch.autograd.grad(loss, parameters) for loss in losses))
    if not rnn.bidirectional:
        with torch.no_grad():
            step = torch.compile(rnn.step, fullgraph=True, backend=backend)
            torch.testing.assert_close(step(x[0], h_0), rnn.step(x[0], h_0))


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_export(cell, bidirectional):
    rnn = cell(3, 5, 2, batch_first=True, bidirectional=bidirectional).eval()
    batch, length = (torch.export.Dim(name, max=1 << 20) for name in ("batch", "length"))  # PyTorch 2.6 needs a bound
    example = torch.randn(2, 9, 3), torch.randn(4 if bidirectional else 2, 2, 5)
    program = torch.export.export(rnn, example, dynamic_shapes=({0: batch, 1: length}, {1: batch}, None)[:2])
    for x, h_0 in (example, (torch.randn(4, 17, 3), torch.randn(len(example[1]), 4, 5))):
        torch.testing.assert_close(program.module()(x, h_0), rnn(x, h_0))


@pytest.mark.parametrize("cell", [MinGRU, MinLSTM])
def test_the_default_device_is_not_where_the_inputs_are(cell):
    layer, x = cell(3, 4, 2, batch_first=True, bidirectional=True, dropout=0.5), torch.randn(2, 5, 3)
    packed = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)

    def results():
        torch.manual_seed(0)
        output, h_n = layer(packed)
        return [output.data, h_n, layer.eval()(x)[0], layer.train()(x)[0]]

    expected = results()
    with torch.device("meta"):  # as torch.set_default_device does
        made = results()
    assert all(map(torch.equal, made, expected))
