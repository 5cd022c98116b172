"""The baselines compute what they are said to compute."""

from types import SimpleNamespace

import pytest
import torch

from minrnn_lightning.commands.benchmark.accuracy import relative_error
from minrnn_lightning.commands.benchmark.baselines import CausalAttention, Decoder, GRUCellLoop, GRULanguageModel
from minrnn_lightning.commands.benchmark.generate import read, size, walk
from minrnn_lightning.commands.benchmark.layer import BASE, LAYERS, build, forward_backward
from minrnn_lightning.commands.benchmark.measure import Linears
from minrnn_lightning.commands.benchmark.step import LAYERS as STEPPERS
from minrnn_lightning.commands.benchmark.step import Walk, blocks, products_alone
from minrnn_lightning.commands.benchmark.train import LOG_SPACE, PRODUCTS, STEP, TimedSteps, log_space_rnn
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.tasks import LanguageTask


def test_the_paper_s_layer_computes_the_same_as_ours():
    ours, paper = build(["mingru", "logspace"], 6).values()
    with torch.no_grad():
        ours.weight_ih_l0.copy_(torch.cat([paper.gate.weight, paper.candidate.weight]))
        ours.bias_ih_l0.copy_(torch.cat([paper.gate.bias, paper.candidate.bias]))
    x = torch.randn(2, 30, 6)
    torch.testing.assert_close(paper(x), ours(x)[0], rtol=1e-4, atol=1e-5)


def test_loop_of_cells_is_nn_gru():
    loop, gru = GRUCellLoop(6), torch.nn.GRU(6, 6, batch_first=True)
    gru.load_state_dict({f"{name}_l0": value for name, value in loop.cell.state_dict().items()})
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(loop(x), gru(x)[0])


@pytest.mark.parametrize("dim", [6, 128])
def test_attention_is_causal(dim):
    attention, x = CausalAttention(dim), torch.randn(2, 9, dim)
    y = attention(x)
    x[:, 5:] += 1
    changed = attention(x)
    torch.testing.assert_close(changed[:, :5], y[:, :5])
    assert not torch.allclose(changed[:, 5], y[:, 5])
    assert attention.size == (64 if dim == 128 else dim)


def test_all_map_to_the_same_shape_and_have_gradients():
    x = torch.randn(2, 7, 6, requires_grad=True)
    built = build(list(LAYERS), 6)
    assert next(iter(built)) == BASE
    for name, module in built.items():
        gradients = forward_backward(module, x, torch.ones_like(x))()
        assert [gradient.shape for gradient in gradients] == [x.shape, *(p.shape for p in module.parameters())], name
    products = built[BASE](x)
    assert [output.shape for output in products] == [x.shape] * 2


@torch.inference_mode()
@pytest.mark.parametrize("make", [Decoder, GRULanguageModel])
def test_steps_equal_the_parallel_form(make, monkeypatch):
    """Read in one piece, in chunks, and step by step."""
    model, tokens = make(11, 8, 2).eval(), torch.randint(11, (2, 12))
    capacity = (12,) if make is Decoder else ()
    whole, _ = model(tokens, model.initial_state(2, *capacity))
    monkeypatch.setattr("minrnn_lightning.commands.benchmark.generate.CHUNK", 4)
    state = read(model, tokens[:, :7], extra_steps=5)
    rest, _ = model(tokens[:, 7:], state)
    torch.testing.assert_close(rest, whole[:, 7:])
    for t in range(7, 12):
        logits, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(logits, whole[:, t])


@torch.inference_mode()
def test_walk_starts_from_the_same_state_each_time():
    model, tokens = Decoder(11, 8, 2).eval(), torch.randint(11, (1, 6))
    logits = []
    model.head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    step = walk(model, tokens[:, 4:], read(model, tokens[:, :4], extra_steps=2))
    logits.clear()
    step()
    step()
    torch.testing.assert_close(logits[:2], logits[2:])


def steppers(dim, depth):
    made = {name: make(dim, depth) for name, (_, make) in STEPPERS.items()}
    made |= {f"blocks of {mixer}": blocks(mixer, dim, depth, 3, 2) for mixer in ("mingru", "attention")}
    return made


