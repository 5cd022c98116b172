"""Units of minGRU that count.

A unit whose z is small sums its inputs instead of averaging them. The z of a counter is initially a million times
smaller, and its state is multiplied by a million in the linear map after it, so that it represents Σ exp(k) c(v), where
k lacks that part of its bias. Other units can represent the fraction of steps with a property, these their number.

They are an initialisation and not another recurrence: the factors z and 1 − z of minGRU add up to 1, so that only a z
near 0 sums, and training does not find it from the usual initialisation: without counters the accuracy in
recipes/formal_languages falls from 0.999 to 0.492 in bucket sort and from 0.791 to 0.566 in majority. Gates that are
independent of each other sum without them, as those of minLSTM with ``normalize=False``, but that is not minGRU.
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
