"""``minrnn benchmark chunks``: time and memory of a backbone that computes a long sequence chunk by chunk."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.measure import (
    check_sizes,
    in_turns,
    measurement,
    parse_device,
    parse_lengths,
    peak_memory,
    warm_up,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.mixers import MIXERS

WHOLE = "all steps at once"


def chunks(
    lengths: str = "16384,131072",
    chunk: int = 4096,
    mixer: str = "mingru",
    dim: int = 128,
    depth: int = 2,
    batch_size: int = 1,
    longest_whole: int = 131072,
    repeats: int = 3,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark a backbone in chunks against all steps at once: time and peak memory of forward and backward.

    The two take turns within each repeat. The memory is that of tensors beyond input and parameters: output, its
    gradient and that of the input are counted. The largest difference is that of the two gradients of the input, in
    relation to the largest element of them.

    Args:
        lengths: Lengths of the sequences, separated by commas.
        chunk: Steps that are computed at a time.
        mixer: Sequence mixer of the blocks.
        dim: Width of the backbone.
        depth: Number of blocks.
        batch_size: Number of sequences.
        longest_whole: Longest sequence that is also computed at once, which takes about 30 kB for each step of this
            size.
        repeats: Number of times that each is timed.
        device: cpu, cuda or cuda:N.
        output: Folder to write chunks.json, chunks.csv and chunks.png to.
        compare: The chunks.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, or the mixer or the device is unknown.
    """
    torch_device, sequence_lengths = parse_device(device), parse_lengths(lengths)
    if mixer not in MIXERS:
        raise InputError(f"mixer must be one of {', '.join(MIXERS)}, got {mixer!r}")
    check_sizes(chunk=chunk, dim=dim, depth=depth, batch_size=batch_size, longest_whole=longest_whole, repeats=repeats)
    about = {"chunk": chunk, "mixer": mixer, "dim": dim, "depth": depth, "batch_size": batch_size, "repeats": repeats}
    report = Report("chunks", ["ms", "peak_mb"], about, torch_device, output, compare)
    for length in sequence_lengths:
        torch.manual_seed(0)
        backbones = {f"chunks of {chunk:,}": Backbone(dim, depth, mixer, chunk=chunk).to(torch_device)}
        if length <= longest_whole:
            whole = Backbone(dim, depth, mixer).to(torch_device)
            whole.load_state_dict(next(iter(backbones.values())).state_dict())
            backbones[WHOLE] = whole
        x = torch.randn(batch_size, length, dim, device=torch_device, requires_grad=True)
        steps = {name: gradients(module, x) for name, module in backbones.items()}
        able = warm_up(steps)
        peaks = {name: peak_memory(step, torch_device) for name, step in able.items()}
        seconds = in_turns(able, repeats, torch_device)
        rows = [measurement(name, length, seconds[name], batch_size, peaks[name]) for name in able]
        if len(able) == 2:
            one, whole_one = (step()[0] for step in steps.values())
            rows[0]["difference"] = ((one - whole_one).abs().max() / whole_one.abs().max()).item()
        report.add(f"Length {length:,}, forward + backward", rows, [WHOLE])
    report.save()


def gradients(backbone: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward to the input and the parameters, from random gradients of the outputs.

    The gradient of ones would be 0 but for rounding: the features of a normalised step have a constant sum.
    """

    def step() -> tuple[Tensor, ...]:
        y, _ = backbone(x)
        return torch.autograd.grad(y, [x, *backbone.parameters()], x.detach().clone())

    return step
