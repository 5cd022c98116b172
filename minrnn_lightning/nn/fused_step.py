"""A step of a backbone on a CPU as one call of a compiled kernel, where nothing but its result is asked for.

The kernel has blocks of minGRU and minLSTM in float32, without gradients, for small batches. ``fused_step`` looks at
every module and tensor again in each step, and returns None for all that the kernel does not have or that something
else wants to see: other layers and types, hooks, tensors of other classes, autocast, derivatives, tracing, compiling.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.fused import is_observed
from minrnn_lightning.nn.mixers.gated import Logits
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.state import State
from minrnn_lightning.ops.kernel_choice import runs_numba

MOST_ROWS = 32  # of a batch, for each thread: the products of PyTorch are as fast from about this number on
EPS = 1e-5  # of the norms that the kernel computes
CLASSES = {Tensor, nn.Parameter}

NO_CONVOLUTION = (0,) * 5  # in place of its fields
NO_MLP = (0, 0, 0, *NO_CONVOLUTION, 0, 0, 0, 0)
GRU, LSTM, UNNORMALIZED_LSTM = 0, 1, 2  # those of ``step_kernels``, which imports Numba


class NotCovered(Exception):  # noqa: N818 - no error: the step runs otherwise
    """The kernel lacks something of a step."""


def fused_step(
    blocks: Sequence[Any], kind: type[nn.Module], norm: nn.Module, x_t: Tensor, state: State, reset: Tensor | None
) -> tuple[Tensor, State] | None:
    """Run ``Backbone.step``.

    Args:
        blocks: Those of the backbone.
        kind: The class of the blocks that the kernel computes.
        norm: The norm after the last block.
        x_t: (batch, dim).
        state: The state of the backbone.
        reset: Bool (batch,), or None.

    Returns:
        What ``Backbone.step`` does, or None where the kernel lacks something.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return None
    if is_observed() or torch.is_autocast_enabled("cpu"):
        return None
    if type(x_t) not in CLASSES or x_t.dim() != 2 or not runs_numba(x_t.device):
        return None
    from minrnn_lightning.ops.cpu import step

    (batch, dim), threads = x_t.shape, torch.get_num_threads()
    if not 0 < batch <= MOST_ROWS * threads or not isinstance(state, list) or len(state) != len(blocks):
        return None
    y, x_t = torch.empty(batch, dim), x_t.contiguous()
    kept, after = [x_t], []  # kept: what has an address in the call must live as long as it
    try:
        fields = [_address(x_t, (batch, dim)), y.data_ptr(), _reset(reset, batch, kept), *_norm(norm, dim)]
        for block, before in zip(blocks, state, strict=True):
            if type(block) is not kind:
                return None
            after.append(_block(block, before, batch, dim, reset is not None, fields, kept))
    except NotCovered:
        return None
    step.run(batch, dim, len(blocks), fields, threads)
    return y, after


def _block(
    block: Any, state: State, batch: int, dim: int, resets: bool, fields: list[int], kept: list[Tensor]
) -> State:
    """Add what the kernel reads of a block to ``fields``, in the order of ``step_kernels``; the state it will write."""
    parts = block._modules
    mixer, dropout = parts["mixer"], parts["dropout"]
    names = "conv", "mlp", "mlp_conv"
    conv, mlp, mlp_conv = (parts[name] if name in parts else getattr(block, name) for name in names)
    if (
        type(dropout) is not Dropout
        or (dropout.training and dropout.p > 0)
        or type(mixer) not in (MinGRUMixer, MinLSTMMixer)
    ):
        raise NotCovered
    window, h, *mlp_window = state
    fields += _norm(parts["mixer_norm"], dim)
    new_window = _convolution(conv, window, batch, dim, fields, kept)
    h, new_h = h.contiguous(), torch.empty(batch, mixer.hidden)
    kept.append(h)
    fields += _recurrence(mixer, dim, resets)
    fields += _address(h, (batch, mixer.hidden)), new_h.data_ptr(), *_linear(mixer._modules["out"], mixer.hidden, dim)
    if mlp is None:
        fields += NO_MLP
    else:
        up, gelu, down = _module(mlp, nn.Sequential)[0]._modules.values()
        if _module(gelu, nn.GELU)[0].approximate != "none":
            raise NotCovered
        hidden = up.out_features
        fields += hidden, *_norm(parts["mlp_norm"], dim)
        if mlp_conv is None:
            fields += NO_CONVOLUTION
        else:
            mlp_window = [_convolution(mlp_conv, *mlp_window, batch, dim, fields, kept)]
        fields += *_linear(up, dim, hidden), *_linear(down, hidden, dim)
    return new_window, new_h, *mlp_window


