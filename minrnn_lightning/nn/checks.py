"""Argument checks of the recurrent layers, with the messages of ``torch.nn.GRU`` for the arguments that they share."""

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops.eager import STORAGE
from minrnn_lightning.ops.scan import check_dense

TIME_DTYPES = (*STORAGE, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = "float16, bfloat16, float32, float64 or integers"


def check_arguments(
    dropout: object, flags: dict[str, object], sizes: dict[str, object], activation: object, proj_size: object
) -> None:
    """Check the arguments of a layer's constructor.

    Raises:
        ValueError: A size is not above zero, the dropout not in [0, 1], the activation unknown, or there is a
            projection.
        TypeError: A size is not an int, or a flag not a bool.
    """
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in sizes.items():
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if proj_size != 0:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    if activation not in ("positive", "identity"):
        raise InputError(f"activation is {activation!r}; it can be 'positive' or 'identity'")


def check_sequence(
    name: str, x: Tensor, hx: Tensor | None, marks: dict[str, Tensor | None], delta_t: Tensor | None, signed: bool
) -> None:
    """Check the types and numbers of dimensions of the arguments of ``forward`` of the layer ``name``.

    Raises:
        ValueError: ``x`` has a wrong number of dimensions, or one of the ``marks`` of steps or ``delta_t`` does not
            fit it.
        RuntimeError: ``hx`` has another number of dimensions than ``x``.
        TypeError: An argument is no dense tensor.
    """
    check_dense(f"{name}: input", x)
    if hx is not None:
        check_dense(f"{name}: hx", hx)
    dims = x.dim()
    if dims not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dims}D instead")
    if hx is not None and hx.dim() != dims:
        batched = "batched" if dims == 3 else "unbatched"
        raise RuntimeError(f"For {batched} {dims}-D input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
    for mark, steps in marks.items():
        check_mark(name, mark, steps, x)
    check_delta_t(name, delta_t, x, signed)


def check_mark(name: str, mark: str, steps: Tensor | None, x: Tensor) -> None:
    """Check that a ``reset`` or ``mask`` is bool, of the shape of ``x`` without its features.

    Raises:
        ValueError: The type or the shape does not fit.
        TypeError: It is no dense tensor.
    """
    if steps is None:
        return
    check_dense(f"{name}: {mark}", steps, "bool")
    if steps.dtype != torch.bool or steps.shape != x.shape[:-1]:
        raise ValueError(
            f"{name}: Expected {mark} to be bool of shape {tuple(x.shape[:-1])}, "
            f"got {steps.dtype} of shape {tuple(steps.shape)}"
        )


def check_delta_t(name: str, delta_t: Tensor | None, x: Tensor, signed: bool) -> None:
    """Check that times are numbers of the shape of ``x`` without its features, and no exponents of signed decays.

    Raises:
        ValueError: The shape does not fit, or the decay is signed.
        TypeError: They are no dense tensor of numbers.
    """
    if delta_t is None:
        return
    if signed:
        raise InputError(f"{name}: delta_t needs signed=False: a negative decay has no power of a fraction")
    check_dense(f"{name}: delta_t", delta_t, NUMBERS)
    if delta_t.dtype not in TIME_DTYPES:
        raise TypeError(f"{name}: delta_t must be {NUMBERS}, got {delta_t.dtype}")
    if delta_t.shape != x.shape[:-1]:
        raise ValueError(f"{name}: Expected delta_t of shape {tuple(x.shape[:-1])}, got {tuple(delta_t.shape)}")


def check_step(
    name: str,
    x: Tensor,
    h: Tensor | None,
    reset: Tensor | None,
    delta_t: Tensor | None,
    signed: bool,
    bidirectional: bool,
) -> None:
    """Check the types and numbers of dimensions of the arguments of ``step`` of the layer ``name``.

    Raises:
        RuntimeError: The layer is bidirectional, or ``h`` has a wrong number of dimensions.
        ValueError: ``x`` has a wrong number of dimensions, or ``reset`` or ``delta_t`` does not fit it.
        TypeError: An argument is no dense tensor.
    """
    check_dense(f"{name}.step: input_t", x)
    if h is not None:
        check_dense(f"{name}.step: h", h)
    dims = x.dim()
    if bidirectional:
        raise RuntimeError(f"{name}.step needs bidirectional=False: the backward direction starts at the last step")
    if dims not in (1, 2):
        raise ValueError(f"{name}.step: Expected input_t to be 1D or 2D, got {dims}D instead")
    if h is not None and h.dim() != dims + 1:
        raise RuntimeError(f"For {dims}-D input_t, h should be {dims + 1}-D but got {h.dim()}-D tensor")
    check_mark(f"{name}.step", "reset", reset, x)
    check_delta_t(f"{name}.step", delta_t, x, signed)
