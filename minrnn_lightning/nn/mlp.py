"""The MLP of a block, plain or gated."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

MLP = Literal["gelu", "swiglu", "geglu"]


class GatedMLP(nn.Module):
    """out(activation(gate(x)) ⊙ value(x)): "GLU Variants Improve Transformer" (https://arxiv.org/abs/2002.05202).

    Args:
        dim: Width of input and output.
        hidden: Hidden units.
        swish: Whether the activation is SiLU (SwiGLU) instead of GELU (GEGLU).
    """

    def __init__(self, dim: int, hidden: int, *, swish: bool) -> None:
        super().__init__()
        self.activation = F.silu if swish else F.gelu
        self.gate = nn.Linear(dim, hidden)
        self.value = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        y: Tensor = self.out(self.activation(self.gate(x)) * self.value(x))
        return y


def make_mlp(mlp: MLP, dim: int, ratio: float) -> nn.Module:
    """An MLP with as many parameters as the plain one has with ``ratio`` hidden units per channel."""
    hidden = round(dim * ratio)
    if mlp == "gelu":
        return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
    # Three matrices and two hidden biases instead of two and one.
    return GatedMLP(dim, max(1, round(hidden * (2 * dim + 1) / (3 * dim + 2))), swish=mlp == "swiglu")
