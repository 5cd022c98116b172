"""The Triton kernels on a machine without a GPU: Triton's interpreter runs them on CPU tensors."""

import os
from unittest import mock

import pytest


def tree_scan(self, tiles):
    """``tl.associative_scan`` over the rows of tiles, as the tree that it is on a GPU.

    The interpreter's own goes from element to element: slow, and a combination that is not associative passes it.
    """
    arrays, half = [tile.handle.data.copy() for tile in tiles], 1
    length, *rest = arrays[0].shape
    while half < length:
        halves = [x.reshape(-1, 2, half, *rest) for x in arrays]
        ends = [x[:, :1, -1:].repeat(half, 2)[:, 0] for x in halves]  # of every first half, for each row of the second
        operands = [*ends, *(x[:, 1] for x in halves)]
        types = [tile.dtype for tile in tiles] * 2
        combined = self.combine_fn.fn(*map(self.to_tensor, operands, types))
        for x, part in zip(halves, combined, strict=True):
            x[:, 1] = part.handle.data
        half *= 2
    return [self.to_tensor(x, tile.dtype) for x, tile in zip(arrays, tiles, strict=True)]


def tree_reduce(self, tiles):
    """``tl.reduce`` over the rows of one tile, likewise."""
    (tile,) = tiles
    x = tile.handle.data
    while len(x) > 1:
        x = self.combine_fn.fn(*(self.to_tensor(half, tile.dtype) for half in (x[::2], x[1::2]))).handle.data
    return [self.to_tensor(x[0], tile.dtype)]


def call_device_function(self, *args, **kwargs):
    """A function that a kernel calls; the interpreter's own prepares ``triton.language`` again at every call."""
    return self.rewrite()(*args, **kwargs)


@pytest.fixture(scope="session", autouse=True)
def interpreted_kernels():
    """Import the kernels with the interpreter on, for these alone: Triton's own functions stay compiled ones."""
    from triton.runtime import interpreter

    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        from minrnn_lightning.ops.cuda import launch as cuda
    assert cuda.INTERPRETED
    with (
        mock.patch.object(interpreter.ScanOps, "generic_scan", tree_scan),
        mock.patch.object(interpreter.ReduceOps, "generic_reduce", tree_reduce),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call_device_function),
        mock.patch.object(cuda, "TILE", {"BLOCK_L": 64, "BLOCK_D": 512}),  # few steps of the interpreter
    ):
        yield cuda


@pytest.fixture(scope="session")
def cuda(interpreted_kernels):
    """The module that launches them."""
    return interpreted_kernels
