"""What the ``gru`` and ``lstm`` mixers share: PyTorch's own kernels (cuDNN on GPUs), with resets and an exact state."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from minrnn_lightning.nn.marks import mark_maps
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size, is_exporting
from minrnn_lightning.nn.state import zero_state
from minrnn_lightning.ops.decomposition import exporting_to_onnx, loop
from minrnn_lightning.ops.eager import state_dtype


class TorchRNNMixer(Mixer):
    """A layer of ``nn.GRU`` or ``nn.LSTM`` of ``expansion`` times the width, and a linear map back.

    The state is the tuple (h,) or (h, c), each (batch, hidden_size), in float32 (float64 for float64 inputs).

    Args:
        mode: ``GRU`` or ``LSTM``.
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
    """

    def __init__(self, mode: Literal["GRU", "LSTM"], dim: int, expansion: float) -> None:
        super().__init__()
        self.dim = dim
        hidden = hidden_size(dim, expansion)
        self.rnn = nn.RNNBase(mode, dim, hidden, batch_first=True)  # the base of nn.GRU, which Dynamo does not refuse
        for parameter in self.rnn.parameters():
            mark_maps(parameter, len(parameter) // hidden)
        self.out = nn.Linear(hidden, dim)

    def mix(
        self, x: Tensor, state: tuple[Tensor, ...] | None, reset: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        x = x.to(self.out.weight.dtype)  # which autocast leaves to the kernels
        state = tuple(s.to(x.dtype) for s in (self.initial_state(x.shape[0]) if state is None else state))
        if exporting_to_onnx():
            h, state = self._run_loop(x, state, reset)
        else:
            h, state = self._run(x, state) if reset is None else self._run_segments(x, state, reset)
        return self.out(h), tuple(s.to(state_dtype(s.dtype)) for s in state)

    def mix_step(self, x_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of ``forward``: (batch, dim) and the state to the same."""
        if not is_exporting():
            y, state = self(x_t.unsqueeze(1), state)
            return y.squeeze(1), state
        state = _cell(self.rnn.mode, self._weights, state, x_t)
        return self.out(state[0]), state

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros."""
        names = "h" if self.rnn.mode == "GRU" else "hc"
        return tuple(zero_state(self.out.weight, batch_size, self.rnn.hidden_size) for _ in names)

    @property
    def _weights(self) -> list[Tensor]:
        return [*self.rnn.all_weights[0]]

    def _run(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if is_exporting() or x.is_meta:  # for any length, not written out step by step; without gradients
            h, *after = opaque(self.rnn.mode, x, list(state), self._weights)
            return h, tuple(after)
        return _layer(self.rnn.mode, self._weights, state, x, train=self.training)

    def _run_loop(self, x: Tensor, state: Sequence[Tensor], reset: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run step by step, as a loop that exporters know."""
        states, resets = len(state), [] if reset is None else [reset]

        def step(*given: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            before, (x_t, *rest) = given[:states], given[states:]
            if resets:
                start, *rest = rest
                before = tuple(s.masked_fill(start.unsqueeze(1), 0) for s in before)
            after = _cell(self.rnn.mode, rest, before, x_t)
            return after, after[0]

        after, h = loop(step, state, [x, *resets], self._weights)
        return h, tuple(after)

    @_disable_dynamo  # the values decide how many segments there are; torch.compiler.disable would import the compiler
    def _run_segments(self, x: Tensor, state: tuple[Tensor, ...], reset: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the segments between resets as separate sequences, packed into one call."""
        starts = reset.clone()
        starts[:, 0] = True
        row, t = starts.nonzero(as_tuple=True)  # of every segment, row by row
        lengths = torch.diff(row * x.shape[1] + t, append=row.new_tensor([reset.numel()]))
        packed = pack_sequence(list(torch.split(x.flatten(0, 1), lengths.tolist())), enforce_sorted=False)
        before = tuple(s[row].masked_fill(reset[row, t].unsqueeze(1), 0) for s in state)
        h, after = _layer(
            self.rnn.mode,
            self._weights,
            tuple(s[packed.sorted_indices] for s in before),
            packed.data,
            packed.batch_sizes,
            train=self.training,
        )
        last = torch.diff(row, append=row.new_tensor([reset.shape[0]])) > 0  # segments that end a row
        return (
            torch.cat(unpack_sequence(packed._replace(data=h))).view(*x.shape[:2], -1),
            tuple(s[packed.unsorted_indices][last] for s in after),
        )


def _cell(mode: str, weights: Sequence[Tensor], state: Sequence[Tensor], x_t: Tensor) -> tuple[Tensor, ...]:
    """The state after one step."""
    if mode == "GRU":
        return (torch.gru_cell(x_t, *state, *weights),)
    return torch.lstm_cell(x_t, state, *weights)  # type: ignore[arg-type]


def _layer(
    mode: str, weights: Sequence[Tensor], state: Sequence[Tensor], *x: Tensor, train: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Every h and the state after the last, of (batch, length, features) or of packed data and batch sizes."""
    before = [s.unsqueeze(0) for s in state]
    layout = (True,) if len(x) == 1 else ()  # batch first; packed data have no such choice
    layer: Any = torch.gru if mode == "GRU" else torch.lstm
    h, *after = layer(*x, before[0] if mode == "GRU" else before, weights, True, 1, 0.0, train, False, *layout)
    return h, tuple(s.squeeze(0) for s in after)


@torch.library.custom_op(  # with its schema, which torch 2.6 does not infer from list[Tensor]
    "minrnn::rnn", mutates_args=(), schema="(str mode, Tensor x, Tensor[] state, Tensor[] weights) -> Tensor[]"
)
def opaque(mode: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """[h, *state] of a layer, as one operator."""
    h, after = _layer(mode, weights, state, x, train=False)
    return [h.contiguous(), *(s.clone() for s in after)]


@opaque.register_fake
def _(mode: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(*x.shape[:2], state[0].shape[1]), *map(torch.empty_like, state)]
