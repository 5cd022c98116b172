"""A step in one kernel: as exact as the operators, and left to them where something else is asked for."""

import copy
import gc
import math
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations
from torch.utils import swap_tensors

from minrnn_lightning import ops
from minrnn_lightning.nn import (
    Backbone,
    MinGRU,
    MinLSTM,
    backbone,
    fused_step,
    gru_interface,
    step_plan,
    unchanged_modules,
)
from minrnn_lightning.nn.fused_step import MOST_ROWS
from minrnn_lightning.ops.cpu import step_kernels

CASES = [  # options of the backbone, of the mixer, batch size
    ({"dim": 32}, {}, 1),
    ({"dim": 17, "expansion": 1.5}, {"activation": "identity", "signed": True}, 5),
    ({"dim": 16, "kernel_size": 0, "mlp_ratio": 0}, {"learn_initial_state": True}, 9),
    ({"dim": 20, "mixer": "minlstm"}, {}, 7),
    ({"dim": 16, "mixer": "minlstm", "kernel_size": 1}, {"normalize": False, "signed": True}, 4),
    ({"dim": 16, "mixer": "minlstm", "mlp_ratio": 1.5}, {"activation": "identity", "signed": True}, 3),
    ({"dim": 16, "mixer": "minlstm", "kernel_size": 2}, {"normalize": False}, MOST_ROWS),
    ({"dim": 20, "mlp_kernel_size": 4}, {}, 6),
    ({"dim": 16, "mixer": "minlstm", "kernel_size": 0, "mlp_kernel_size": 1}, {"signed": True}, 1),
]


def watch(monkeypatch, module, name):
    """For every call of a function from now on, whether it returned something: the kernel ran."""
    ran, function = [], getattr(module, name)

    def watched(*args):
        result = function(*args)
        ran.append(result is not None)
        return result

    monkeypatch.setattr(module, name, watched)
    return ran


@pytest.fixture
def fused(monkeypatch):
    """For every step of a backbone since it was made, whether the kernel ran."""
    return watch(monkeypatch, backbone, "fused_blocks")


@pytest.fixture
def stepped(monkeypatch):
    """For every step of a layer since it was made, whether the kernel ran."""
    return watch(monkeypatch, gru_interface, "fused_layers")


def build(dim=16, mixer="mingru", args=None, **options):
    torch.manual_seed(0)
    model = Backbone(dim, 2, mixer, mixer_args={mixer: args or {}}, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too are not those of the start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def trees(state):
    return [leaf for block in state for leaf in torch.utils._pytree.tree_leaves(block)]


@pytest.mark.parametrize(("options", "args", "batch"), CASES)
def test_a_step_equals_the_operators_in_float64(options, args, batch, fused):
    model = build(args=args, **options)
    exact = copy.deepcopy(model).double()
    x = 2 * torch.randn(batch, 6, options["dim"])
    errors = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        states = [model.initial_state(batch), model.initial_state(batch), exact.initial_state(batch)]
        for t in range(6):
            reset = torch.arange(batch) % 2 == t % 2 if t % 3 == 2 and not args.get("learn_initial_state") else None
            y, states[0] = model.step(x[:, t], states[0], reset)
            with ops.use_kernel("torch"):
                operators, states[1] = model.step(x[:, t], states[1], reset)
            expected, states[2] = exact.step(x[:, t].double(), states[2], reset)
            errors = torch.stack([errors, torch.stack([(z - expected).abs().max() for z in (y, operators)])]).amax(0)
        for one, other in zip(trees(states[0]), trees(states[2]), strict=True):
            assert one.dtype == torch.float32
            assert one.shape == other.shape
            torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=2e-6)
    assert fused[::3] == [True] * 6
    assert not any(fused[1::3] + fused[2::3])
    assert errors[0] <= errors[1] + 4 * torch.finfo(torch.float32).eps


def test_gelu_is_as_exact_as_that_of_pytorch():
    x = torch.linspace(-20, 20, 20_001)
    y = x.clone()
    step_kernels.activate(y.numpy(), len(y))
    errors = [(z - nn.functional.gelu(x.double())).abs().max() for z in (y, nn.functional.gelu(x))]
    assert errors[0] <= errors[1] + 4 * torch.finfo(torch.float32).eps
    special = torch.tensor([float("nan"), float("inf"), -1e30])
    step_kernels.activate(special.numpy(), 3)
    assert special[0].isnan()
    assert special[1] == float("inf")
    assert special[2] > -1e-7


