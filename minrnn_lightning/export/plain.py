"""The scan as PyTorch's own operators, for files that run where this package is not, at any length up to a longest."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minrnn_lightning.errors import InputError
from minrnn_lightning.export.modules import FlatModule
from minrnn_lightning.ops.decomposition import decompositions

BLOCK = 64  # steps that are scanned at once
EXAMPLE_BLOCKS = 3


def export_plain(module: FlatModule, *, batch: int, longest: int, others: bool = False) -> ExportedProgram:
    """Export a module with ``torch.export``, with every scan made of PyTorch's own operators.

    Args:
        module: What to export.
        batch: The greatest number of sequences.
        longest: The greatest length; the program refuses longer sequences.
        others: Whether ``cummax``, which only PyTorch has, is made of other operators too.

    Raises:
        InputError: An operator of this package would be left.
    """
    from torch.fx.experimental import _config

    dims = {name: Dim(name, max=size) for name, size in {"batch": batch, "length": longest, "past": longest}.items()}
    shapes = (tuple({d: dims[name] for d, name in each.varying.items()} for each in module.inputs),)
    table = decompositions(partial(_scan_from, longest))
    if others:
        table[torch.ops.aten.cummax.default] = partial(_cummax, longest)
    # Sizes of the examples stand for all others, 1 included.
    with torch.no_grad(), _FreeSizes(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        exported = torch.export.export(module, _longer(module), dynamic_shapes=shapes, strict=False)
        program: ExportedProgram = exported.run_decompositions(table)
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", None) == "minrnn":
            raise InputError(
                f"a {type(module.model).__name__} needs the operator {node.target} of this package, since PyTorch's "
                "take a fixed length: export it with format onnx or mode step"
            )
    return program


class _FreeSizes(TorchFunctionMode):
    """Replace what looks whether a size is 1, to copy or not to copy, and so would fix that in the program."""

    def __init__(self) -> None:
        from torch._prims_common import is_contiguous_or_false  # not in PyTorch 2.6, which imports this module too

        super().__init__()
        self.is_contiguous = is_contiguous_or_false

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.Tensor.contiguous and len(args) == 1 and not options:
            return _copied(args[0])
        if func is F.linear and not self.is_contiguous(args[0]):
            args = (_copied(args[0]), *args[1:])
        if func is F.conv2d and args[1].shape[1:3] == (1, 1) and options.keys() == {"groups"}:
            return _depthwise(*args)
        return func(*args, **options)


def _depthwise(image: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of each channel with a filter of its own, (channels, 1, 1, width), along the last dimension."""
    width = filters.shape[3]
    steps = image.shape[3] - width + 1
    y = torch.zeros(()) if bias is None else bias[:, None, None]
    for i in range(width):
        y = y + filters[:, 0, :, i, None] * image.narrow(3, i, steps)
    return y


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _longer(module: FlatModule) -> tuple[Tensor, ...]:
    """Examples of the inputs of several blocks: at fewer, exporters would take the number of blocks for fixed."""
    examples = []
    for _, x, varying in module.inputs:
        for dim in (d for d, name in varying.items() if name == "length"):
            x = x.repeat_interleave(EXAMPLE_BLOCKS * BLOCK // x.shape[dim], dim)
        examples.append(x)
    return tuple(examples)


def _scan_from(longest: int, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every state from an initial one, and the last."""
    product, h = plain_scan(a, b, longest)
    if initial is not None:
        h = h + product * initial.unsqueeze(1)
    return h, h[:, -1].clone()


def plain_scan(a: Tensor, b: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t · h_{t-1} + b_t from h_0 = 0 over the length, (batch, length, dim), whatever the length.

    The length is cut into blocks, all of which are scanned at once by doubling; the last state of each block is the
    update of a sequence as long as there are blocks, scanned in the same way. So each operator but the reshaping ones
    is applied to a static number of steps, the depth is a constant, and the work is proportional to the length.

    Args:
        a: The decay of each step.
        b: The update of each step.
        longest: The greatest length.

    Returns:
        a_1 · … · a_t and h_t for every t.
    """
    batch, length, dim = b.shape
    if longest <= 2 * BLOCK:
        pad = longest - length
        a, b = _doubling(_pad(a, pad, 1.0), _pad(b, pad, 0.0))
        return _first(a, length), _first(b, length)
    blocks = length // BLOCK + 2  # never 1, a size for which compilers would make another program
    shape = batch, blocks, BLOCK, dim
    pad = blocks * BLOCK - length
    a, b = _doubling(_pad(a, pad, 1.0).view(shape), _pad(b, pad, 0.0).view(shape))
    products, states = plain_scan(a[:, :, -1], b[:, :, -1], longest // BLOCK + 2)
    product, h = _after(a, b, _shift(products, 1, 1.0).unsqueeze(2), _shift(states, 1, 0.0).unsqueeze(2))
    return _first(product.flatten(1, 2), length), _first(h.flatten(1, 2), length)


def _doubling(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The scan of a static number of steps: after each round a state depends on twice as many steps."""
    reach = 1
    while reach < b.shape[-2]:
        a, b = _after(a, b, _shift(a, reach, 1.0), _shift(b, reach, 0.0))
        reach *= 2
    return a, b


def _after(a: Tensor, b: Tensor, a_before: Tensor, b_before: Tensor) -> tuple[Tensor, Tensor]:
    """The product of decays and the state of two stretches of steps, one after the other."""
    return a * a_before, b + a * b_before


def _shift(x: Tensor, steps: int, value: float) -> Tensor:
    """Move all steps to later ones, with ``value`` at the first."""
    return F.pad(x[..., : x.shape[-2] - steps, :], (0, 0, steps, 0), value=value)


def _pad(x: Tensor, steps: Any, value: float) -> Tensor:
    return F.pad(x, (0, 0, 0, steps), value=value)


def _first(x: Tensor, steps: Any) -> Tensor:
    return _copied(x.narrow(1, 0, steps))


def _cummax(longest: int, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``aten::cummax`` of the second of two dimensions, by doubling; of equal elements it takes the last."""
    length = x.shape[dim]
    positions = torch.arange(longest, device=x.device).expand(x.shape[0], -1)
    least = (torch.finfo if x.is_floating_point() else torch.iinfo)(x.dtype).min
    x = F.pad(x, (0, longest - length), value=least)
    reach = 1
    while reach < longest:
        x_before, before = F.pad(x[:, :-reach], (reach, 0), value=least), F.pad(positions[:, :-reach], (reach, 0))
        earlier = x_before > x
        x, positions = torch.where(earlier, x_before, x), torch.where(earlier, before, positions)
        reach *= 2
    return x[:, :length], positions[:, :length]
