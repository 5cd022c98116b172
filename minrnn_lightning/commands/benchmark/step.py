"""``minrnn benchmark step``: time of single steps after a context, against the batch size."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.baselines import CachedAttention, StackedCells
from minrnn_lightning.commands.benchmark.measure import (
    DType,
    Linears,
    Step,
    check_sizes,
    in_turns,
    parse_choice,
    parse_device,
    parse_sizes,
    ratio,
    timing,
    warm_up,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.commands.options import split_commas
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import Backbone, MinGRU, MinLSTM, unchanged_modules
from minrnn_lightning.nn.mixers import MIXERS

State = Any
Compiled = Literal["none", "step", "checks"]


class Stepper(NamedTuple):
    """A stack that reads a context in one call and continues step by step."""

    module: nn.Module
    read: Callable[[Tensor, int], State]  # context (batch, length, dim) and the number of steps that follow
    step: Callable[[Tensor, State], tuple[Tensor, State]]  # (batch, dim) and a state to the same


def minimal(kind: type[MinGRU | MinLSTM], dim: int, depth: int) -> Stepper:
    """``MinGRU`` or ``MinLSTM`` and its method ``step``."""
    rnn = kind(dim, dim, depth, batch_first=True)
    return Stepper(rnn, lambda x, _: rnn(x)[1], rnn.step)


def torch_rnn(kind: type[nn.GRU | nn.LSTM], dim: int, depth: int) -> Stepper:
    """``nn.GRU`` or ``nn.LSTM``, called with sequences of length 1."""
    rnn = kind(dim, dim, depth, batch_first=True)

    def step(x_t: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = rnn(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    return Stepper(rnn, lambda x, _: rnn(x)[1], step)


def cells(kind: Literal["GRU", "LSTM"], dim: int, depth: int) -> Stepper:
    """``nn.GRUCell`` or ``nn.LSTMCell`` in every layer."""
    stack = StackedCells(kind, dim, depth)
    return Stepper(stack, lambda x, _: stack.read(x), stack.step)


def attention(dim: int, depth: int) -> Stepper:
    """Causal attention with a cache that was allocated before."""
    stack = CachedAttention(dim, depth)
    return Stepper(stack, stack.read, stack.step)


def blocks(
    mixer: str,
    dim: int,
    depth: int,
    kernel_size: int,
    mlp_ratio: float,
    unchanged: bool = False,
    compile: Compiled = "none",  # noqa: A002
) -> Stepper:
    """A ``Backbone`` of a mixer and its method ``step``, perhaps compiled or in the context ``unchanged_modules``."""
    backbone = Backbone(dim, depth, mixer, kernel_size=kernel_size, mlp_ratio=mlp_ratio)
    context = unchanged_modules() if unchanged else nullcontext()
    run = backbone.step
    if compile != "none":
        run = torch.compile(run, backend="inductor" if compile == "step" else without_work, dynamic=False)

    def step(x_t: Tensor, state: State) -> tuple[Tensor, State]:
        with context:
            return run(x_t, state)

    return Stepper(backbone, lambda x, _: backbone(x)[1], step)


def without_work(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A backend of ``torch.compile`` that computes once; later calls take the time of the checks before them."""
    result = graph(*inputs)
    return lambda *inputs: result


LAYERS: dict[str, tuple[str, Callable[[int, int], Stepper]]] = {  # by their name in --layers: name in tables, and maker
    "mingru": ("MinGRU", partial(minimal, MinGRU)),
    "minlstm": ("MinLSTM", partial(minimal, MinLSTM)),
    "gru": ("nn.GRU", partial(torch_rnn, nn.GRU)),
    "lstm": ("nn.LSTM", partial(torch_rnn, nn.LSTM)),
    "grucell": ("nn.GRUCell", partial(cells, "GRU")),
    "lstmcell": ("nn.LSTMCell", partial(cells, "LSTM")),
    "attention": ("attention with a cache", attention),
}
BASES = {"times_gru": "nn.GRU", "times_grucell": "nn.GRUCell", "times_lstm": "nn.LSTM", "times_lstmcell": "nn.LSTMCell"}
PRODUCTS = "products of "