def test_weights_are_read_in_every_step(fused):
    model = build()
    x, state = torch.randn(2, 16), model.initial_state(2)
    with torch.no_grad():
        before = model.step(x, state)[0]
        model.norm.bias.add_(1)
        torch.testing.assert_close(model.step(x, state)[0], before + 1)
        model.norm.bias.data = model.norm.bias.data - 1  # another tensor in the same parameter
        torch.testing.assert_close(model.step(x, state)[0], before)
        model.load_state_dict(build(args={"timescale": 2.0}).state_dict())
        with ops.use_kernel("torch"):
            expected = model.step(x, state)[0]
        torch.testing.assert_close(model.step(x, state)[0], expected)
        changed = {"norm.bias": model.norm.bias + 2}
        stepped = functional_call(
            Stepped(model), {f"model.{name}": value for name, value in changed.items()}, (x, state)
        )
        torch.testing.assert_close(stepped, expected + 2)
    assert fused == [True, True, True, False, True, True]


def test_modules_that_do_not_change_are_looked_at_once(fused, monkeypatch):
    model = build(mlp_kernel_size=4)
    x, state, looked = torch.randn(2, 16), model.initial_state(2), []
    holds = step_plan.Plan.holds
    monkeypatch.setattr(step_plan.Plan, "holds", lambda *args: looked.append(1) or holds(*args))
    unchanged = unchanged_modules()
    with torch.no_grad():
        expected, _ = model.step(x, state)
        for _ in range(3):
            with unchanged, unchanged_modules():
                pass
            with unchanged:
                y, _ = model.step(x, state)
            assert torch.equal(y, expected)
        model.norm.bias += 1  # in place: seen
        with unchanged:
            torch.testing.assert_close(model.step(x, state)[0], expected + 1)
            for parameter in model.parameters():  # elsewhere in memory: seen too
                parameter.data = torch.full_like(parameter, math.nan)
            assert model.step(x, state)[0].isnan().all()
            model.share_memory()  # moves it, and the old place is no longer mapped
            assert model.step(x, state)[0].isnan().all()
    assert fused == [True] * 7
    assert len(looked) == 3


class Stepped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, state):
        return self.model.step(x, state)[0]


def hook(model):
    model.blocks[0].mlp[1].register_forward_hook(lambda module, args, output: torch.zeros_like(output))


def replace(model):
    model.blocks[1].mlp[1] = nn.ReLU()


def parametrize(model):
    parametrizations.weight_norm(model.blocks[0].mixer.out)


def transpose(model):
    weight = model.blocks[0].mlp[0].weight
    weight.data = weight.data.t().contiguous().t()