@torch.inference_mode()
@pytest.mark.parametrize("name", steppers(2, 1))
def test_steppers_go_on_where_the_context_ends(name):
    """The outputs of the steps are those of reading everything in one call."""
    torch.manual_seed(0)
    stack, x = steppers(8, 2)[name], torch.randn(3, 9, 8)
    module = getattr(stack.module, "rnn", stack.module)  # of cells, the layer with the same weights
    start = stack.module.read(x[:, :0], 9) if name == "attention" else None
    whole, _ = module(x, start) if name == "attention" else module(x)
    walk, outputs = Walk(stack, x, 6), []

    def step(x_t, state):
        y, state = stack.step(x_t, state)
        outputs.append(y)
        return y, state

    walk.stack = stack._replace(step=step)
    for _ in range(2):  # always from the same state
        walk()
        torch.testing.assert_close(torch.stack(outputs, 1), whole[:, 6:], rtol=1e-4, atol=1e-5)
        outputs.clear()


@torch.inference_mode()
def test_cells_have_the_parameters_of_the_layer_that_reads():
    for name, count in (("grucell", 6), ("lstmcell", 8)):
        module = STEPPERS[name][1](5, 2).module.to(dtype=torch.float64)
        assert sum(p.numel() for p in module.parameters()) == 2 * (count * 25 + count * 5)
        assert {p.dtype for p in module.parameters()} == {torch.float64}


@torch.inference_mode()
def test_products_of_a_step():
    stacks = {name: STEPPERS[name][1](8, 2) for name in ("mingru", "minlstm", "gru")}
    alone = products_alone(stacks, torch.randn(3, 8), steps=5)
    assert set(alone) == {"products of mingru", "products of minlstm"}  # nn.GRU calls its own kernel
    for name, blocks_of_weights in (("mingru", 2), ("minlstm", 3)):
        with Linears() as linears:
            alone[f"products of {name}"]()
        weights = [weight for _, weight in linears.operands]
        assert sum(weight.numel() for weight in weights) == 5 * 2 * blocks_of_weights * 8 * 8


@torch.inference_mode()
def test_size_of_states():
    decoder = Decoder(11, 8, 3)
    state = read(decoder, torch.zeros(2, 5, dtype=torch.long), extra_steps=4)
    assert size(state, 5) == 3 * 2 * 2 * 5 * 8 * 4  # depth, keys and values, batch, steps, width, bytes
    assert size([(None, torch.zeros(2, 3)), (torch.zeros(4), torch.zeros(1))], 5) == 4 * (6 + 4 + 1)


def test_relative_error():
    exact = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, -2.5]), exact) == 0.25
    assert relative_error(torch.tensor([1.0, torch.nan]), exact) != 0


def test_products_are_those_of_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 2))
    with Linears() as linears:
        model(torch.randn(4, 7, 3))
    assert [tuple(weight.shape) for _, weight in linears.operands] == [(5, 3), (2, 5)]
    assert [tuple(x.shape) for x, _ in linears.operands] == [(4, 7, 3), (4, 7, 5)]
    linears.products()()


def test_the_paper_s_scan_stands_in_for_ours():
    gate, candidate, forget = torch.randn(3, 2, 20, 3)
    ours = MinGRUMixer.function, MinLSTMMixer.function
    for function, logits in zip(ours, [(gate, candidate), (forget, gate, candidate)], strict=True):
        torch.testing.assert_close(log_space_rnn(*logits, None, reset=None), function(*logits), rtol=1e-4, atol=1e-5)


def test_training_steps_take_turns_with_both_scans():
    model = LanguageTask(11, 11, mixer=["mingru", "minlstm"], dim=8, depth=2)
    steps = TimedSteps(model, lambda: None, 2, torch.device("cpu"))
    functions = []
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(zero_grad=lambda: None)])
    for number in range(steps.total):
        steps.on_train_batch_start(trainer, model, None, number)
        functions.append([mixer.function for mixer in steps.mixers])
        steps.on_train_batch_end(trainer, model, None, None, number)
    assert functions == [[MinGRUMixer.function, MinLSTMMixer.function], [log_space_rnn, log_space_rnn]] * 4
    assert {name: len(seconds) for name, seconds in steps.seconds.items()} == {PRODUCTS: 2, STEP: 2, LOG_SPACE: 2}
    assert set(steps.peaks) == {PRODUCTS, STEP, LOG_SPACE}
