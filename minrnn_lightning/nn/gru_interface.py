"""The interface of ``torch.nn.GRU`` around a recurrence that is a function of logits."""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, overload

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.checks import check_arguments, check_sequence, check_step
from minrnn_lightning.nn.functional import activate
from minrnn_lightning.nn.fused_step import fused_layers
from minrnn_lightning.nn.linear_views import LinearViews, project
from minrnn_lightning.nn.state import zero_state
from minrnn_lightning.nn.timescale import log_timescales
from minrnn_lightning.ops import Activation
from minrnn_lightning.ops.eager import STORAGE, state_dtype
from minrnn_lightning.ops.scan import check_dense


class MinRNN(LinearViews, nn.RNNBase):
    """The interface of ``torch.nn.GRU``; subclasses define the recurrence and the number of its blocks of logits."""

    _function: ClassVar[Callable[..., Tensor]]
    _step_function: ClassVar[Callable[..., Tensor]]
    _hold_logits: ClassVar[tuple[float, ...]]  # for each block of weight rows, the logit that leaves the state as it is
    _keep_signs: ClassVar[tuple[int, ...]]  # for each block, in which direction its logit makes the memory longer
    weight_ih_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    initial: nn.Parameter | None

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
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if timescale != 1 and not bias:
            raise InputError(f"timescale={timescale} needs a bias to add it to, got bias={bias}")
        nn.Module.__init__(self)  # that of RNNBase makes the weights of nn.GRU
        num_layers = int(num_layers) if isinstance(num_layers, np.integer) else num_layers
        check_arguments(
            dropout,
            {"bias": bias, "batch_first": batch_first},
            {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers},
            activation,
            proj_size,
        )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.activation: Activation = activation
        self.signed = signed
        self.learn_initial_state = learn_initial_state
        self.timescale = timescale
        self.proj_size = proj_size

        self._directions = ("", "_reverse") if bidirectional else ("",)
        rows = len(self._hold_logits) * hidden_size
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            columns = input_size if layer == 0 else hidden_size * len(self._directions)
            for direction in self._directions:
                self._all_weights.append(self._names(layer, direction))
                for name, shape in zip(self._all_weights[-1], ((rows, columns), (rows,)), strict=False):
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        initial = torch.empty(num_layers * len(self._directions), hidden_size, device=device, dtype=dtype)
        self.register_parameter("initial", nn.Parameter(initial) if learn_initial_state else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/√n, 1/√n), n the number of input features, as ``nn.Linear`` does.

        A learned initial state starts with N(0, 1), before the activation. With a ``timescale``, the logarithms of the
        time constants are added to the biases of the gates.
        """
        log_times = log_timescales(self.hidden_size, self.timescale)
        for parameters in self.all_weights:
            bound = 1 / math.sqrt(parameters[0].shape[1])
            for parameter in parameters:
                nn.init.uniform_(parameter, -bound, bound)
            if self.timescale != 1:
                with torch.no_grad():
                    for sign, bias in zip(self._keep_signs, parameters[1].chunk(len(self._keep_signs)), strict=True):
                        bias += sign * log_times.to(bias)
        if self.initial is not None:
            nn.init.normal_(self.initial)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.GRU's name for it
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run a sequence; in chunks, with h_n passed on as ``hx``, the result is the same.

        Args:
            input: (length, batch, input_size), or (batch, length, input_size) with ``batch_first``, or unbatched
                (length, input_size), or a ``PackedSequence``.
            hx: h_0, the state before the first step (a state, not a pre-activation), (num_layers · directions, batch,
                hidden_size), without batch where the input has none; the learned one, or else zeros, if None.
            reset: Bool, shaped like ``input`` without its features, True where a new sequence starts: no state
                crosses from the step before to this one, nor back in the backward direction.
            delta_t: Shaped like ``reset``, at least 0: the time since the step before, for samples at irregular times.
                The state is forgotten as in so many steps, z becomes 1 − (1 − z)^Δt; 1 changes nothing. Decay by the
                time that has passed is that of GRU-D (Che et al. 2018, https://arxiv.org/abs/1606.01865).
            mask: Bool, shaped like ``reset``, False at padding, through which the state of each direction is carried
                unchanged, as it is between the sequences of a ``PackedSequence``: h_n is that of the last real step.

        Returns:
            The states of the last layer, laid out like ``input``, with directions · hidden_size features, and h_n, the
            final state of each layer and direction, laid out like ``hx``.

        Raises:
            ValueError: The input has a wrong number of dimensions or a type other than the weights', or ``reset``,
                ``delta_t`` or ``mask`` does not fit.
            RuntimeError: A size of ``input`` or ``hx`` does not fit, the sequence is empty, or ``hx`` is float64 and
                ``input`` is not.
            TypeError: ``hx`` is the pair of states that ``nn.LSTM`` takes, or an argument is no dense tensor, or of a
                type that it cannot have.
        """
        if isinstance(input, torch.fx.Proxy):  # a leaf of torch.fx, which does not look into nn.GRU either
            path = input.tracer.path_of_module(self)
            options = {"reset": reset, "delta_t": delta_t, "mask": mask}
            given = {key: value for key, value in options.items() if value is not None}
            return input.tracer.create_proxy("call_module", path, (input, hx), given)
        name = type(self).__name__
        if isinstance(hx, tuple):
            raise TypeError(f"{name}: hx should be one tensor, there is no cell state; got a tuple of {len(hx)}")
        if isinstance(input, PackedSequence):
            if not (reset is None and delta_t is None and mask is None):
                raise ValueError(f"{name}: mask, reset and delta_t need padded input, got a PackedSequence")
            check_dense(f"{name}: input", input.data)
            if hx is not None:
                check_dense(f"{name}: hx", hx)
            return self._run_packed(input, hx)
        check_sequence(name, input, hx, {"reset": reset, "mask": mask}, delta_t, self.signed)
        each_step = [reset, delta_t, None if mask is None else ~mask]
        if input.dim() == 2:
            hx = None if hx is None else hx.unsqueeze(1)
            each_step = [None if x is None else x.unsqueeze(0) for x in each_step]
            output, h_n = self._run(input.unsqueeze(0), hx, *each_step)
            return output.squeeze(0), h_n.squeeze(1)
        if self.batch_first:
            return self._run(input, hx, *each_step)
        each_step = [None if x is None else x.transpose(0, 1) for x in each_step]
        output, h_n = self._run(input.transpose(0, 1), hx, *each_step)
        return output.transpose(0, 1).contiguous(), h_n  # models written for nn.GRU rely on it with .view

    def step(
        self,
        input_t: Tensor,
        h: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one time step, with gradients, at constant cost.

        Args:
            input_t: (batch, input_size) or unbatched (input_size,).
            h: The state of all layers, (num_layers, batch, hidden_size), without batch where the input has none;
                the learned one, or else zeros, if None.
            reset: Bool (batch,), or () where the input has no batch, True where a new sequence starts: ``h`` is
                replaced by the learned initial state, or else zeros, as in ``forward``.
            delta_t: (batch,), or () where the input has no batch: the time since the step before; see ``forward``.

        Returns:
            The state of the last layer, (batch, hidden_size), and the new state of all layers, which is float32
            (float64 for float64 inputs), since 16 bits would lose small updates.

        Raises:
            RuntimeError: The layer is bidirectional, or a size does not fit.
            ValueError: The input has a wrong number of dimensions or a type other than the weights'.
            TypeError: An argument is no dense tensor, or of a type that it cannot have.
        """
        check_step(type(self).__name__, input_t, h, reset, delta_t, self.signed, self.bidirectional)
        if input_t.dim() == 1:
            h = None if h is None else h.unsqueeze(1)
            reset, delta_t = (None if x is None else x.unsqueeze(0) for x in (reset, delta_t))
            output_t, h = self.step(input_t.unsqueeze(0), h, reset=reset, delta_t=delta_t)
            return output_t.squeeze(0), h.squeeze(1)
        x, h_0 = self._checked(input_t, h)
        if delta_t is None and (result := self._fused_step(x, h_0, reset)) is not None:
            return result
        if reset is not None:
            h_0 = torch.where(reset.unsqueeze(-1), self.initial_state(x.shape[0]), h_0)
        final: list[Tensor] = []
        for layer, before in enumerate(h_0.unbind()):
            logits = self._project(x, layer)
            final.append(self._step_function(*logits, before, delta_t=delta_t, **self._options()))
            x = self._between(layer, final[-1].to(logits[0].dtype))
        return x, torch.stack(final)

    def initial_state(self, batch_size: int) -> Tensor:
        """The state before the first step where none is given: (num_layers · directions, batch, hidden_size).

        It is float32, or float64 where the weights are.
        """
        starts = self._starts()
        if starts is None:
            weight, layers = self.weight_ih_l0, self.num_layers * len(self._directions)
            return zero_state(weight, layers, batch_size, self.hidden_size)
        return starts.unsqueeze(1).repeat(1, batch_size, 1)  # a copy: who writes to a state does not mean the weights

    def _starts(self) -> Tensor | None:
        """The learned initial state of each layer and direction, (num_layers · directions, hidden_size)."""
        if self.initial is None:
            return None
        return activate(self.initial.to(state_dtype(self.initial.dtype)), self.activation)

    def _options(self) -> dict[str, Any]:
        return {"activation": self.activation, "signed": self.signed}

    def _run(
        self,
        x: Tensor,
        h_0: Tensor | None,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Every layer and direction over (batch, length, features)."""
        x, h_0 = self._checked(x, h_0)
        if x.shape[1] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        # An exporter would take the question whether it is one step for a condition.
        if delta_t is None and padding is None and not torch.compiler.is_compiling() and x.shape[1] == 1:
            result = self._fused_step(x[:, 0], h_0, None if reset is None else reset[:, 0])
            if result is not None:
                return result[0].unsqueeze(1), result[1]
        starts = self._starts()
        final: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse, direction in enumerate(self._directions):
                logits, before = self._project(x, layer, direction), h_0[len(final)]
                if padding is not None:
                    held = zip(logits, self._hold_logits, strict=True)
                    logits = [logit.masked_fill(padding.unsqueeze(2), hold) for logit, hold in held]
                h = self._function(
                    *logits,
                    before,
                    reset=reset,
                    reverse=bool(reverse),
                    delta_t=delta_t,
                    initial_state=None if starts is None else starts[len(final)],
                    **self._options(),
                )
                final.append(h[:, 0 if reverse else -1])
                outputs.append(h)
            x = self._between(layer, torch.cat(outputs, -1) if self.bidirectional else outputs[0])
        return x, torch.stack(final)

    def _fused_step(self, x: Tensor, h_0: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """``step`` by one kernel, or None where it lacks something; a subclass may have overridden any part of it."""
        if torch.compiler.is_compiling():
            return None
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        learns = reset is not None and self.initial is not None
        if "_has_kernel" not in type(self).__dict__ or self.bidirectional or drops or learns:
            return None
        sizes = self.input_size, self.num_layers, self.hidden_size
        return fused_layers(self, sizes, len(self._hold_logits), self._options(), x, h_0, reset)

    def _run_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Pad, run with the state unchanged in the padding, so that each direction starts at its own end, and pack."""
        data, batch_sizes, order, unorder = packed
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes), batch_first=True)  # the longest first
        _, hx = self._checked(x, hx)
        padding = (torch.arange(x.shape[1], device=lengths.device) >= lengths.unsqueeze(1)).to(x.device)
        output, h_n = self._run(x, hx if order is None else hx.index_select(1, order), padding=padding)
        output = pack_padded_sequence(output, lengths, batch_first=True).data
        return packed._replace(data=output), h_n if unorder is None else h_n.index_select(1, unorder)

    def _project(self, x: Tensor, layer: int, direction: str = "") -> list[Tensor]:
        """The logits of each block."""
        parameters = (getattr(self, name) for name in self._names(layer, direction))
        return project(x, len(self._hold_logits), *parameters)

    def _between(self, layer: int, x: Tensor) -> Tensor:
        """Dropout after all layers but the last."""
        return F.dropout(x, self.dropout, self.training) if layer + 1 < self.num_layers else x

    def _checked(self, x: Tensor, h_0: Tensor | None) -> tuple[Tensor, Tensor]:
        """The input, (batch, ..., features), and the initial state of every layer and direction."""
        dtype = self.weight_ih_l0.dtype
        if x.dtype != dtype and not (torch.is_autocast_enabled(x.device.type) and x.dtype in STORAGE):
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        expected = (self.num_layers * len(self._directions), x.shape[0], self.hidden_size)
        h_0 = self.initial_state(x.shape[0]) if h_0 is None else h_0
        if h_0.shape != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(h_0.shape)}")
        if h_0.dtype not in STORAGE:
            raise TypeError(
                f"{type(self).__name__}: h_0 must be float16, bfloat16, float32 or float64, got {h_0.dtype}"
            )
        if h_0.dtype == torch.float64 != dtype:
            raise RuntimeError(
                f"{type(self).__name__}: h_0 must be at most float32, the type of the state, for weights of {dtype}, "
                "got torch.float64"
            )
        return x, h_0

    def _names(self, layer: int, direction: str) -> list[str]:
        return [f"{name}_ih_l{layer}{direction}" for name in ("weight", "bias")[: 1 + self.bias]]

    def flatten_parameters(self) -> None:
        """Do nothing; ``nn.GRU`` has it for cuDNN."""

    def extra_repr(self) -> str:
        """The sizes, and each option that is not the default."""
        defaults: dict[str, object]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        defaults |= {"activation": "positive", "signed": False, "learn_initial_state": False}
        defaults |= {"timescale": 1.0, "normalize": True, "forget_bias": 0.0}
        options = ((name, getattr(self, name, default), default) for name, default in defaults.items())
        changed = [f"{name}={value}" for name, value, default in options if value != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])
