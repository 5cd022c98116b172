"""Linear maps as ``nn.Linear``, which other tools can quantise, and int8 weights of our own."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.nn.gru_interface import MinRNN
from minrnn_lightning.nn.linear_views import is_quantized
from minrnn_lightning.nn.mixers.gated import Logits

Model = TypeVar("Model", bound=nn.Module)


class Quantized(NamedTuple):
    """What ``quantize`` returns."""

    model: nn.Module  # for inference
    left: dict[str, int]  # the parameters that remain in floating point, with their numbers of elements


def quantize(model: nn.Module) -> Quantized:
    """Copy a model, with the weights of its linear maps and embeddings in int8 and a scale for each of their rows.

    The products are computed in the type of their input, so that only the weights are rounded. What is neither an
    ``nn.Linear``, an ``nn.Embedding`` nor a linear map of a minimal RNN stays as it is, and its parameters are listed.

    Args:
        model: A layer, mixer, backbone or task, which remains as it is. The copy has the same methods, and can be
            exported too.
    """
    model = with_linears(model).requires_grad_(False)
    if isinstance(model, nn.Linear | nn.Embedding):
        model = nn.Sequential(model)
    replacements: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Int8Linear, nn.Embedding: Int8Embedding}
    _replace(model, lambda module: type(module) in replacements, lambda module: replacements[type(module)](module))
    return Quantized(model, {name: parameter.numel() for name, parameter in model.named_parameters()})


def with_linears(model: Model) -> Model:
    """Copy a model, with every linear map of its minimal RNNs in an ``nn.Linear`` for each gate and the candidate.

    ``MinGRU`` and ``MinLSTM`` have the parameters of ``nn.GRU``, which tools that look for ``nn.Linear`` pass over.
    Those that ``quantize`` or torchao has changed stay as they are.
    """
    model = copy.deepcopy(model)
    _replace(model, lambda module: isinstance(module, Logits) and _in_floating_point(module), _LinearLogits)
    for module in model.modules():
        if isinstance(module, MinRNN) and _in_floating_point(module):
            _use_linears(module)
    return model


class Int8Linear(nn.Module):
    """An ``nn.Linear`` whose weight is int8, with a scale for each output."""

    rounded: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        _store(self, linear.weight)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The rounded weight, (out_features, in_features)."""
        return self.rounded * self.scale.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        y = F.linear(x, self.rounded.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """An ``nn.Embedding`` whose weight is int8, with a scale for each token."""

    rounded: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        _store(self, embedding.weight)

    @property
    def weight(self) -> Tensor:
        """The rounded weight, (num_embeddings, embedding_dim)."""
        return self.rounded * self.scale.unsqueeze(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) to (..., embedding_dim)."""
        return F.embedding(tokens, self.rounded).to(self.scale.dtype) * self.scale[tokens].unsqueeze(-1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class _LinearLogits(nn.Module):
    """``Logits`` with an ``nn.Linear`` for each block of rows."""

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self.blocks, self.directions, self.initial = logits.blocks, logits.directions, logits.initial
        self.maps = nn.ModuleDict()
        for direction in logits.directions:
            weight, bias = (getattr(logits, f"{name}_ih_l0{direction}") for name in ("weight", "bias"))
            self.maps[f"l0{direction}"] = _linears(weight, bias, logits.blocks)

    def forward(self, x: Tensor, direction: str = "") -> list[Tensor]:
        """(..., dim) to the logits of each block, (..., hidden)."""
        return _project(self.maps, x, 0, direction)


def _in_floating_point(module: MinRNN | Logits) -> bool:
    weight = module._parameters.get("weight_ih_l0")
    return weight is not None and not is_quantized(weight)


def _use_linears(layer: MinRNN) -> None:
    """Give a layer an ``nn.Linear`` for each block of rows, instead of its parameters."""
    maps, dtype = nn.ModuleDict(), layer.weight_ih_l0.dtype
    blocks = len(layer._hold_logits)
    for names in layer._all_weights:
        weight, *bias = (getattr(layer, name) for name in names)
        maps[names[0].removeprefix("weight_ih_")] = _linears(weight, bias[0] if bias else None, blocks)
        for name in names:
            delattr(layer, name)
    layer.maps = maps
    layer._project = partial(_project, maps)  # type: ignore[method-assign]
    layer._flat_weights, layer._flat_weights_names, layer._flat_weight_refs = [], [], []
    layer.weight_ih_l0 = torch.empty(0, dtype=dtype)  # type: ignore[assignment]  # read for its type


def _project(maps: nn.ModuleDict, x: Tensor, layer: int, direction: str = "") -> list[Tensor]:
    return [linear(x) for linear in cast("nn.ModuleList", maps[f"l{layer}{direction}"])]


def _linears(weight: Tensor, bias: Tensor | None, blocks: int) -> nn.ModuleList:
    """The linear map of each block of rows."""
    biases = [None] * blocks if bias is None else bias.chunk(blocks)
    linears = []
    for rows, shift in zip(weight.chunk(blocks), biases, strict=True):
        linear = nn.Linear(rows.shape[1], rows.shape[0], bias=shift is not None, device="meta")
        linear.weight = nn.Parameter(rows.detach().clone())
        if shift is not None:
            linear.bias = nn.Parameter(shift.detach().clone())
        linears.append(linear)
    return nn.ModuleList(linears)


def _store(module: nn.Module, weight: Tensor) -> None:
    """Keep a weight as int8, rounded to the nearest of 255 values for each row, and the size of a unit."""
    scale = weight.detach().abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    module.register_buffer("rounded", (weight.detach() / scale.unsqueeze(1)).round().to(torch.int8))
    module.register_buffer("scale", scale)


def _replace(model: nn.Module, fits: Any, make: Any) -> None:
    """Replace the modules within a model that fit; one that is used in several places stays one."""
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if fits(child):
                made.setdefault(child, make(child))
                setattr(parent, name, made[child])
