"""PyTorch's own tests of ``nn.GRU``, for ``nn.GRU``, ``MinGRU`` and ``MinLSTM``.

The layers, inputs, references and errors of the first part are those that PyTorch ships for its ``test_modules.py``;
the second part says again, under their names there, what its ``test_nn.py`` expects of ``nn.GRU``. CUDA is left out.

    python tests/nn/test_pytorch_rnn.py

prints what passed and failed, by name, side by side.
"""

import contextlib
import io
import pickle
from collections import Counter, defaultdict
from copy import deepcopy
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from minrnn_lightning import MinGRU, MinLSTM

pytest.importorskip("expecttest", reason="PyTorch's testing module imports it")
from torch.testing._internal import common_modules as shipped
from torch.testing._internal.common_utils import freeze_rng_state

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=[nn.GRU, MinGRU, MinLSTM], ids=lambda cell: cell.__name__)
def cell(request):
    torch.manual_seed(0)
    return request.param


def samples(cell, dtype=torch.float64, requires_grad=False):
    """Each layer that PyTorch tests, its arguments, its input and the reference."""
    info, training = SimpleNamespace(module_cls=cell), True
    options = {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad, "training": training, "is_rnn": False}
    for with_packed in (False, True):
        found = shipped.module_inputs_torch_nn_RNN_GRU(info, with_packed_sequence=with_packed, **options)
        for sample in found:
            arguments = sample.constructor_input.kwargs
            if with_packed != any(not isinstance(x, torch.Tensor) for x in sample.forward_input.args):
                continue
            yield cell(**arguments).to(dtype), arguments, sample.forward_input.args, sample.reference_fn


def tensors(output):
    """The tensors that a layer returns."""
    return [getattr(x, "data", x) for x in output]


