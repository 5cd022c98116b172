"""Units of minGRU that count.

A unit whose z is small adds up what it reads instead of averaging it. The z of a counter starts a million times smaller
and its state counts a million times more in the linear map after it, so that it stands for Σ exp(k) c(v), k less that
part of its bias. Other units can represent how large a share of the steps has a property, these how many steps have it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError

HORIZON = 1e6  # steps, far above any sequence's; float32 still distinguishes 1 - 1/HORIZON from 1


class CounterLinear(nn.Linear):
    """A linear map whose inputs from counters are first multiplied by ``HORIZON``.

    Args:
        in_features: ``hidden`` for each direction.
        out_features: As in ``nn.Linear``.
        hidden: Units of a direction.
        counting: How many of them, the last ones, are counters.
    """

    gain: Tensor

    def __init__(self, in_features: int, out_features: int, *, hidden: int, counting: int) -> None:
        super().__init__(in_features, out_features)
        gain = torch.cat([torch.ones(hidden - counting), torch.full((counting,), HORIZON)])
        self.register_buffer("gain", gain.repeat(in_features // hidden), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(..., in_features) to (..., out_features).

        Raises:
            InputError: The input is float16.
        """
        if input.dtype == torch.float16:
            raise InputError("float16 cannot hold the small states of counters; use bfloat16 or float32")
        return F.linear(self.gain * input, self.weight, self.bias)
