"""``MinGRU`` and ``MinLSTM``: layers with the interface of ``torch.nn.GRU`` around the functions of ``functional``."""

from typing import Any

import torch

from minrnn_lightning.nn.functional import min_gru, min_gru_step, min_lstm, min_lstm_step
from minrnn_lightning.nn.gru_interface import MinRNN
from minrnn_lightning.ops import Activation

CLOSED, OPEN = -1e4, 1e4  # logits whose sigmoid is 0 and 1 in every type, finite in float16


class MinGRU(MinRNN):
    """Recurrent layer of minGRU with the interface of ``torch.nn.GRU``.

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
        bidirectional: Whether each layer runs in both directions, with separate weights, and concatenates the outputs.
        activation: c: ``positive`` is the paper's g (v + ½ for v ≥ 0, σ(v) below), which keeps a state above zero;
            ``identity`` is none, the paper's first form, which fits regression sooner, with a larger learning rate than
            ``nn.GRU`` and a ``timescale`` (``tests/nn/test_timescale.py`` prints by how much).
        signed: Whether the state's factor runs over (−1, 1) instead of (0, 1): 1 − 2 z_t, or 2 f′_t − 1. A unit can
            then change sign at a step and so count modulo 2: parity, which positive factors cannot do at any length
            (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
        learn_initial_state: Whether h_0, where none is given, and the state after a reset are learned for each unit,
            instead of zero, as in the code of the paper's authors.
        timescale: The longest time constant, in steps, at the start: the gates' biases are shifted so that the units
            remember for 1 to ``timescale`` steps, evenly on a log scale (chrono initialisation, Tallec & Ollivier
            2018, https://arxiv.org/abs/1804.11188). 1 leaves them as ``nn.Linear`` has them: every unit remembers for
            about 2 steps.
        proj_size: 0, as in ``nn.GRU``: there is no projection.
        device: Device of the parameters.
        dtype: The type of the parameters.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], the activation unknown, the timescale below 1
            or without a bias, or there is a projection.
        TypeError: A size is not an int, or a flag not a bool.
    """

    mode = "MinGRU"
    _has_kernel = True
    _function = staticmethod(min_gru)
    _step_function = staticmethod(min_gru_step)
    _hold_logits = (CLOSED, 0.0)
    _keep_signs = (-1, 0)


class MinLSTM(MinRNN):
    """Recurrent layer of minLSTM with the interface of ``torch.nn.GRU``, since it has one state, h, and no cell state.

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
        bidirectional: Whether each layer runs in both directions, with separate weights, and concatenates the outputs.
        activation: c: ``positive`` is the paper's g (v + ½ for v ≥ 0, σ(v) below), which keeps a state above zero;
            ``identity`` is none, the paper's first form, which fits regression sooner, with a larger learning rate than
            ``nn.GRU`` and a ``timescale`` (``tests/nn/test_timescale.py`` prints by how much).
        signed: Whether the state's factor runs over (−1, 1) instead of (0, 1): 1 − 2 z_t, or 2 f′_t − 1. A unit can
            then change sign at a step and so count modulo 2: parity, which positive factors cannot do at any length
            (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
        learn_initial_state: Whether h_0, where none is given, and the state after a reset are learned for each unit,
            instead of zero, as in the code of the paper's authors.
        timescale: The longest time constant, in steps, at the start: the gates' biases are shifted so that the units
            remember for 1 to ``timescale`` steps, evenly on a log scale (chrono initialisation, Tallec & Ollivier
            2018, https://arxiv.org/abs/1804.11188). 1 leaves them as ``nn.Linear`` has them: every unit remembers for
            about 2 steps.
        normalize: Whether the two gates are divided by their sum, so that the state stays bounded whatever the length.
            The code of the paper's authors does not, so that a state can accumulate its inputs.
        forget_bias: Added to the initial bias of the forget gate; above zero, the state initially decays more slowly
            (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html).
        proj_size: 0, as in ``nn.GRU``: there is no projection.
        device: Device of the parameters.
        dtype: The type of the parameters.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], the activation unknown, the timescale below 1,
            or there is a forget bias or a timescale but no bias.
        TypeError: A size is not an int, or a flag not a bool.
    """

    mode = "MinLSTM"
    _has_kernel = True
    _function = staticmethod(min_lstm)
    _step_function = staticmethod(min_lstm_step)
    _hold_logits = (OPEN, CLOSED, 0.0)
    _keep_signs = (1, -1, 0)

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
        timescale: float = 1.0,
        normalize: bool = True,
        forget_bias: float = 0.0,
        proj_size: int = 0,
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
            timescale=timescale,
            proj_size=proj_size,
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

    def _options(self) -> dict[str, Any]:
        return {"normalize": self.normalize, **super()._options()}
