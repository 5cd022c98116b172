"""A backbone that computes its activations again, chunk by chunk, has the gradient of the complete sequence."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from minrnn_lightning.commands.benchmark.chunks import gradients as gradients_of
from minrnn_lightning.commands.benchmark.measure import peak_memory
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.chunks import split_steps
from minrnn_lightning.tasks import LanguageTask


def gradients(chunk, mixer, dropout=0.0, reset=None, delta_t=None):
    torch.manual_seed(0)
    backbone = Backbone(8, 2, mixer, dropout=dropout, chunk=chunk, kernel_size=0 if delta_t is not None else 3).double()
    x = torch.randn(2, 50, 8, dtype=torch.float64, requires_grad=True)
    before = [leaf.requires_grad_() for leaf in tree_leaves(backbone.initial_state(2)) if leaf.is_floating_point()]
    state = backbone.initial_state(2)
    state = torch.utils._pytree.tree_unflatten(before, torch.utils._pytree.tree_flatten(state)[1])
    y, after = backbone(x, state, reset, delta_t=delta_t)
    loss = (y * torch.randn_like(y)).sum() + sum((leaf**2).sum() for leaf in tree_leaves(after))
    return [y, *tree_leaves(after), *torch.autograd.grad(loss, [x, *before, *backbone.parameters()])]


@pytest.mark.parametrize("chunk", [1, 16, 50, 64])
@pytest.mark.parametrize("mixer", ["mingru", "minlstm", ["mamba", "lstm"]])
def test_gradient(chunk, mixer):
    reset = torch.rand(2, 50) < 0.1
    torch.testing.assert_close(gradients(chunk, mixer, reset=reset), gradients(None, mixer, reset=reset))


def test_times():
    delta_t = torch.rand(2, 50, dtype=torch.float64)
    expected = gradients(None, "mingru", delta_t=delta_t)
    torch.testing.assert_close(gradients(7, "mingru", delta_t=delta_t), expected)


def test_dropout_is_the_same_in_backward():
    """With other random numbers in backward, a central difference would not equal the derivative."""
    torch.manual_seed(0)
    backbone = Backbone(8, 2, dropout=0.3, chunk=16).double()
    x, direction = torch.randn(2, 2, 50, 8, dtype=torch.float64)

    def loss(x):
        torch.manual_seed(1)
        return (backbone(x)[0] ** 3).sum()

    slope = torch.autograd.grad(loss(x.requires_grad_()), x)[0].mul(direction).sum()
    with torch.no_grad():
        difference = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0)


def test_nothing_but_states_is_stored():
    """Beside what it keeps of the last chunk, autograd keeps less than one activation of the complete sequence."""
    backbone, x = Backbone(8, 2, chunk=16), torch.randn(1, 1600, 8)

    def kept(x):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(x)
        return sum(sizes)

    assert kept(x) - kept(x[:, -16:]) < x.numel()


def test_split_steps():
    """Derivatives of first and second order, also where a loss does not have all chunks, and of a second pass."""
    weights = torch.randn(2, 10, 3, dtype=torch.float64)
    for chosen in ([0], [1], [3], [0, 2], [1, 3], [0, 1, 2, 3]):
        x = torch.randn(2, 10, 3, dtype=torch.float64, requires_grad=True)
        found = []
        for split in (split_steps, lambda x, chunk: torch.split(x, chunk, 1)):
            parts = zip(split(x, 3), torch.split(weights, 3, 1), strict=True)
            loss = sum((part**3 * weight).sum() for k, (part, weight) in enumerate(parts) if k in chosen)
            first, again = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
            graph = torch.autograd.grad(loss, x, create_graph=True)[0]
            found.append([first, again, graph, torch.autograd.grad((graph**2).sum(), x)[0]])
        torch.testing.assert_close(*found)


def test_bad_chunk():
    with pytest.raises(InputError, match=r"^chunk must be at least 1, or null for none, got 0$"):
        LanguageTask(5, 5, dim=8, depth=1, chunk=0)
    for chunk in (1.5, "4"):
        with pytest.raises(InputError, match=rf"^chunk must be a whole number, or null for none, got {chunk!r}$"):
            Backbone(8, 1, chunk=chunk)


def test_task_passes_it_on():
    assert LanguageTask(5, 5, dim=8, depth=1, chunk=4096).backbone.chunk == 4096


def test_memory():
    """A million steps take output, its gradient, that of the input and 0.1 GB: memory is linear in the length."""
    backbone = Backbone(128, 2, chunk=512)

    def peak(length):
        x = torch.randn(1, length, 128, requires_grad=True)
        return peak_memory(gradients_of(backbone, x), torch.device("cpu"))

    _, short, middle, long = map(peak, (4096, 4096, 6144, 8192))  # the first allocates what is kept besides
    assert long - middle == pytest.approx(middle - short, rel=0.05)
    assert long + (long - middle) / 2048 * (1_000_000 - 8192) < 3 * 512e6 + 0.1e9


def test_under_torch_func():
    backbone, x = Backbone(8, 1, chunk=16).double(), torch.randn(2, 50, 8, dtype=torch.float64)
    complete = Backbone(8, 1).double()
    complete.load_state_dict(backbone.state_dict())
    tangent = torch.randn_like(x)

    def results(model):
        def loss(x):
            return model(x)[0].sin().sum()

        gradients = torch.func.vmap(torch.func.grad(lambda row: loss(row[None])))(x)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.unpack_dual(loss(torch.autograd.forward_ad.make_dual(x, tangent))).tangent
        return [torch.func.grad(loss)(x), *torch.func.jvp(loss, (x,), (tangent,)), gradients, dual]

    torch.testing.assert_close(results(backbone), results(complete))
