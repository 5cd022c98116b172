"""Training windows meet every token once an epoch, held-out windows once at all, over any number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data.text.windows import HeldOutWindows, TrainingWindows


def counting(tokens):
    """Tokens that are their own positions."""
    return np.arange(tokens, dtype=np.uint32)


sizes = {"length": st.integers(1, 20), "batch_size": st.integers(1, 6), "world_size": st.integers(1, 4)}


@settings(deadline=None)
@given(**sizes, extra=st.integers(0, 200), epoch=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_training_epoch(length, batch_size, world_size, extra, epoch, seed):
    tokens = (batch_size * world_size + 1) * length + extra
    ranks = [
        TrainingWindows(counting(tokens), length, batch_size, seed, rank, world_size) for rank in range(world_size)
    ]
    batches = [rank[epoch * len(rank) + index] for rank in ranks for index in range(len(rank))]
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert inputs.dtype == targets.dtype == torch.int64
    assert all(batch[0].shape == batch[1].shape == (batch_size, length) for batch in batches)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(length))
    assert torch.equal(targets, inputs + 1)
    assert targets.max() < tokens
    assert inputs.unique().numel() == inputs.numel()
    # All is used but less than two windows at the ends and less than one batch of all processes.
    assert tokens - inputs.numel() < 2 * length + batch_size * world_size * length


@settings(deadline=None)
@given(**sizes, position=st.integers(0, 30))
def test_processes_see_the_joined_batch(length, batch_size, world_size, position):
    part = counting(1000)
    whole, _ = TrainingWindows(part, length, batch_size * world_size, seed=3)[position]
    shares = [TrainingWindows(part, length, batch_size, 3, rank, world_size)[position][0] for rank in range(world_size)]
    assert torch.equal(whole, torch.cat(shares))


def test_stream_depends_on_seed_and_position_only():
    stream = TrainingWindows(counting(1000), 10, 8, seed=5)
    again = TrainingWindows(counting(1000), 10, 8, seed=5)
    other = TrainingWindows(counting(1000), 10, 8, seed=6)
    positions = range(3 * len(stream))
    forwards = [stream[position][0] for position in positions]
    backwards = [again[position][0] for position in reversed(positions)][::-1]
    assert all(map(torch.equal, forwards, backwards))
    assert not torch.equal(forwards[0], other[0][0])
    cuts = {int(batch[0, 0]) % 10 for batch in forwards}
    assert len(cuts) == 3, "every epoch is cut at an offset of its own"
    assert (torch.stack(forwards)[:, :, 0].diff() < 0).any(), "the windows are shuffled"


@settings(deadline=None)
@given(**sizes, extra=st.integers(0, 200))
def test_held_out_windows_are_met_once(length, batch_size, world_size, extra):
    tokens = world_size * length + 1 + extra
    windows = (tokens - 1) // length
    ranks = [HeldOutWindows(counting(tokens), length, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1, "no process waits for another"
    batches = [rank[index] for index in range(len(ranks[0])) for rank in ranks]
    assert max(len(inputs) for inputs, _ in batches) <= max(batch_size, -(-windows // (len(ranks[0]) * world_size)))
    assert len(ranks[0]) <= -(-windows // (batch_size * world_size))
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert torch.equal(inputs, torch.arange(windows * length).view(windows, length))
    assert torch.equal(targets, inputs + 1)


def test_held_out_batches_are_no_larger_than_asked():
    assert [len(inputs) for inputs, _ in map(HeldOutWindows(counting(436), 1, 64).__getitem__, range(7))] == [63] + [
        62
    ] * 6


def test_one_window_over_everything():
    inputs, targets = HeldOutWindows(counting(101), length=100, batch_size=1)[0]
    assert inputs.tolist() == [list(range(100))]
    assert targets.tolist() == [list(range(1, 101))]


@pytest.mark.parametrize("world_size", [1, 2])
def test_too_short(world_size):
    needed = (4 * world_size + 1) * 10
    assert len(TrainingWindows(counting(needed), 10, 4, world_size=world_size)) == 1
    with pytest.raises(ValueError, match=rf"has {needed - 1} tokens, but .* {4 * world_size} x 10 .* needs {needed};"):
        TrainingWindows(counting(needed - 1), 10, 4, world_size=world_size)
    needed = 10 * world_size + 1
    assert len(HeldOutWindows(counting(needed), 10, 4, world_size=world_size)) == 1
    with pytest.raises(ValueError, match=rf"has {needed - 1} tokens, but .* needs {needed};"):
        HeldOutWindows(counting(needed - 1), 10, 4, world_size=world_size)
