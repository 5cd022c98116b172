"""``minrnn benchmark layer``: time and memory of one layer against the length, as in the paper's figure 1."""

import itertools
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.baselines import (
    CausalAttention,
    GRUCellLoop,
    LogSpaceMinGRU,
    ThreeLinear,
    TwoLinear,
)
from minrnn_lightning.commands.benchmark.measure import (
    DType,
    Step,
    check_sizes,
    gradient,
    parse_choice,
    parse_device,
    parse_lengths,
    parse_sizes,
    time_and_memory,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import Backbone, MinGRU, MinLSTM
from minrnn_lightning.nn.backbone import MOST_BLOCKS

BASE = "its matrix products alone (two nn.Linear)"


def _mingru_pytorch(dim: int) -> nn.Module:
    from minGRU_pytorch import minGRU

    layer: nn.Module = minGRU(dim)
    return layer


def _mingru_scans(dim: int) -> nn.Module:
    from mingru import MinGRU as Peer  # the only one with gates in (0, 1); it starts from a state of ½, ours from 0

    layer: nn.Module = Peer(dim, dim)
    return layer


LAYERS: dict[
    str, tuple[str, Callable[[int], nn.Module]]
] = {  # by their name in --layers: name in tables, and what makes one of a width
    "products": (BASE, TwoLinear),
    "products3": ("those of MinLSTM (three nn.Linear)", ThreeLinear),
    "mingru": ("MinGRU", lambda dim: MinGRU(dim, dim, batch_first=True)),
    "minlstm": ("MinLSTM", lambda dim: MinLSTM(dim, dim, batch_first=True)),
    "gru": ("nn.GRU", lambda dim: nn.GRU(dim, dim, batch_first=True)),
    "lstm": ("nn.LSTM", lambda dim: nn.LSTM(dim, dim, batch_first=True)),
    "loop": ("loop of nn.GRUCell (the paper's baseline)", GRUCellLoop),
    "attention": ("causal attention", CausalAttention),
    "logspace": ("minGRU, the paper's log-space scan", LogSpaceMinGRU),
    "mingru-pytorch": ("minGRU-pytorch", _mingru_pytorch),
    "mingru-scans": ("mingru-scans", _mingru_scans),
}
COMPILED = ("mingru", "minlstm", "logspace", "mingru-pytorch", "mingru-scans")


def layer(
    lengths: str = "512,2048",
    batch_size: str = "16",
    dim: str = "256",
    layers: str = "",
    blocks: int = 0,
    processor_time: bool = False,
    compile: bool = False,  # noqa: A002
    dtype: DType = "float32",
    repeats: int = 9,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark one layer against baselines: time and peak memory of forward and backward.

    The layers take turns within each repeat, so that a noisy machine disturbs them alike; the table gives medians,
    the fastest and the slowest. The memory is that of tensors, beyond input and parameters; on the CPU it leaves out
    what does not come from PyTorch's allocator, such as buffers of oneDNN. With ``blocks``, a column
    has the bytes of the tensors that autograd keeps from forward to backward, beside input and parameters.

    Args:
        lengths: Lengths of the sequences, separated by commas.
        batch_size: Numbers of sequences, separated by commas.
        dim: Features of input and state, separated by commas.
        layers: Layers, separated by commas: products, products3, mingru, minlstm, gru, lstm, loop (of nn.GRUCell),
            attention, logspace (the paper's scan), mingru-pytorch, mingru-scans; all of them if not given.
        blocks: Also measure a backbone of so many blocks, of minGRU and of minLSTM; none if 0.
        processor_time: Count the time that the process has a processor, for a machine that others use too, instead of
            the time that elapses; for one thread on the CPU (OMP_NUM_THREADS=1).
        compile: Also measure the minimal ones compiled by torch.compile.
        dtype: Type of input and parameters.
        repeats: Number of times that each layer is timed.
        device: cpu, cuda or cuda:N.
        output: Folder to write layer.json, layer.csv and layer.png to.
        compare: The layer.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, a layer or the device is unknown, or processor_time is not for this device and
            number of threads.
    """
    chosen, torch_device = parse_choice("layers", layers, LAYERS), parse_device(device)
    torch_dtype, sequence_lengths = getattr(torch, dtype), parse_lengths(lengths)
    batches, dims = parse_sizes("batch_size", batch_size, "8,64"), parse_sizes("dim", dim, "128,256")
    check_sizes(repeats=repeats)
    if not 0 <= blocks <= MOST_BLOCKS:
        raise InputError(f"blocks must be from 0 to {MOST_BLOCKS}, got {blocks}")
    if processor_time and (torch.get_num_threads() > 1 or torch_device.type != "cpu"):
        raise InputError(
            f"processor_time is for one thread on the CPU, got {torch.get_num_threads()} threads and device {device}: "
            "set OMP_NUM_THREADS=1"
        )
    about: dict[str, object] = {"dtype": dtype, "repeats": repeats}
    single = {"batch_size": batches, "dim": dims}  # what is the same for all rows, see ``AXES``
    about |= {name: sizes[0] for name, sizes in single.items() if len(sizes) == 1}
    about |= {"blocks": blocks} if blocks else {}
    about |= {"clock": "time on a processor"} if processor_time else {}
    clock = time.process_time if processor_time else time.perf_counter
    report = Report("layer", ["ms", "peak_mb"], about, torch_device, output, compare)
    for width, batch, length in itertools.product(dims, batches, sequence_lengths):
        torch.manual_seed(0)
        x = torch.randn(batch, length, width, dtype=torch_dtype, device=torch_device, requires_grad=True)
        ones = torch.ones_like(x)
        built = {**build(chosen, width, compile), **build_backbones(width, blocks)}
        modules = {name: module.to(torch_device, torch_dtype) for name, module in built.items()}
        steps = {name: forward_backward(module, x, ones) for name, module in modules.items()}
        rows = time_and_memory(steps, repeats, torch_device, length, batch, clock)
        axes = {name: size for name, size in (("batch_size", batch), ("dim", width)) if name not in about}
        for row in rows:
            row |= axes
            if blocks:
                row["kept_bytes"] = kept_bytes(modules[row["name"]], x) / (batch * length)
        where = "".join(f", {name} {size}" for name, size in axes.items())
        report.add(f"Length {length:,}{where}, forward + backward", rows, [BASE, "MinGRU"])
    report.save()


def build_backbones(dim: int, blocks: int) -> dict[str, nn.Module]:
    """Backbones of so many blocks to measure; none for 0."""
    mixers = {"minGRU": "mingru", "minLSTM": "minlstm"} if blocks else {}
    return {f"backbone of {blocks} × {name}": Backbone(dim, blocks, mixer) for name, mixer in mixers.items()}


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of a module, beside input and parameters; no memory twice."""
    own = {each.untyped_storage().data_ptr() for each in (x, *module.parameters())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        module(x)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def build(chosen: list[str], dim: int, compile: bool = False) -> dict[str, nn.Module]:  # noqa: A002
    """Layers to compare, from (batch, length, dim) to the same shape; those of other packages where installed."""
    built: dict[str, nn.Module] = {}
    torch.compiler.reset()  # forget what was compiled for another length
    for option in chosen:
        name, make = LAYERS[option]
        try:
            built[name] = make(dim)
        except ImportError:
            print(f"{name} is not installed and left out: pip install {name}", file=sys.stderr)
            continue
        if compile and option in COMPILED:
            compiled = make(dim)
            compiled.compile(dynamic=False)
            built[f"{name}, compiled"] = compiled
    return built


def forward_backward(module: nn.Module, x: Tensor, ones: Tensor) -> Step:
    """Forward and backward of a layer, to the input and the parameters, from a gradient of ones."""

    def outputs() -> Tensor | list[Tensor]:
        made: Tensor | list[Tensor] | tuple[Tensor, Tensor] = module(x)
        return made[0] if isinstance(made, tuple) else made  # without a recurrent layer's h_n

    return gradient(outputs, [x, *module.parameters()], ones)