class Observed(Tensor):
    """A tensor whose operators something else sees."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def change_class(model):
    weight = model.blocks[0].mlp[0].weight
    swap_tensors(weight, nn.Parameter(weight.data.as_subclass(Observed)))


def append(model):
    model.blocks[1].mlp.append(nn.Linear(16, 16))


def hook_dropout(model):
    model.blocks[0].dropout.register_forward_hook(lambda module, args, output: 2 * output)


def override(model):
    mixer = model.blocks[0].mixer
    mixer.mix_step = lambda x, state, **_: (torch.zeros_like(x), state)
    mixer.mix = lambda x, state, reset, **_: (torch.zeros_like(x), state)


@pytest.mark.parametrize(
    "change", [hook, replace, parametrize, transpose, change_class, append, hook_dropout, override]
)
def test_changed_modules_are_left_to_the_operators(change, fused):
    model = build()
    x, state = torch.randn(2, 16), model.initial_state(2)
    with torch.no_grad():
        model.step(x, state)
        change(model)
        y, _ = model.step(x, state)
        whole, _ = model(x[:, None])
    assert fused == [True, False]
    torch.testing.assert_close(y, whole[:, 0], rtol=1e-4, atol=1e-5)


def test_freed_weights_are_an_error_as_with_the_operators(fused):
    model, layer = build(), MinGRU(16, 16)
    x, state = torch.randn(2, 16), model.initial_state(2)
    with torch.no_grad():
        model.step(x, state)
        for weight in (model.blocks[0].mlp[0].weight, layer.weight_ih_l0):
            weight.data = torch.zeros(8 + weight.numel())[8:].view_as(weight)  # as in the flat parameter of FSDP
            weight.untyped_storage().resize_(0)
        for step in (lambda: model.step(x, state), lambda: layer.step(x)):
            with pytest.raises(RuntimeError):
                step()
    assert fused == [True, False]


def assign(model):
    model.blocks[1].mlp[2].weight.data = torch.randn(16, 64)


def exchange(model):
    model.blocks[0].mixer.out.bias = nn.Parameter(torch.randn(16))


def swap(model):
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]


def sign(model):
    model.blocks[0].mixer.options["signed"] = True


def drop(model):
    model.blocks[1].mlp = None


@pytest.mark.parametrize("change", [assign, exchange, swap, sign, drop])
def test_changes_that_the_kernel_has_are_seen(change, fused):
    model = build()
    x, state = torch.randn(2, 16), [(torch.randn(2, 3, 16), torch.randn(2, 16)) for _ in range(2)]
    with torch.no_grad():
        before, _ = model.step(x, state)
        change(model)
        y, _ = model.step(x, state)
        with ops.use_kernel("torch"):
            expected, _ = model.step(x, state)
    assert fused == [True, True, False]
    assert not torch.allclose(y, before, rtol=1e-3)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_what_needs_the_operators_gets_them(fused):
    model = build()
    x, state = torch.randn(2, 16), model.initial_state(2)
    assert model.step(x, state)[0].requires_grad
    with torch.no_grad():
        y = model.step(x, state)[0]
        mapped = vmap(lambda x_t: model.step(x_t, state)[0])(torch.stack([x, x]))
        torch.testing.assert_close(mapped, torch.stack([y, y]))
        with torch.autocast("cpu", torch.bfloat16):
            assert (model.step(x, state)[0] - y).abs().max() > 1e-4
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(model.step(forward_ad.make_dual(x, x), state)[0]).tangent
        assert tangent.abs().max() > 0
        model.requires_grad_(False)  # a trace holds no other constants
        traced = torch.jit.trace(lambda x_t: model.step(x_t, state)[0], x, check_trace=False)
        torch.testing.assert_close(traced(x + 1), model.step(x + 1, state)[0])
        assert model.step(torch.zeros(0, 16), model.initial_state(0))[0].shape == (0, 16)
        many = fused_step.most_rows(16) * torch.get_num_threads() + 1
        model.step(torch.randn(many, 16), model.initial_state(many))
        narrow = model.bfloat16().step(x.bfloat16(), state)[0]
    assert narrow.dtype == torch.bfloat16
    assert fused == [False, True, False, False, False, False, True, False, False, False]


def test_two_backbones_with_the_same_blocks():
    one, other = build(), build()
    other.blocks = one.blocks
    with torch.no_grad(), unchanged_modules():
        other.norm.bias += 5
        x, state = torch.randn(2, 16), one.initial_state(2)
        torch.testing.assert_close(other.step(x, state)[0], one.step(x, state)[0] + 5)


def test_contexts_that_end_in_another_order():
    def stream():
        with unchanged_modules():
            yield

    first, second = stream(), stream()
    next(first), next(second)
    first.close(), second.close()
    assert step_plan._entered.get() == ()
    shared = unchanged_modules()
    with shared, ThreadPoolExecutor(2) as pool:
        assert not any(pool.map(lambda _: shared.__exit__(), range(4)))
        assert step_plan._entered.get() == (shared,)


def test_plans_are_no_part_of_a_model():
    model = build()
    x, state = torch.randn(2, 16), model.initial_state(2)
    model.blocks[0].register_forward_hook(lambda *_, owner=model: owner)
    with torch.no_grad():
        model.step(x, state)
        model.blocks[0]._forward_hooks.clear()
        alike = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        model.norm.bias += 1
        for each in alike:
            torch.testing.assert_close(each.step(x, state)[0], model.step(x, state)[0] - 1)
        model.blocks[0].register_forward_hook(lambda *_, owner=model: owner)
        before = [weakref.ref(parameter) for parameter in model.parameters()]
        model.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()}, assign=True)
        model.step(x.bfloat16(), state)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not any(parameter() is not None for parameter in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type(dtype):
    model, layer = build(), MinGRU(16, 16)
    x, state = torch.randn(2, 16), model.initial_state(2)
    with torch.no_grad():
        expected, expected_of_layer = model.step(x, state)[0], layer.step(x)[0]
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(model.step(x, state)[0], expected)
            assert torch.equal(layer.step(x)[0], expected_of_layer)
        finally:
            torch.set_default_dtype(torch.float32)


def test_no_features_is_refused_as_by_the_operators():
    model = build()
    with torch.no_grad(), pytest.raises(RuntimeError, match="normalized_shape"):
        model.step(torch.zeros(2, 0), model.initial_state(2))


LAYERS = [  # class, sizes and options, batch size
    (MinGRU, (3, 5, 1), {}, 1),
    (MinGRU, (17, 33, 3), {"activation": "identity", "signed": True}, 6),
    (MinGRU, (4, 8, 2), {"learn_initial_state": True, "dropout": 0.5}, 9),
    (MinLSTM, (8, 20, 2), {}, 5),
    (MinLSTM, (5, 7, 2), {"normalize": False, "signed": True}, MOST_ROWS),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "batch"), LAYERS)
def test_a_step_of_layers_equals_the_operators_in_float64(kind, sizes, options, batch, stepped):
    torch.manual_seed(0)
    layer = kind(*sizes, batch_first=True, **options).eval()
    exact = copy.deepcopy(layer).double()
    x, h = 2 * torch.randn(batch, 4, sizes[0]), torch.randn(sizes[2], batch, sizes[1])
    reset = None if options.get("learn_initial_state") else torch.rand(batch, 4) < 0.3
    with torch.no_grad():
        expected, last = exact(x.double(), h.double(), reset=reset)
        state = h
        for t in range(4):
            starts = None if reset is None else reset[:, t]
            one, after = layer(x[:, t : t + 1], state, reset=None if starts is None else starts[:, None])
            y, state = layer.step(x[:, t], state, reset=starts)
            assert torch.equal(one[:, 0], y)
            assert torch.equal(after, state)
            torch.testing.assert_close(y.double(), expected[:, t], rtol=2e-5, atol=2e-6)
            y.zero_()  # no part of the state
        torch.testing.assert_close(state.double(), last, rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(layer.step(x[0, 0], h[:, 0])[0], layer.step(x[:1, 0], h[:, :1])[0][0])
    assert all(stepped)
    assert len(stepped) == 10


class Doubled(MinGRU):
    def _between(self, layer, x):
        return 2 * x


@pytest.mark.parametrize(
    "make",
    [
        lambda: MinGRU(3, 4, bias=False),
        lambda: MinGRU(3, 4, bidirectional=True),
        lambda: MinGRU(3, 4, dtype=torch.bfloat16),
        lambda: MinLSTM(3, 4, 2, dropout=0.5).train(),
        lambda: Doubled(3, 4),
        lambda: parametrizations.weight_norm(MinGRU(3, 4), "weight_ih_l0"),
    ],
)
def test_layers_that_the_kernel_lacks_have_the_operators(make, stepped):
    layer = make()
    x = torch.randn(1, 2, 3, dtype=next(layer.parameters()).dtype)
    with torch.no_grad():
        y, _ = layer(x)
        with ops.use_kernel("torch"):
            expected, _ = layer(x)
    assert not any(stepped)
    if not layer.training:
        torch.testing.assert_close(y, expected)


def test_a_step_of_layers_has_derivatives(stepped):
    layer, x = MinGRU(3, 4), torch.randn(2, 3)
    y, _ = layer.step(x)
    assert y.requires_grad
    with torch.no_grad(), forward_ad.dual_level():
        assert forward_ad.unpack_dual(layer.step(forward_ad.make_dual(x, x))[0]).tangent is not None
        assert vmap(lambda each: layer.step(each)[0])(torch.stack([x, x])).shape == (2, 2, 4)
        layer.step(x, delta_t=torch.ones(2))
    assert not any(stepped)