# What test_modules.py does with every module.


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(cell, dtype):
    for layer, _, inputs, reference in samples(cell, dtype):
        if isinstance(inputs[0], torch.Tensor):
            torch.testing.assert_close(layer(*inputs), reference(layer, *inputs))
        else:
            padded, lengths = pad_packed_sequence(inputs[0])
            steps = [
                layer(padded[:length, i : i + 1].transpose(0, int(layer.batch_first)))[1]
                for i, length in enumerate(lengths)
            ]
            torch.testing.assert_close(layer(*inputs)[1], torch.cat(steps, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_factory_kwargs(cell, dtype):
    for _, arguments, _, _ in samples(cell):
        for tensor in cell(**arguments, device="meta", dtype=dtype).state_dict().values():
            assert (tensor.device.type, tensor.dtype) == ("meta", dtype)


def test_repr(cell):
    for layer, *_ in samples(cell):
        assert str(layer).startswith(cell.__name__)
        assert repr(layer) == str(layer)


def test_pickle(cell):
    for layer, _, inputs, _ in samples(cell):
        again = pickle.loads(pickle.dumps(layer))
        torch.testing.assert_close(tensors(again(*inputs)), tensors(layer(*inputs)), rtol=0, atol=0)


def test_deepcopy(cell):
    for layer, _, inputs, _ in samples(cell):
        torch.testing.assert_close(tensors(deepcopy(layer)(*inputs)), tensors(layer(*inputs)), rtol=0, atol=0)


def test_save_load(cell):
    for layer, arguments, inputs, _ in samples(cell):
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        again = cell(**arguments).double()
        again.load_state_dict(torch.load(file))
        torch.testing.assert_close(tensors(again(*inputs)), tensors(layer(*inputs)), rtol=0, atol=0)


def test_train_eval_mode(cell):
    for layer, *_ in samples(cell):
        assert layer.training
        assert not layer.eval().training
        assert layer.train().training


def test_if_train_and_eval_modes_differ(cell):
    layer, x = cell(3, 20, 2, dropout=0.5), torch.randn(5, 2, 3)
    assert not torch.equal(layer(x)[0], layer.eval()(x)[0])


@pytest.mark.parametrize("swap", [False, True])
def test_to(cell, swap):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for layer, _, inputs, _ in samples(cell):
            parameters = list(layer.parameters())
            with torch.no_grad():  # a graph would hold the parameters, which could then not be swapped
                expected = tensors(layer(*inputs))
            layer.to(torch.float32).to(torch.float64)
            assert all(mine is theirs for mine, theirs in zip(layer.parameters(), parameters, strict=True))
            torch.testing.assert_close(tensors(layer(*inputs)), expected, rtol=1e-5, atol=1e-6)
            assert {p.device.type for p in layer.to("meta").parameters()} == {"meta"}
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def test_to_empty(cell):
    for layer, arguments, inputs, _ in samples(cell):
        moved = cell(**arguments, device="meta", dtype=torch.float64).to_empty(device="cpu")
        moved.load_state_dict(layer.state_dict())
        torch.testing.assert_close(tensors(moved(*inputs)), tensors(layer(*inputs)), rtol=0, atol=0)


def test_non_contiguous_tensors(cell):
    for layer, _, inputs, _ in samples(cell):
        if not isinstance(inputs[0], torch.Tensor):
            continue
        results = []
        for strided in (False, True):
            leaves = [x.detach().clone() for x in inputs]
            if strided:
                leaves = [torch.stack([x, x], -1)[..., 0] for x in leaves]
                assert not any(x.is_contiguous() for x in leaves)
            output, h_n = layer(*(x.requires_grad_() for x in leaves))
            gradients = torch.autograd.grad(output.sum() + h_n.square().sum(), [*leaves, *layer.parameters()])
            results.append([output, h_n, *gradients])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["grad", "gradgrad"])
def test_grad_and_gradgrad(cell, check):
    for layer, _, inputs, _ in samples(cell, requires_grad=True):
        if not isinstance(inputs[0], torch.Tensor):
            continue
        names, parameters = zip(*layer.named_parameters(), strict=True)

        def run(*given, layer=layer, names=names, n=len(inputs)):  # noqa: B008
            with freeze_rng_state():
                weights = dict(zip(names, given[n:], strict=True))
                return torch.func.functional_call(layer, weights, given[:n])

        assert check(run, (*inputs, *parameters), fast_mode=True)


def errors():
    info = SimpleNamespace(module_cls=nn.GRU)
    return shipped.module_error_inputs_torch_nn_RNN_GRU(info, "cpu", torch.float32, False, True)


def test_errors(cell):
    for error in errors():
        given, called = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on is shipped.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                cell(*given.args, **given.kwargs)
        else:
            layer = cell(*given.args, **given.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                layer(*called.args, **called.kwargs)


# What test_nn.py does with recurrent layers.


def test_rnn_args_check(cell):
    layer, x, h = cell(3, 5, 1), torch.randn(7, 4, 3), torch.randn(1, 4, 5)
    layer(x, h)
    bad = [(x[..., :2], h), (x, h[..., :2]), (x, h[:, :2]), (x, torch.randn(2, 4, 5)), (x[0, 0], h), (x, h[0])]
    for given in bad:
        with pytest.raises(RuntimeError if given[0].dim() > 1 else ValueError):
            layer(*given)


def test_rnn_initial_hidden_state(cell):
    for bidirectional, layers in product((False, True), (1, 3)):
        layer, x = cell(5, 6, layers, bidirectional=bidirectional), torch.randn(7, 2, 5)
        zeros = torch.zeros(layers * (1 + bidirectional), 2, 6)
        torch.testing.assert_close(layer(x, zeros), layer(x), rtol=0, atol=0)


def test_rnn_batch_first(cell):
    for bidirectional in (False, True):
        layer = cell(3, 5, 2, bidirectional=bidirectional)
        other = cell(3, 5, 2, bidirectional=bidirectional, batch_first=True)
        other.load_state_dict(layer.state_dict())
        x = torch.randn(7, 4, 3)
        torch.testing.assert_close(other(x.transpose(0, 1))[0].transpose(0, 1), layer(x)[0])
        torch.testing.assert_close(other(x.transpose(0, 1))[1], layer(x)[1])


@pytest.mark.parametrize("train", [True, False])
def test_RNN_dropout(cell, train):  # noqa: N802
    for p in (0.0, 0.276, 0.731, 1.0):
        layer, x = cell(10, 1000, 2, bias=False, dropout=p).train(train), torch.randn(1, 1, 10)
        output, h_n = layer(x)
        assert output.shape == (1, 1, 1000)
        if p in (0, 1) or not train:
            torch.testing.assert_close(layer(x), (output, h_n), rtol=0, atol=0)
        else:
            assert not torch.equal(layer(x)[0], output)
            torch.testing.assert_close(layer(x)[1][0], h_n[0])  # what is dropped comes between the layers


@pytest.mark.parametrize("train", [True, False])
def test_RNN_dropout_state(cell, train):  # noqa: N802
    for p in (0.0, 0.1234):
        layer, x, h = cell(100, 100, 2, dropout=p).train(train), torch.rand(3, 2, 100), torch.rand(2, 2, 100)
        others = [layer(x, h), pickle.loads(pickle.dumps(layer))(x, h)]
        with freeze_rng_state():
            expected = layer(x, h)
        torch.testing.assert_close(layer(x, h), expected, rtol=0, atol=0)
        for output, _ in others:
            assert torch.equal(output, expected[0]) == (p == 0 or not train)


@pytest.mark.parametrize("train", [True, False])
def test_RNN_change_dropout(cell, train):  # noqa: N802
    layer, x = cell(100, 100, 2, dropout=0).train(train), torch.rand(3, 2, 100)
    first = layer(x)[0]
    for p in (0, 0.5, 0, 0.7, 0.2, 1, 0.2, 0):
        layer.dropout = p
        output, again = layer(x)[0], layer(x)[0]
        assert torch.equal(output, again) == (p in (0, 1) or not train)
        assert torch.equal(output, first) == (p == 0 or not train)


def test_rnn_retain_variables(cell):
    layer, x = cell(10, 20, 2).double(), torch.randn(6, 7, 10, dtype=torch.double, requires_grad=True)
    output, _ = layer(x)
    output.sum().backward(retain_graph=True)
    gradients = [x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    for _ in range(4):
        layer.zero_grad()
        x.grad = None
        output.sum().backward(retain_graph=True)
        torch.testing.assert_close([x.grad, *(p.grad for p in layer.parameters())], gradients, rtol=0, atol=0)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_variable_sequence(cell, bidirectional, enforce_sorted):
    """Packed sequences, a state for each, give what each alone does; gradients too."""
    layer, lengths = cell(3, 5, 2, bidirectional=bidirectional).double(), [6, 5, 3, 3, 1]
    lengths = lengths if enforce_sorted else lengths[2:] + lengths[:2]
    x = torch.randn(6, 5, 3, dtype=torch.double, requires_grad=True)
    h = torch.randn(2 * (1 + bidirectional), 5, 5, dtype=torch.double, requires_grad=True)
    packed, h_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), h)
    output, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    alone = [layer(x[:n, i : i + 1], h[:, i : i + 1].contiguous()) for i, n in enumerate(lengths)]
    for i, (y, final) in enumerate(alone):
        torch.testing.assert_close(output[: lengths[i], i : i + 1], y)
        torch.testing.assert_close(h_n[:, i : i + 1], final)
    sums = [output.square().sum() + h_n.sum(), sum(y.square().sum() + final.sum() for y, final in alone)]
    torch.testing.assert_close(*(torch.autograd.grad(each, [x, h, *layer.parameters()]) for each in sums))


def test_packed_wrong_order_and_state(cell):
    with pytest.raises(RuntimeError, match="sorted"):
        pack_sequence([torch.randn(2, 3), torch.randn(4, 3)])
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        cell(3, 5)(pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), torch.randn(1, 3, 5))


