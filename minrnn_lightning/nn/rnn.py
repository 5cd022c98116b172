"""``MinGRU`` and ``MinLSTM``: layers with the interface of ``torch.nn.GRU``, computed by a parallel scan."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.nn.rnn_base import MinRNN
from minrnn_lightning.ops import Activation, gated_scan, linear_scan
from minrnn_lightning.ops.portable import state_dtype

SHUT, OPEN = -1e4, 1e4  # logits whose sigmoid is 0 and 1 in every type, finite in float16


class MinGRU(MinRNN):
    """minGRU with the interface of ``torch.nn.GRU``.

    h_t = h_{t-1} + σ(k_t) · (c(v_t) − h_{t-1}), with the gate k_t and the candidate v_t linear in x_t. Source: "Were
    RNNs All We Needed?" (https://arxiv.org/abs/2410.01201), section 3.1. The parameters ``weight_ih_l0``,
    ``bias_ih_l0``, ``weight_ih_l0_reverse``, … hold the rows of gate and candidate, one after the other.

    Args:
        input_size: Features of the input.
        hidden_size: Features of the state.
        num_layers: Layers stacked on each other.
        bias: Whether the linear maps have a bias.
        batch_first: Whether input and output are (batch, length, features) instead of (length, batch, features).
        dropout: Probability of dropping an output of any layer but the last.
        bidirectional: Whether each layer runs in both directions, with separate weights, and joins the outputs.
        activation: c: ``positive`` is the paper's g (v + ½ for v ≥ 0, σ(v) below), which keeps a state above zero;
            ``identity`` is none, the paper's first form.
        device: Where the parameters live.
        dtype: The type of the parameters.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], or the activation unknown.
        TypeError: A size is not an int, or a flag not a bool.
    """

    _idle = (SHUT, 0.0)

    def _scan(self, logits: Sequence[Tensor], h_0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
        gate, candidate = logits
        return gated_scan(gate, candidate, h_0, activation=self.activation, reset=reset, reverse=reverse)

    def _cell(self, logits: Sequence[Tensor], h: Tensor) -> Tensor:
        gate, candidate = logits
        return h + torch.sigmoid(gate) * (self._candidate(candidate) - h)


class MinLSTM(MinRNN):
    """minLSTM with the interface of ``torch.nn.GRU``: like minGRU it has one state, h, and no cell state.

    h_t = f′_t · h_{t-1} + i′_t · c(v_t), with f = σ(f̂_t), i = σ(î_t) and f̂_t, î_t, v_t linear in x_t. Normalised,
    f′ = f / (f + i) and i′ = i / (f + i), which is minGRU with the gate log i − log f; otherwise f′ = f and i′ = i.
    Source: "Were RNNs All We Needed?" (https://arxiv.org/abs/2410.01201), section 3.2. The parameters
    ``weight_ih_l0``, ``bias_ih_l0``, … hold the rows of forget gate, input gate and candidate, one after the other.

    Args:
        input_size: Features of the input.
        hidden_size: Features of the state.
        num_layers: Layers stacked on each other.
        bias: Whether the linear maps have a bias.
        batch_first: Whether input and output are (batch, length, features) instead of (length, batch, features).
        dropout: Probability of dropping an output of any layer but the last.
        bidirectional: Whether each layer runs in both directions, with separate weights, and joins the outputs.
        activation: c: ``positive`` is the paper's g (v + ½ for v ≥ 0, σ(v) below), which keeps a state above zero;
            ``identity`` is none, the paper's first form.
        normalize: Whether the two gates are divided by their sum, so that the state stays bounded whatever the length.
        forget_bias: Added to the initial bias of the forget gate; above zero, the state starts out remembered longer.
        device: Where the parameters live.
        dtype: The type of the parameters.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], the activation unknown, or there is a forget
            bias but no bias.
        TypeError: A size is not an int, or a flag not a bool.
    """

    _idle = (OPEN, SHUT, 0.0)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: Activation = "positive",
        normalize: bool = True,
        forget_bias: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if forget_bias and not bias:
            raise ValueError(f"forget_bias={forget_bias} needs a bias to add it to, got bias={bias}")
        self.normalize = normalize
        self.forget_bias = forget_bias  # before the base class, whose __init__ ends with reset_parameters
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draw every parameter as minGRU does, and add ``forget_bias`` to the bias of the forget gate."""
        super().reset_parameters()
        if self.forget_bias:
            with torch.no_grad():
                for _, bias in self.all_weights:
                    bias[: self.hidden_size] += self.forget_bias

    def _scan(self, logits: Sequence[Tensor], h_0: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
        forget, input_, candidate = logits
        if self.normalize:
            return gated_scan(
                input_, candidate, h_0, forget=forget, activation=self.activation, reset=reset, reverse=reverse
            )
        wide = state_dtype(forget.dtype)  # in 16 bits, σ(forget) above 0.998 would be 1
        decay, update = torch.sigmoid(forget.to(wide)), torch.sigmoid(input_.to(wide)) * self._candidate(candidate)
        return linear_scan(decay, update, h_0, reset=reset, reverse=reverse).to(forget.dtype)

    def _cell(self, logits: Sequence[Tensor], h: Tensor) -> Tensor:
        forget, input_, candidate = logits
        if self.normalize:
            gate = F.logsigmoid(input_) - F.logsigmoid(forget)
            return h + torch.sigmoid(gate) * (self._candidate(candidate) - h)
        return torch.sigmoid(forget) * h + torch.sigmoid(input_) * self._candidate(candidate)
