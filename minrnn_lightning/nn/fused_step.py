"""A step of layers or of a backbone on a CPU as one call of a compiled kernel, where only its result is asked for.

The kernels have layers and blocks of minGRU and minLSTM in float32, without gradients, for small batches. The functions
here return None for all that the kernels do not have or that something else wants to see: other layers and types,
hooks, tensors of other classes, autocast, derivatives, tracing, compiling.
"""

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.nn.fused import is_observed
from minrnn_lightning.nn.state import State
from minrnn_lightning.nn.step_plan import CLASSES, NotCovered, addresses, check_allocated, find_plan, kind_of
from minrnn_lightning.ops.kernel_choice import runs_numba

# Of a batch, for each thread: with more rows, or rows × width, the operators of PyTorch are about as fast.
MOST_ROWS, MOST_NUMBERS = 32, 8192


def fused_layers(
    layers: nn.Module,
    sizes: tuple[int, int, int],
    blocks: int,
    options: dict[str, Any],
    x_t: Tensor,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Run one step of layers stacked on each other, without dropout.

    Args:
        layers: The module with the weights and biases.
        sizes: Features of the input, number of layers, and features of the state.
        blocks: Logits for each unit.
        options: Those of the step function.
        x_t: (batch, features).
        state: (layers, batch, hidden).
        reset: Bool (batch,), where the state is zeros; or None.

    Returns:
        The output and the new state, or None where the kernel lacks something.
    """
    if not _can_run(x_t):
        return None
    (features, count, hidden), batch, threads = sizes, x_t.shape[0], torch.get_num_threads()
    if not 0 < batch <= most_rows(hidden) * threads:
        return None
    from minrnn_lightning.ops.cpu import step, step_kernels

    x_t, state, after = x_t.contiguous(), state.contiguous(), empty(count, batch, hidden)
    kept: list[Tensor] = []
    read: list[Any] = [x_t, state]
    shapes: list[tuple[int, ...]] = [(batch, features), (count, batch, hidden)]
    for layer in range(count):
        read += layers._parameters.get(f"weight_ih_l{layer}"), layers._parameters.get(f"bias_ih_l{layer}")
        shapes += (blocks * hidden, hidden if layer else features), (blocks * hidden,)
    try:
        fields = [0] * step_kernels.RESET + [_reset(reset, batch, kept)]  # 0: see ``step.run``
        x_at, state_at, *weights_at = addresses(read, shapes)
        check_allocated(read[2:], weights_at)
    except NotCovered:
        return None
    fields += x_at, count, features, hidden, kind_of(blocks, options.get("normalize"))
    fields += options["activation"] == "identity", bool(options["signed"]), state_at, after.data_ptr(), *weights_at
    call = (ctypes.c_int64 * len(fields)).from_buffer_copy(struct.pack(f"{len(fields)}q", *fields))
    step.run(step_kernels.layers, batch, call, threads)
    return after[-1].clone(), after


def empty(*shape: int) -> Tensor:
    """What a kernel writes, whatever the default type and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def most_rows(width: int) -> int:
    """The most rows of a batch for which a thread runs the kernel."""
    return max(MOST_ROWS, MOST_NUMBERS // max(width, 1))


def _can_run(x_t: Tensor) -> bool:
    """Whether nothing but the result of a step is asked for, and kernels run where its input is."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_observed() or torch.is_autocast_enabled("cpu"):
        return False
    return type(x_t) in CLASSES and x_t.dim() == 2 and runs_numba(x_t.device)


def fused_blocks(
    blocks: Any, kind: type[nn.Module], norm: nn.Module, x_t: Tensor, state: State, reset: Tensor | None
) -> tuple[Tensor, State] | None:
    """Run ``Backbone.step``.

    Args:
        blocks: The ``nn.ModuleList`` of those of the backbone.
        kind: The class of the blocks that the kernel computes.
        norm: The norm after the last block.
        x_t: (batch, dim).
        state: The state of the backbone.
        reset: Bool (batch,), or None.

    Returns:
        What ``Backbone.step`` does, or None where the kernel lacks something.
    """
    if not _can_run(x_t):
        return None
    from minrnn_lightning.ops.cpu import step, step_kernels

    (batch, dim), threads = x_t.shape, torch.get_num_threads()
    if not 0 < batch <= most_rows(dim) * threads:
        return None
    try:
        plan = find_plan(blocks, kind, norm, dim)
        if dim != plan.dim or (reset is not None and plan.learns_start):
            return None
        before = [x_t, *plan.tensors(state)]
        if not CLASSES.issuperset(map(type, before)):
            return None
        before = list(map(Tensor.contiguous, before))  # what has an address must live as long as the call
        after, call = list(map(torch.empty_like, before)), plan.new_call()
        old, new = addresses(before, [(batch, *shape) for shape in plan.shapes]), map(Tensor.data_ptr, after)
        for field, field_after, at, at_after in zip(plan.fields_before, plan.fields_after, old, new, strict=True):
            call[field], call[field_after] = at, at_after
        call[step_kernels.RESET] = _reset(reset, batch, before)
    except NotCovered:
        return None
    step.run(step_kernels.blocks, batch, call, threads)
    return after[0], plan.state(after)


def _reset(reset: Tensor | None, batch: int, kept: list[Tensor]) -> int:
    """Where the resets begin; 0 if there are none."""
    if reset is None:
        return 0
    if type(reset) not in CLASSES or reset.dtype is not torch.bool or reset.shape != (batch,) or not reset.is_cpu:
        raise NotCovered
    kept.append(reset.contiguous())
    return kept[-1].data_ptr()
