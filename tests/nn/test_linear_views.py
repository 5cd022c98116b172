import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from minrnn_lightning import LanguageTask, MinGRU, MinLSTM
from minrnn_lightning.nn.linear_views import LinearView


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = MinLSTM(4, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def quantise(model, change):
    """Assign a new weight to every linear map that ``named_children`` finds, as torchao's ``quantize_`` does."""
    if isinstance(model, nn.Linear):
        model.weight = nn.Parameter(change(model.weight.detach()), requires_grad=False)
        return model
    for name, child in list(model.named_children()):
        new = quantise(child, change)
        if new is not child:
            setattr(model, name, new)
    return model


def swap(model):
    """Put a new module in the place of every linear map that ``named_children`` finds, as bitsandbytes' users do."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, nn.Linear(child.in_features, child.out_features, bias=child.bias is not None))
        else:
            swap(child)


def described(model):
    return repr(model), [name for name, _ in model.named_modules()], list(model.state_dict())


@pytest.mark.parametrize(
    "make", [Net, lambda: MinGRU(4, 8, bias=False), lambda: LanguageTask(5, 5, dim=8, depth=1, mixer="mingru")]
)
def test_what_is_assigned_becomes_the_weight(make):
    model = make()
    before = dict(model.named_parameters())
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    changed = quantise(copy.deepcopy(model), lambda weight: weight + 1)
    assert described(changed) == described(model)
    shifted = {name for name, p in changed.named_parameters() if torch.equal(p, before[name] + 1)}
    assert shifted == linears | {name for name in before if "weight_ih" in name}


def test_a_view_is_the_linear_map():
    layer, x = MinGRU(4, 8), torch.randn(3, 4)
    ((name, view),) = layer.named_children()
    assert name == "ih_l0"
    assert repr(view) == "LinearView(in_features=4, out_features=16, bias=True)"
    assert torch.equal(view(x), x @ layer.weight_ih_l0.T + layer.bias_ih_l0)
    assert not list(view.parameters())
    assert not view.state_dict()
    (_, without_bias) = next(MinGRU(4, 8, bias=False).named_children())
    assert without_bias.bias is None


def test_nothing_else_sees_them():
    net, seen = Net(), []
    net.apply(seen.append)
    seen += [*net.modules(), *net.rnn.children(), *net.half().modules()]
    assert not any(isinstance(module, LinearView) for module in seen)
    assert net.rnn.weight_ih_l0.dtype == torch.float16


def test_modules_in_their_place_have_no_effect():
    net, x = Net().eval(), torch.randn(2, 3, 4)
    swapped = copy.deepcopy(net)
    swap(swapped.rnn)
    for model in (swapped, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))):
        assert described(model)[1:] == described(net)[1:]
        assert torch.equal(model(x), net(x))


def test_weights_that_are_no_parameters_have_no_view():
    layer = MinGRU(4, 8, num_layers=2)
    parametrize.register_parametrization(layer, "weight_ih_l0", nn.Identity())
    assert [name for name, _ in layer.named_children()] == ["parametrizations", "ih_l1"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: MinGRU(32, 32, num_layers=2, bidirectional=True),
        lambda: MinLSTM(32, 32, num_layers=2, bias=False, activation="identity"),
        lambda: MinGRU(32, 32, learn_initial_state=True),
    ],
)
def test_torchao(make, dtype):
    torchao = pytest.importorskip("torchao.quantization")
    layer, x = make().to(dtype), torch.randn(5, 2, 32, dtype=dtype)
    quantized = copy.deepcopy(layer)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    assert {type(p).__name__ for name, p in quantized.named_parameters() if "weight" in name} == {"Int8Tensor"}
    assert described(quantized) == described(layer)
    with torch.no_grad():
        output, h_n = quantized(x)
        torch.testing.assert_close(output, layer(x)[0], rtol=0.05, atol=0.05)
        if not layer.bidirectional:
            h = quantized.initial_state(2)
            for x_t, expected in zip(x, output, strict=True):
                y, h = quantized.step(x_t, h)
                torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
        file = io.BytesIO()
        torch.save(quantized.state_dict(), file)
        loaded = copy.deepcopy(layer)
        loaded.load_state_dict(torch.load(io.BytesIO(file.getvalue())), assign=True)
        assert all(map(torch.equal, loaded(x), (output, h_n)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "attention"])
def test_torchao_of_a_task(mixer):
    torchao = pytest.importorskip("torchao.quantization")
    task, tokens = LanguageTask(5, 5, dim=32, depth=1, mixer=mixer).eval(), torch.randint(0, 5, (2, 6))
    quantized = copy.deepcopy(task)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    with torch.no_grad():
        logits = quantized(tokens)[0]
        torch.testing.assert_close(logits, task(tokens)[0], rtol=0.05, atol=0.05)
        torch.testing.assert_close(quantized.step(tokens[:, 0], quantized.initial_state(2))[0], logits[:, 0])