def _convolution(conv: Any, window: State, batch: int, dim: int, fields: list[int], kept: list[Tensor]) -> State:
    """Add a convolution, or none, to the ``fields``; the window of the next step, which the kernel writes."""
    if conv is None:
        fields += NO_CONVOLUTION
        return ()
    parameters, size = _module(conv, CausalConv)[1], conv.kernel_size
    window, new_window = window.contiguous(), torch.empty(batch, size - 1, dim)
    kept.append(window)
    fields += size, _address(parameters["weight"], (size, dim)), _address(parameters["bias"], (dim,))
    fields += _address(window, (batch, size - 1, dim)), new_window.data_ptr()
    return new_window


def _recurrence(mixer: Any, dim: int, resets: bool) -> tuple[int, ...]:
    """The options of a mixer, and its logits' weight and bias."""
    options, (logits, parameters) = mixer.options, _module(mixer._modules["rnn"], Logits)
    if mixer.bidirectional or getattr(mixer, "highway", False) or (resets and logits.initial is not None):
        raise NotCovered
    kind = {None: GRU, True: LSTM, False: UNNORMALIZED_LSTM}[options.get("normalize")]
    units = mixer.blocks * mixer.hidden
    weight, bias = _address(parameters["weight_ih_l0"], (units, dim)), _address(parameters["bias_ih_l0"], (units,))
    return mixer.hidden, kind, options["activation"] == "identity", options["signed"], weight, bias


def _norm(module: Any, dim: int) -> tuple[int, int]:
    """Weight and bias of a norm."""
    norm, parameters = _module(module, nn.LayerNorm)
    if norm.eps != EPS or norm.normalized_shape != (dim,):
        raise NotCovered
    return _address(parameters["weight"], (dim,)), _address(parameters["bias"], (dim,))


def _linear(module: Any, features: int, units: int) -> tuple[int, int]:
    """Weight and bias of a linear map."""
    parameters = _module(module, nn.Linear)[1]
    return _address(parameters["weight"], (units, features)), _address(parameters["bias"], (units,))


def _module(module: Any, kind: type[nn.Module]) -> tuple[Any, dict[str, Any]]:
    """The module and its parameters, if its class is ``kind`` and nothing is attached to its call."""
    about = module.__dict__
    if type(module) is not kind or about["_forward_hooks"] or about["_forward_pre_hooks"] or "forward" in about:
        raise NotCovered
    return module, about["_parameters"]


def _address(tensor: Any, shape: tuple[int, ...]) -> int:
    """Where a contiguous float32 tensor of a shape begins."""
    if (
        type(tensor) not in CLASSES
        or tensor.dtype is not torch.float32
        or tensor.shape != shape
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or not tensor.is_contiguous()
    ):
        raise NotCovered
    address: int = tensor.data_ptr()
    return address


def _reset(reset: Tensor | None, batch: int, kept: list[Tensor]) -> int:
    """Where the resets begin; 0 if there are none."""
    if reset is None:
        return 0
    if type(reset) not in CLASSES or reset.dtype is not torch.bool or reset.shape != (batch,) or not reset.is_cpu:
        raise NotCovered
    kept.append(reset.contiguous())
    return kept[-1].data_ptr()
