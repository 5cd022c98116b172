"""``minrnn benchmark generate``: time per token and size of the state against the length of the context."""

from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.baselines import Decoder, GRULanguageModel
from minrnn_lightning.commands.benchmark.measure import (
    DType,
    Step,
    check_sizes,
    in_turns,
    parse_choice,
    parse_device,
    parse_lengths,
    timing,
    warm_up,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.generate import CHUNK
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.tasks import LanguageTask

VOCABULARY = 65  # the characters of Shakespeare
DECODER, GRU = "transformer with a cache of keys and values", "nn.GRU"


def generate(
    lengths: str = "128,1024,8192",
    mixer: str = "mingru,minlstm",
    dim: int = 384,
    depth: int = 3,
    steps: int = 100,
    batch_size: int = 1,
    dtype: DType = "float32",
    repeats: int = 5,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark generation by language models after contexts of several lengths: time per token, size of the state.

    Each model first reads the context in parallel, untimed. Models with this package's mixers, in the shape of the
    recipe, are compared with a stack of nn.GRU, which has neither convolutions nor MLPs and so fewer parameters, and a
    small Transformer with a cache of keys and values, of the same width and depth. The weights are random, and so are
    the tokens: sampling is not timed.

    Args:
        lengths: Tokens of the contexts, separated by commas.
        mixer: Mixers of this package, separated by commas.
        dim: Width of the models.
        depth: Blocks of our models and the Transformer, layers of nn.GRU.
        steps: Tokens after the context that are timed together.
        batch_size: Number of texts.
        dtype: Type of the parameters.
        repeats: Number of times that each model is timed, in turns.
        device: cpu, cuda or cuda:N.
        output: Folder to write generate.json, generate.csv and generate.png to.
        compare: The generate.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, or a mixer or the device is unknown.
    """
    mixers, contexts = parse_choice("mixer", mixer, MIXERS), parse_lengths(lengths)
    torch_device = parse_device(device)
    check_sizes(dim=dim, depth=depth, steps=steps, batch_size=batch_size, repeats=repeats)
    about = {"dtype": dtype, "batch_size": batch_size, "dim": dim, "depth": depth, "steps": steps}
    report = Report("generate", ["ms", "state_kb"], {**about, "repeats": repeats}, torch_device, output, compare)
    torch.manual_seed(0)
    models = {name: LanguageTask(VOCABULARY, VOCABULARY, mixer=name, dim=dim, depth=depth) for name in mixers}
    others = {GRU: GRULanguageModel(VOCABULARY, dim, depth), DECODER: Decoder(VOCABULARY, dim, depth)}
    ready = {name: model.to(torch_device, getattr(torch, dtype)).eval() for name, model in {**models, **others}.items()}
    with torch.inference_mode():
        for length in contexts:
            tokens = torch.randint(VOCABULARY, (batch_size, length + steps), device=torch_device)
            context, following = torch.split(tokens, [length, steps], 1)
            states = {name: read(model, context, steps) for name, model in ready.items()}
            runs = {name: walk(ready[name], following, state) for name, state in states.items()}
            rows = []
            for name, seconds in in_turns(warm_up(runs), repeats, torch_device).items():
                row = timing([second / steps for second in seconds], batch_size)
                row |= {"tokens_per_s": 1e6 / row.pop("us_per_token"), "state_kb": size(states[name], length) / 1e3}
                row["parameters_m"] = sum(parameter.numel() for parameter in ready[name].parameters()) / 1e6
                rows.append({"name": name, "length": length, **row})
            report.add(f"One step after a context of {length:,}", rows, [mixers[0]])
    report.save()


def read(model: nn.Module, context: Tensor, extra_steps: int = 0) -> Any:
    """The state after a context that is read in parallel, a chunk at a time; a cache gets space for further steps."""
    model_: Any = model
    batch, length = context.shape
    capacity = (length + extra_steps,) if isinstance(model, Decoder) else ()
    state = model_.initial_state(batch, *capacity)
    for chunk in torch.split(context, CHUNK, 1):
        _, state = model_(chunk, state)
    return state


def walk(model: nn.Module, tokens: Tensor, state: Any) -> Step:
    """One step for each of the tokens, always from the same initial state."""
    model_: Any = model

    def steps() -> None:
        after = state
        for token in tokens.unbind(1):
            _, after = model_.step(token, after)

    return steps


def size(state: Any, length: int) -> int:
    """Bytes of the tensors of a state; of a cache, those of the steps that it holds."""
    match state:
        case Tensor():
            return state.nbytes
        case (Tensor() as cache, int()):
            return cache[..., :length, :].nbytes
        case list() | tuple():
            return sum(size(part, length) for part in state)
    return 0