def step(
    batch_size: str = "8,16,32,64",
    dim: str = "256",
    lengths: str = "2048",
    layers: str = "mingru,minlstm,gru,lstm",
    mixer: str = "none",
    depth: int = 1,
    kernel_size: int = 4,
    mlp_ratio: float = 4.0,
    unchanged: bool = False,
    compile: Compiled = "none",  # noqa: A002
    products: bool = False,
    steps: int = 64,
    threads: int = 1,
    processor_time: bool = False,
    dtype: DType = "float32",
    repeats: int = 50,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark single steps after a context, as in inference: the paper's comparison in appendix D.2, on this machine.

    Each stack reads the context in one call, untimed, then continues step by step; all take turns within each repeat.
    Ratios are those of two stacks in the same repeat: the table has their median and, in brackets, their quartiles, so
    that the load of the machine matters little.

    Args:
        batch_size: Numbers of sequences, separated by commas.
        dim: Widths of input and state, separated by commas.
        lengths: Time steps of the contexts, separated by commas.
        layers: Layers, separated by commas: mingru, minlstm, gru (nn.GRU), lstm (nn.LSTM), grucell (nn.GRUCell),
            lstmcell (nn.LSTMCell), attention (with a cache that is allocated before); none for no such layers.
        mixer: Mixers of this package, separated by commas, in residual blocks; none for no blocks.
        depth: Number of layers, and of blocks.
        kernel_size: Steps of the causal convolution in a block; 0 leaves it out.
        mlp_ratio: Hidden units of the MLP of a block per channel; 0 leaves it out.
        unchanged: Step the blocks in the context ``unchanged_modules``, as generation and rollouts do.
        compile: ``step`` steps the blocks through ``torch.compile``; ``checks`` too, but leaves out all work of the
            compiled graph, so that what is left are the checks of modules, weights and inputs before each call.
        products: Also measure the matrix products of a step alone, where they are calls of linear maps.
        steps: Steps after the context that are timed together.
        threads: Threads of PyTorch.
        processor_time: Count the time that the process has a processor, for a machine that others use too, instead of
            the time that elapses; for one thread on the CPU.
        dtype: Type of input and parameters.
        repeats: Number of times that each is timed, in turns.
        device: cpu, cuda or cuda:N.
        output: Folder to write step.json, step.csv and step.png to.
        compare: The step.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, or a layer, a mixer or the device is unknown, there is
            nothing to measure, or processor_time is not for this device and number of threads.
    """
    makers: dict[str, Callable[[int, int], Stepper]] = {}
    makers |= dict(LAYERS[name] for name in _chosen("layers", layers, LAYERS))
    chosen = _chosen("mixer", mixer, MIXERS)
    block = partial(blocks, kernel_size=kernel_size, mlp_ratio=mlp_ratio, unchanged=unchanged, compile=compile)
    makers |= {f"blocks of {name}": partial(block, name) for name in chosen}
    if not makers:
        raise InputError("layers and mixer are both none: give a layer or a mixer")
    batch_sizes = parse_sizes("batch_size", batch_size, "8,64")
    dims, contexts = parse_sizes("dim", dim, "128,256"), parse_sizes("lengths", lengths, "512,2048")
    torch_device, torch_dtype = parse_device(device), getattr(torch, dtype)
    check_sizes(depth=depth, steps=steps, threads=threads, repeats=repeats)
    if processor_time and (threads > 1 or torch_device.type != "cpu"):
        raise InputError(f"processor_time is for one thread on the CPU, got threads {threads} and device {device}")
    clock = time.process_time if processor_time else time.perf_counter
    about: dict[str, object] = {"dtype": dtype, "depth": depth, "steps": steps, "repeats": repeats}
    about |= (
        {"kernel_size": kernel_size, "mlp_ratio": mlp_ratio, "unchanged": unchanged, "compile": compile}
        if chosen
        else {}
    )
    about |= {"clock": "time on a processor"} if processor_time else {}
    with torch_threads(threads), torch.inference_mode():
        report = Report("step", ["ms", "us_per_token"], about, torch_device, output, compare, axis="batch_size")
        for width in dims:
            torch.manual_seed(0)
            stacks = {name: make(width, depth) for name, make in makers.items()}
            for stack in stacks.values():
                stack.module.to(torch_device, torch_dtype).eval()
            for length in contexts:
                rows = []
                for batch in batch_sizes:
                    torch.compiler.reset()  # torch.compile gives up after eight versions of a function
                    x = torch.randn(batch, length + steps, width, dtype=torch_dtype, device=torch_device)
                    walks: dict[str, Step] = {name: Walk(stack, x, length) for name, stack in stacks.items()}
                    ready = warm_up(walks)
                    if products:
                        ready |= warm_up(products_alone({name: stacks[name] for name in ready}, x[:, 0], steps))
                    seconds = in_turns(ready, repeats, torch_device, clock)
                    for name, times in seconds.items():
                        row = {"name": name, "length": length, "batch_size": batch, "dim": width}
                        row |= timing([each / steps for each in times], batch)
                        for column, base in {**BASES, "times_products": PRODUCTS + name}.items():
                            if base in seconds:
                                row |= dict(zip(_columns(column), ratio(seconds, name, base), strict=True))
                        rows.append(row)
                report.add(f"One step after a context of {length:,}, dim {width:,}", rows)
        report.save()


class Walk:
    """One step for each input after the context, always from the same state, which the first call reads.

    Args:
        stack: What reads and steps.
        x: The context and the inputs after it, (batch, length + steps, dim).
        length: Steps of the context.
    """

    def __init__(self, stack: Stepper, x: Tensor, length: int) -> None:
        self.stack = stack
        self.context, inputs = x[:, :length], x[:, length:]
        self.inputs = [x_t.contiguous() for x_t in inputs.unbind(1)]
        self.state: State = None

    def __call__(self) -> None:
        """Take all steps."""
        if self.state is None:
            self.state = self.stack.read(self.context, len(self.inputs))
        state = self.state
        for x_t in self.inputs:
            _, state = self.stack.step(x_t, state)


def products_alone(stacks: dict[str, Stepper], x_t: Tensor, steps: int) -> dict[str, Step]:
    """The matrix products of so many steps of each stack that calls linear maps, which the layers of PyTorch do not."""
    alone: dict[str, Step] = {}
    for name, stack in stacks.items():
        state = stack.read(x_t.unsqueeze(1), 1)
        with Linears() as linears, torch.compiler.set_stance("force_eager"):
            stack.step(x_t, state)
        if linears.operands:
            alone[PRODUCTS + name] = linears.forward_products(steps)
    return alone


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(option: str, text: str, accepted: dict[str, Any]) -> list[str]:
    return [] if split_commas(text) == ["none"] else parse_choice(option, text, accepted)


def _columns(column: str) -> tuple[str, str, str]:
    return column, f"{column}_low", f"{column}_high"
