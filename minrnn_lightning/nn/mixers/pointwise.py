"""The mixer without memory: each step is a linear map of itself, so that a stack is an MLP."""

from torch import Tensor, nn

from minrnn_lightning.nn.mixers.base import Mixer
from minrnn_lightning.nn.state import State


class PointwiseMixer(Mixer):
    """The map y_t = W·x_t + b, a baseline without memory.

    It needs a backbone with ``kernel_size=0``, since a convolution sees earlier steps too.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(dim, dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """(batch, length, dim) to the same; the state is empty."""
        return self.linear(x), ()

    def mix_step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of ``mix``: (batch, dim) to the same."""
        return self.linear(x_t), ()

    def initial_state(self, batch_size: int) -> State:
        """Nothing."""
        return ()
