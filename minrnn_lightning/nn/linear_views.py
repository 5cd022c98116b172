"""The weights of a layer as ``nn.Linear``s, for libraries that quantise those that they find."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.nn.fused import linear, product_dtype

WEIGHT = re.compile(r"weight_(ih_l\d+(?:_reverse)?)")


class LinearView(nn.Linear):
    """A weight and a bias of another module, without parameters of its own: what is assigned here is assigned there.

    Args:
        owner: The module that has the parameters.
        name: What their names end with, after ``weight_`` and ``bias_``.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        nn.Module.__init__(self)  # that of nn.Linear makes parameters
        self.__dict__ |= {"owner": owner, "names": {"weight": f"weight_{name}", "bias": f"bias_{name}"}}
        self.out_features, self.in_features = self.weight.shape

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__["names"]
        return getattr(self.owner, names[name], None) if name in names else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        owner, names = self.__dict__.get("owner"), self.__dict__.get("names", ())
        setattr(owner, names[name], value) if name in names else super().__setattr__(name, value)


class LinearViews(nn.Module):
    """A module whose ``named_children`` alone, by which torchao looks for an ``nn.Linear``, shows its weights as such.

    Whatever else looks for modules (``modules``, ``children``, ``apply``) passes over them, as over those of
    ``nn.GRU``: many models set the weights of each ``nn.Linear`` that they find to initial values of their own.
    """

    def children(self) -> Iterator[nn.Module]:
        """The modules within, without those that ``named_children`` adds."""
        return (module for _, module in super().named_children())

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules within, and a ``LinearView`` of each weight and its bias."""
        yield from super().named_children()
        for name, weight in list(self._parameters.items()):
            match = WEIGHT.fullmatch(name)
            if match and match[1] not in self._modules and weight is not None and weight.dim() == 2:  # 1 in FSDP
                yield match[1], LinearView(self, match[1])

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, nn.Module) and f"weight_{name}" in self._parameters):
            super().__setattr__(name, value)  # a module in the place of a view would have no effect

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, unless it is one in the place of a view, as ``SyncBatchNorm`` adds whatever it found."""
        if f"weight_{name}" not in self._parameters:
            super().add_module(name, module)


def is_quantized(weight: Tensor) -> bool:
    """Whether a library has put tensors of its own, which have few operators, in the place of a weight."""
    kind = type(weight)  # torch.compile does not see the method of the tensor
    return kind is not nn.Parameter and hasattr(kind, "__tensor_flatten__")


def project(x: Tensor, blocks: int, weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """The product of (..., features) with each of the blocks of rows of a weight, (..., rows / blocks)."""
    if is_quantized(weight):
        return list(F.linear(x, weight, bias).chunk(blocks, -1))
    # One product per block of rows, so that backward need not concatenate gradients as long as the sequence.
    if bias is None:
        return [F.linear(x, rows) for rows in weight.chunk(blocks)]
    product = linear if product_dtype(x) == torch.bfloat16 else F.linear
    return [product(x, rows, shift) for rows, shift in zip(weight.chunk(blocks), bias.chunk(blocks), strict=True)]
