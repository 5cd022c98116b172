"""``MinGRU`` and ``MinLSTM``: layers with the interface of ``torch.nn.GRU``, computed by a parallel scan."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.nn.rnn_base import MinRNN
from minrnn_lightning.ops import Activation, gated_scan, linear_scan
from minrnn_lightning.ops.eager import gate_logit, state_dtype

SHUT, OPEN = -1e4, 1e4  # logits whose sigmoid is 0 and 1 in every type, finite in float16


class GatedRNN(MinRNN):
    """h_t = a_t · h_{t-1} + i_t · c(v_t); the layers say which logits the gates are made of."""

    normalize = True  # whether a and i add up to 1; minLSTM has a choice

    def _balanced(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """k, v and f of ``gated_scan``, whose gates a and i add up to 1."""
        raise NotImplementedError

    def _maps(self, logits: Sequence[Tensor], delta_t: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decay a and update i · c(v) of every step, from logits in the type of the state."""
        k, v, f = self._balanced(logits)
        k = gate_logit(k, f)
        if delta_t is not None:  # 1 − z to the power of Δt
            y = (delta_t.to(k.dtype).unsqueeze(-1) * F.softplus(k)).clamp_min(torch.finfo(k.dtype).tiny)
            k = y + torch.log(-torch.expm1(-y))
        z = torch.sigmoid(k)
        # σ(−k), not 1 − z, which loses its digits where z is near 1.
        return 1 - 2 * z if self.signed else torch.sigmoid(-k), z * self._candidate(v)

    def _scan(
        self,
        logits: Sequence[Tensor],
        h_0: Tensor,
        reset: Tensor | None,
        reverse: bool,
        delta_t: Tensor | None,
        origin: Tensor | None,
    ) -> Tensor:
        if self.normalize and not self.signed and delta_t is None and origin is None:
            k, v, f = self._balanced(logits)
            return gated_scan(k, v, h_0, forget=f, activation=self.activation, reset=reset, reverse=reverse)
        wide = state_dtype(logits[0].dtype)  # in 16 bits, a decay above 0.998 would be 1
        decay, update = self._maps([logit.to(wide) for logit in logits], delta_t)
        if origin is not None:  # measured from there, a reset leads to zero
            update, h_0 = update - (1 - decay) * origin, h_0 - origin
        h = linear_scan(decay, update, h_0, reset=reset, reverse=reverse)
        return (h if origin is None else h + origin).to(logits[0].dtype)

    def _cell(self, logits: Sequence[Tensor], h: Tensor, delta_t: Tensor | None) -> Tensor:
        decay, update = self._maps(logits, delta_t)
        return torch.addcmul(update, decay, h)


class MinGRU(GatedRNN):
    """minGRU with the interface of ``torch.nn.GRU``.

    h_t = h_{t-1} + σ(k_t) · (c(v_t) − h_{t-1}), with the gate k_t and the candidate v_t linear in x_t. Source: "Were
    RNNs All We Needed?" (https://arxiv.org/abs/2410.01201), section 3.1. The parameters ``weight_ih_l0``,
    ``bias_ih_l0``, ``weight_ih_l0_reverse``, … hold the rows of gate and candidate, one after the other.

    Inputs must be finite, and states within the range of their type: an infinite one may turn its channel to NaN.

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
        signed: Whether the state's factor runs over (−1, 1) instead of (0, 1): 1 − 2 z_t, or 2 f′_t − 1. A unit can
            then change sign at a step and so count modulo 2: parity, which positive factors cannot do at any length
            (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
        learn_initial_state: Whether h_0, where none is given, and the state after a reset are learned for each unit,
            instead of zero, as in the code of the paper's authors.
        device: Where the parameters live.
        dtype: The type of the parameters.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], or the activation unknown.
        TypeError: A size is not an int, or a flag not a bool.
    """

    _idle = (SHUT, 0.0)

    def _balanced(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, None]:
        gate, candidate = logits
        return gate, candidate, None


class MinLSTM(GatedRNN):
    """minLSTM with the interface of ``torch.nn.GRU``: like minGRU it has one state, h, and no cell state.

    h_t = f′_t · h_{t-1} + i′_t · c(v_t), with f = σ(f̂_t), i = σ(î_t) and f̂_t, î_t, v_t linear in x_t. Normalised,
    f′ = f / (f + i) and i′ = i / (f + i), which is minGRU with the gate log i − log f; otherwise f′ = f and i′ = i.
    Source: "Were RNNs All We Needed?" (https://arxiv.org/abs/2410.01201), section 3.2. The parameters
    ``weight_ih_l0``, ``bias_ih_l0``, … hold the rows of forget gate, input gate and candidate, one after the other.

    Inputs must be finite, and states within the range of their type: an infinite one may turn its channel to NaN.

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
        signed: Whether the state's factor runs over (−1, 1) instead of (0, 1): 1 − 2 z_t, or 2 f′_t − 1. A unit can
            then change sign at a step and so count modulo 2: parity, which positive factors cannot do at any length
            (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
        learn_initial_state: Whether h_0, where none is given, and the state after a reset are learned for each unit,
            instead of zero, as in the code of the paper's authors.
        normalize: Whether the two gates are divided by their sum, so that the state stays bounded whatever the length.
            The code of the paper's authors does not, which lets a state add up what it reads.
        forget_bias: Added to the initial bias of the forget gate; above zero, the state starts out remembered longer
            (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html).
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
        signed: bool = False,
        learn_initial_state: bool = False,
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
            signed=signed,
            learn_initial_state=learn_initial_state,
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

    def _balanced(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        forget, input_, candidate = logits
        return input_, candidate, forget

    def _maps(self, logits: Sequence[Tensor], delta_t: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.normalize:
            return super()._maps(logits, delta_t)
        forget, input_, candidate = logits
        log_decay = F.logsigmoid(forget)
        log_decay = log_decay if delta_t is None else log_decay * delta_t.to(forget.dtype).unsqueeze(-1)
        decay = log_decay.exp()
        return 2 * decay - 1 if self.signed else decay, torch.sigmoid(input_) * self._candidate(candidate)
