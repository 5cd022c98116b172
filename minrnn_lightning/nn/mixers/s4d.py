"""The S4D mixer: a linear state-space model with a diagonal matrix, trained as a convolution, run as a recurrence."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.marks import undecayed
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size
from minrnn_lightning.nn.mixers.segments import split_at_resets
from minrnn_lightning.nn.mixers.ssm import log_step_sizes
from minrnn_lightning.ops.decomposition import exporting_to_onnx, loop
from minrnn_lightning.ops.eager import state_dtype

BLOCK = 64  # steps whose powers of Ā are computed one by one; further ones are products of two


class S4DMixer(Mixer):
    """Diagonal S4 between two linear maps: out(GELU(SSM(in(x)))).

    Each inner channel u is filtered by h'(s) = A h(s) + u(s), y(s) = 2·Re(C h(s)) + D u(s) with a diagonal A, sampled
    with a step size Δ of its own by zero-order hold: h_t = Ā h_{t-1} + B̄ u_t with Ā = exp(ΔA), B̄ = (Ā − 1) / A.
    Source: "On the Parameterization and Initialization of Diagonal State Space Models" (Gu et al. 2022,
    https://arxiv.org/abs/2206.11893). B is 1, since only its product with C matters.

    ``state_size`` N counts real numbers: the state is N/2 complex ones, each of which represents its conjugate too,
    hence the factor 2. It is kept as real and imaginary parts, (batch, inner, N/2, 2), in float32 (float64 for float64
    inputs), as is all of the SSM whatever the type of the inputs.

    Args:
        dim: Width of input and output.
        expansion: Inner channels per channel of the input.
        state_size: N, an even number.
        init: Imaginary parts of A: ``lin`` spreads them evenly, A_n = −1/2 + iπn (S4D-Lin), ``inv`` follows those of
            HiPPO-LegS, A_n = −1/2 + i(N/π)(N/(2n+1) − 1) (S4D-Inv).

    Raises:
        InputError: ``state_size`` is odd or below 2, ``init`` is unknown, or there would be no inner channel.
    """

    def __init__(
        self, dim: int, expansion: float = 1.0, *, state_size: int = 64, init: Literal["lin", "inv"] = "lin"
    ) -> None:
        super().__init__()
        self.dim = dim
        if state_size < 2 or state_size % 2:
            raise InputError(f"state_size must be even and at least 2, got {state_size}")
        if init not in ("lin", "inv"):
            raise InputError(f"init is {init!r}; it can be 'lin' or 'inv'")
        inner, pairs = hidden_size(dim, expansion), state_size // 2
        n = torch.arange(pairs)
        frequency = math.pi * n if init == "lin" else state_size / math.pi * (state_size / (2 * n + 1) - 1)
        self.in_proj = nn.Linear(dim, inner)
        self.log_dt = nn.Parameter(log_step_sizes(inner))
        self.log_A_real = undecayed(torch.full((inner, pairs), math.log(0.5)))  # A = −exp(log_A_real) + i·A_imag
        self.A_imag = undecayed(frequency.repeat(inner, 1))
        self.C = nn.Parameter(torch.randn(inner, pairs, 2) * math.sqrt(0.5))  # complex, of variance 1
        self.D = nn.Parameter(torch.randn(inner))
        self.out_proj = nn.Linear(inner, dim)

    def mix(self, x: Tensor, state: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (batch, length, dim) along the length by FFT; see ``Mixer``."""
        projected = self.in_proj(x)
        u, length = projected.to(state_dtype(projected.dtype)), x.shape[1]
        if exporting_to_onnx():
            y, h = self._run_loop(u, state, reset)
            return self.out_proj(F.gelu(y + self.D * u).to(projected.dtype)), h
        log_a, b, c = map(torch.view_as_complex, self._discretized(u.dtype))
        powers = _powers(log_a, length)
        kernel = _free_outputs(c * b, powers, length)
        if reset is None:
            y, recent = _convolve(u, kernel), u
        else:
            segments, positions = split_at_resets(u, reset)
            y = _convolve(segments, kernel[:, : segments.shape[1]])[positions]
            resets = reset.cumsum(1).unsqueeze(2)
            recent = u.masked_fill(resets < resets[:, -1:], 0)  # what comes after the last one
        h = b * _final_sums(recent, powers)
        if state is not None:  # its own outputs and what is left of it, up to the first reset
            before = log_a.exp() * torch.view_as_complex(state.to(u.dtype))
            free = _free_outputs(c * before, powers, length).transpose(1, 2)
            left = torch.exp((length - 1) * log_a) * before
            y = y + (free if reset is None else free.masked_fill(resets > 0, 0))
            h = h + (left if reset is None else left.masked_fill(resets[:, -1:] > 0, 0))
        y = F.gelu(y + self.D * u)
        return self.out_proj(y.to(projected.dtype)), torch.view_as_real(h)

    def mix_step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of ``forward``, by the recurrence: (batch, dim) and the state to the same."""
        projected = self.in_proj(x_t)
        u = projected.to(state_dtype(projected.dtype))
        (h,), y = _step(state.to(u.dtype), u, *self._step_matrices(u.dtype))
        y = F.gelu(y + self.D * u)
        return self.out_proj(y.to(projected.dtype)), h

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (batch, inner, N/2, 2)."""
        return self.C.new_zeros(batch_size, *self.C.shape, dtype=state_dtype(self.C.dtype))

    def _discretized(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The logarithm of Ā, B̄ and C, each a pair of reals, (inner, N/2, 2)."""
        real, imag = -self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype)
        dt = self.log_dt.to(dtype).exp().unsqueeze(1)
        x, y = dt * real, dt * imag
        less = torch.expm1(x) * y.cos() - 2 * torch.sin(y / 2).square()  # Ā − 1, without a difference of near equals
        b = _product(torch.stack([less, x.exp() * y.sin()], -1), torch.stack([real, -imag], -1))
        return torch.stack([x, y], -1), b / (real.square() + imag.square()).unsqueeze(-1), self.C.to(dtype)

    def _step_matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Ā, B̄ and C, each a pair of reals, (inner, N/2, 2)."""
        log_a, b, c = self._discretized(dtype)
        return _exponential(log_a), b, c

    def _run_loop(self, u: Tensor, state: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs without that of D, and the last state, step by step, as a loop that exporters know."""
        h = self.initial_state(u.shape[0]) if state is None else state
        inputs = [u] if reset is None else [u, reset]
        (h,), y = loop(_step if reset is None else _reset_step, [h.to(u.dtype)], inputs, self._step_matrices(u.dtype))
        return y, h


def _step(h: Tensor, u_t: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
    """The next state, (batch, inner, N/2, 2), and the output, (batch, inner)."""
    h = _product(a, h) + b * u_t[..., None, None]
    return [h], 2 * (c[..., 0] * h[..., 0] - c[..., 1] * h[..., 1]).sum(-1)


def _reset_step(
    h: Tensor, u_t: Tensor, reset_t: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[list[Tensor], Tensor]:
    return _step(h.masked_fill(reset_t[:, None, None, None], 0), u_t, a, b, c)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """The product of complex numbers that are pairs of reals, in the last dimension: exporters know no others."""
    return torch.stack(
        [x[..., 0] * y[..., 0] - x[..., 1] * y[..., 1], x[..., 0] * y[..., 1] + x[..., 1] * y[..., 0]], -1
    )


def _exponential(x: Tensor) -> Tensor:
    """e^x of such numbers."""
    return x[..., :1].exp() * torch.stack([x[..., 1].cos(), x[..., 1].sin()], -1)


def _powers(log_a: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Ā^{iK} and Ā^j for i < ⌈length/K⌉ and j < K = ``BLOCK``, (inner, N/2, …) each.

    Their products are all powers below ``length``, which would take N times the memory of a sequence.
    """
    blocks = (length + BLOCK - 1) // BLOCK + 1  # never 1, which torch.export treats unlike all other sizes
    starts, steps = BLOCK * torch.arange(blocks, device=log_a.device), torch.arange(BLOCK, device=log_a.device)
    return torch.exp(log_a.unsqueeze(-1) * starts), torch.exp(log_a.unsqueeze(-1) * steps)


def _free_outputs(weights: Tensor, powers: tuple[Tensor, Tensor], length: int) -> Tensor:
    """2·Re Σ_n weights_n Ā_n^t for every t below ``length``: (..., inner, N/2) to (..., inner, length)."""
    of_blocks, of_steps = powers
    outputs = torch.einsum("...hni,hnj->...hij", weights.unsqueeze(-1) * of_blocks, of_steps).real
    t = torch.arange(length, device=outputs.device)
    return 2 * outputs[..., t // BLOCK, t % BLOCK]  # not a slice: torch.export cannot prove that it fits


def _final_sums(u: Tensor, powers: tuple[Tensor, Tensor]) -> Tensor:
    """Σ_s Ā^s u_{length−1−s}, from (batch, length, inner) to complex (batch, inner, N/2)."""
    of_blocks, of_steps = powers
    blocks, steps = (torch.arange(factor.shape[-1], device=u.device) for factor in powers)
    t = u.shape[1] - (BLOCK * blocks.unsqueeze(1) + steps)  # counted from 1, so that 0 is before the first step
    backward = F.pad(u, (0, 0, 1, 0))[:, t.clamp(min=0)].to(of_steps.dtype)
    of_block = torch.einsum("bijh,hnj->bhni", backward, of_steps)
    return (of_block * of_blocks).sum(-1)


def _convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """Σ_s kernel_s · u_{t−s} for (batch, length, inner) and (inner, length)."""
    length = u.shape[1]
    spectrum = torch.fft.rfft(u, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length).t()
    convolved: Tensor = torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]
    return convolved
