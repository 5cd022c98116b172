"""States of backbones: selected and replaced rows, resets of steps, and cuts in bfloat16."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from minrnn_lightning.nn import Backbone, MinGRU, select_state, where
from minrnn_lightning.nn.functional import min_gru

DIM, BATCH, LENGTH = 8, 3, 12
MIXERS = ["mingru", "attention", ["gru", "minlstm"]]


@pytest.fixture(params=MIXERS, ids=str)
def model(request):
    torch.manual_seed(0)
    return Backbone(DIM, 2, request.param).double().eval()


@pytest.mark.parametrize("rows", [torch.tensor([True, False, True]), torch.tensor([0, 2]), slice(0, 3, 2)], ids=str)
def test_selected_rows_go_on_alone(model, rows):
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    expected, _ = model(x)
    _, state = model(x[:, :7])
    torch.testing.assert_close(model(x[rows, 7:], select_state(state, rows))[0], expected[rows, 7:])


def test_where_takes_rows_of_states_of_different_lengths(model):
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    mask, rest = torch.tensor([True, False, True]), torch.randn(BATCH, 4, DIM, dtype=torch.float64)
    long, short = model(x)[1], model(x[:, :5])[1]
    for one, two in ((long, short), (short, long), (model.initial_state(BATCH), long)):
        expected = torch.where(mask[:, None, None], model(rest, one)[0], model(rest, two)[0])
        torch.testing.assert_close(model(rest, where(mask, one, two))[0], expected)


def test_a_reset_of_a_step_starts_from_the_learned_state():
    torch.manual_seed(0)
    model = Backbone(DIM, 2, "minlstm", mixer_args={"minlstm": {"learn_initial_state": True}}, kernel_size=0).double()
    x, reset = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64), torch.rand(BATCH, LENGTH) < 0.3
    state, outputs = model.initial_state(BATCH), []
    for t in range(LENGTH):
        y, state = model.step(x[:, t], state, reset=reset[:, t])
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), model(x, reset=reset)[0])
    torch.stack(outputs, 1).square().sum().backward()
    assert all(block.mixer.rnn.initial.grad.abs().max() > 0 for block in model.blocks)


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "gated_mingru"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_long_memories_survive_cuts_in_bfloat16(mixer, chunk):
    torch.manual_seed(0)
    model = Backbone(DIM, 1, mixer, mixer_args={mixer: {"timescale": 10_000}}, kernel_size=0).bfloat16().eval()
    x = torch.randn(BATCH, 700, DIM).bfloat16() + 1
    with torch.no_grad():
        _, end = model(x)
        state = None
        for piece in x.split(chunk, 1):
            _, state = model(piece, state)
    for one, other in zip(tree_leaves(state), tree_leaves(end), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_final_state_has_the_gradient_of_the_last_one():
    torch.manual_seed(0)
    logits = [torch.randn(BATCH, 50, DIM).bfloat16().requires_grad_() for _ in range(2)]
    h_0 = torch.rand(BATCH, DIM, requires_grad=True)
    _, final = min_gru(*logits, h_0, return_state=True)
    exact = min_gru(*(logit.float() for logit in logits), h_0)[:, -1]
    assert torch.equal(final, exact)
    for grad, expected in zip(
        torch.autograd.grad(final.sum(), [*logits, h_0]), torch.autograd.grad(exact.sum(), [*logits, h_0]), strict=True
    ):
        torch.testing.assert_close(grad, expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2])
def test_whoever_writes_to_an_initial_state_changes_nothing_else(batch):
    options = {"learn_initial_state": True, "activation": "identity"}
    layer, backbone = MinGRU(3, 4, **options), Backbone(8, 1, mixer_args={"mingru": options})
    attention = Backbone(8, 1, "attention", mixer_args={"attention": {"window": 4, "heads": 1}})
    for model in (layer, backbone, attention):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with torch.no_grad():
            leaves = tree_leaves(model.initial_state(batch))
            for number, leaf in enumerate(leaves):
                leaf.fill_(number + 2)
        assert all((leaf == torch.tensor(number + 2).to(leaf.dtype)).all() for number, leaf in enumerate(leaves))
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
