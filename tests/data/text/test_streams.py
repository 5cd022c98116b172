"""Streams: every row continues where it was in the batch before, over any number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.batches import IGNORED, StreamBatch
from minrnn_lightning.data import TextDataModule
from minrnn_lightning.data.text.streams import HeldOutStreams, TrainingStreams
from minrnn_lightning.data.text.windows import HeldOutWindows
from minrnn_lightning.errors import InputError

sizes = {"length": st.integers(1, 12), "batch_size": st.integers(1, 5), "world_size": st.integers(1, 3)}


def counting(tokens):
    """Tokens that are their own positions."""
    return np.arange(tokens, dtype=np.uint32)


def joined(ranks, index):
    """The rows of all processes of one batch."""
    batches = [rank[index] for rank in ranks]
    assert len({batch.continues for batch in batches}) == 1
    return StreamBatch(*(torch.cat([batch[i] for batch in batches]) for i in range(2)), batches[0].continues)


@settings(deadline=None)
@given(**sizes, extra=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_training(length, batch_size, world_size, extra, seed):
    rows = batch_size * world_size
    tokens = counting((2 * rows + 1) * length + extra)
    ranks = [TrainingStreams(tokens, length, batch_size, seed, rank, world_size) for rank in range(world_size)]
    one = TrainingStreams(tokens, length, rows, seed)
    passes = [[joined(ranks, number * len(one) + index) for index in range(len(one))] for number in range(2)]
    for number, batches in enumerate(passes):
        assert [batch.continues for batch in batches] == [False] + [True] * (len(one) - 1)
        inputs = torch.cat([batch.inputs for batch in batches], 1)  # each row is one piece of text
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(len(one) * length))
        assert torch.equal(torch.cat([batch.targets for batch in batches], 1), inputs + 1)
        assert inputs.unique().numel() == inputs.numel()
        assert inputs.max() + 1 < len(tokens)
        for index, batch in enumerate(batches):
            assert torch.equal(batch.inputs, one[number * len(one) + index].inputs)
    assert len(tokens) - inputs.numel() <= (rows + 2) * length


def test_passes_differ():
    streams = TrainingStreams(counting(1000), 10, 3, seed=1)
    assert not torch.equal(streams[0].inputs, streams[len(streams)].inputs)


@settings(deadline=None)
@given(**sizes, windows=st.integers(0, 40), extra=st.integers(1, 12))
def test_held_out(length, batch_size, world_size, windows, extra):
    rows = batch_size * world_size
    tokens = counting((rows + windows) * length + min(extra, length))
    ranks = [HeldOutStreams(tokens, length, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [joined(ranks, index) for index in range(len(ranks[0]))]
    assert len({len(rank) for rank in ranks}) == 1
    targets = torch.cat([batch.targets for batch in batches], 1)
    expected = [batch.targets.flatten() for batch in HeldOutWindows(tokens, length, 3)]
    assert torch.equal(targets[targets != IGNORED].sort()[0], torch.cat(expected).sort()[0])
    assert torch.equal(targets[:, 1:] == IGNORED, (targets[:, 1:] != targets[:, :-1] + 1))  # in order, then padding


def test_too_short():
    with pytest.raises(InputError, match="training text is too short: it has 100 tokens, but a batch of 10 x 10"):
        TrainingStreams(counting(100), 10, 10)
    with pytest.raises(InputError, match=r"too short for streams: it has 100 tokens, but a window of 10 in each of 10"):
        HeldOutStreams(counting(100), 10, 10)


def test_module(text_file, trainer):
    data = TextDataModule(str(text_file), batch_size=2, length=20, stream=True)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        first, second = [batch for batch, _ in zip(loader, range(2), strict=False)]
        assert torch.equal(first.targets[:, -1], second.inputs[:, 0])
        assert (first.continues, second.continues) == (False, True)
