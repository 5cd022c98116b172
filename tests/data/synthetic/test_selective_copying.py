"""Selective copying: the rule against a reading of the sequences token by token."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data import SelectiveCopyingDataModule
from minrnn_lightning.data.synthetic.selective_copying import selective_copying


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 30), st.integers(3, 20), st.integers(0, 1000))
def test_answers_are_the_data_in_order(data_tokens, room, vocab_size, seed):
    length = data_tokens + room
    batch = selective_copying(np.random.default_rng(seed), 4, length, data_tokens, vocab_size)
    assert batch.inputs.shape == batch.targets.shape == (4, length + data_tokens)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert inputs[length:] == [0] * data_tokens
        data = [token for token in inputs[:length] if token != vocab_size - 1]
        assert all(1 <= token < vocab_size - 1 for token in data)
        assert len(data) == data_tokens
        assert targets == [-100] * length + data


def test_data_are_everywhere_and_of_every_kind():
    batch = selective_copying(np.random.default_rng(0), 3000, 24, 4, 8)
    body = batch.inputs[:, :24]
    assert (body != 7).float().mean(0).sub(4 / 24).abs().max() < 0.04  # six standard deviations
    assert body[body != 7].unique().tolist() == [1, 2, 3, 4, 5, 6]


def test_sizes():
    data = SelectiveCopyingDataModule()
    assert (data.input_size, data.output_size, data.chance) == (16, 16, 1 / 14)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (64, 4112)
    assert len(data.val_dataloader()) == 16
