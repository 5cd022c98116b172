"""Layers and backbones under ``torch.func``: second and forward derivatives, gradients of each sample, tracing."""

import io

import pytest
import torch
from torch import func
from torch.autograd import gradgradcheck

from minrnn_lightning import Backbone, MinGRU, MinLSTM
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.functional import min_gru, min_lstm


@pytest.mark.parametrize(
    "options",
    [{"signed": True}, {"delta_t": True}, {"initial_state": True, "reset": True}, {"reset": True, "reverse": True}],
)
@pytest.mark.parametrize(
    ("function", "count", "form"), [(min_gru, 2, {}), (min_lstm, 3, {}), (min_lstm, 3, {"normalize": False})]
)
def test_functions(function, count, form, options):
    torch.manual_seed(0)
    given = {"delta_t": torch.rand(1, 3) + 0.1, "reset": torch.tensor([[False, True, False]])}
    given["initial_state"] = torch.randn(1, dtype=torch.float64)
    options = form | {name: given.get(name, value) for name, value in options.items()}
    logits = [torch.randn(1, 3, 1, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    assert gradgradcheck(lambda *logits: function(*logits, **options), logits, check_fwd_over_rev=True)


@pytest.mark.parametrize("layer", [MinGRU, MinLSTM])
def test_gradients_of_each_sample_are_those_of_batches_of_one(layer):
    rnn, x = layer(3, 4, 2, batch_first=True, bidirectional=True), torch.randn(3, 5, 3)
    parameters = dict(rnn.named_parameters())

    def loss(parameters, x):
        return func.functional_call(rnn, parameters, (x,))[0].square().sum()

    of_each = torch.vmap(func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        one = torch.autograd.grad(rnn(sample)[0].square().sum(), list(parameters.values()))
        torch.testing.assert_close([of_each[name][i] for name in parameters], list(one))


def test_gradient_penalty():
    rnn, x = MinGRU(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    weight = rnn.weight_ih_l0

    def penalty():
        inputs = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(rnn(inputs)[0].sum(), inputs, create_graph=True)
        return (gradient.norm() - 1).square()

    (slopes,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-5 * direction
    above = penalty()
    with torch.no_grad():
        weight -= 2e-5 * direction
    torch.testing.assert_close((slopes * direction).sum(), (above - penalty()) / 2e-5, rtol=1e-5, atol=1e-8)


def test_convolution():
    conv, x = CausalConv(2, 3).double(), torch.randn(1, 4, 2, dtype=torch.float64)
    parameters = dict(conv.named_parameters())

    def ours(parameters, x):
        return func.functional_call(conv, parameters, (x,))[0].pow(3).sum()

    def by_definition(parameters, x):
        padded = torch.cat([x.new_zeros(1, 2, 2), x], 1)
        lags = (parameters["weight"][lag] * padded[:, 2 - lag : 6 - lag] for lag in range(3))
        return (parameters["bias"] + sum(lags)).pow(3).sum()

    hessian = func.jacrev(func.jacrev(by_definition, (0, 1)), (0, 1))(parameters, x)
    for outer in (func.jacfwd, func.jacrev):
        for inner in (func.jacfwd, func.jacrev):
            torch.testing.assert_close(outer(inner(ours, (0, 1)), (0, 1))(parameters, x), hessian)


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "gated_mingru"])
def test_backbone(mixer):
    backbone = Backbone(4, 1, mixer, kernel_size=3).double().eval()
    x, direction = torch.randn(2, 2, 5, 4, dtype=torch.float64)

    def loss(x):
        return backbone(x)[0].pow(3).sum()

    gradient = func.grad(loss)
    numerical = (gradient(x + 1e-5 * direction) - gradient(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(func.jvp(gradient, (x,), (direction,))[1], numerical, rtol=1e-5, atol=1e-7)
    product = func.grad(lambda x: (gradient(x) * direction).sum())(x)
    torch.testing.assert_close(product, numerical, rtol=1e-5, atol=1e-7)


class States(torch.nn.Module):
    """The sequence that a backbone makes, without its state."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[0]


def test_a_traced_backbone_is_saved_and_loaded():
    module = States(Backbone(8, 1, kernel_size=4).eval())
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, torch.randn(2, 9, 8), check_trace=False), file)
    file.seek(0)
    x = torch.randn(3, 30, 8)
    torch.testing.assert_close(torch.jit.load(file)(x), module(x))


def test_mamba_under_torch_func():
    """Without the checkpoints that save memory, whose hooks ``torch.func`` refuses."""
    torch.manual_seed(0)
    model, x = Backbone(4, 1, "mamba").double(), torch.randn(2, 5, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return func.functional_call(model, parameters, (x,))[0].pow(3).sum()

    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    actual = func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    torch.testing.assert_close(list(actual.values()), list(expected))