def test_rnn_weight_norm(cell):
    layer, x = cell(4, 5, 1), torch.randn(7, 2, 4)
    expected = layer(x)[0]
    layer = parametrizations.weight_norm(layer, name="weight_ih_l0")
    assert "parametrizations.weight_ih_l0.original0" in dict(layer.named_parameters())
    torch.testing.assert_close(layer(x)[0], expected)
    with torch.no_grad():
        layer.parametrizations.weight_ih_l0.original0.mul_(2)
    assert not torch.allclose(layer(x)[0], expected)


def test_rnn_pruning(cell):
    layer = cell(32, 32)
    prune.l1_unstructured(layer, "weight_ih_l0", 0.5)
    layer(torch.ones(100, 1, 32))[0].sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * parameter.grad
    layer(torch.ones(100, 1, 32))
    assert (layer.weight_ih_l0 == 0).float().mean() == 0.5
    assert "weight_ih_l0_mask" in layer.state_dict()


def test_projections_errors_on_gru_and_rnn(cell):
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        cell(input_size=10, hidden_size=20, num_layers=2, proj_size=10)


def test_layer_that_ends_in_a_module_with_hooks(cell):
    calls = []
    layer = cell(3, 5)
    layer.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs)))
    layer.register_forward_hook(lambda module, inputs, output: calls.append(output[0].shape))
    output, _ = layer(torch.randn(4, 2, 3))
    assert calls == [1, output.shape]


class _Table:
    """Counts of what passed and failed, by the name of the test and the layer."""

    def __init__(self):
        self.counts = defaultdict(Counter)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
            layer = next(each for each in parameters.rstrip("]").split("-") if each in ("GRU", "MinGRU", "MinLSTM"))
            self.counts[name][layer, report.outcome] += 1

    def show(self):
        print(f"{'passed/failed':48}{'nn.GRU':>10}{'MinGRU':>10}{'MinLSTM':>10}")
        for name, found in self.counts.items():
            cells = [f"{found[each, 'passed']}/{found[each, 'failed']}" for each in ("GRU", "MinGRU", "MinLSTM")]
            print(f"{name:48}{cells[0]:>10}{cells[1]:>10}{cells[2]:>10}")


if __name__ == "__main__":
    table = _Table()
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([__file__, "-q", "-n0", "-p", "no:cacheprovider"], plugins=[table])
    table.show()
    raise SystemExit(status)
