"""Windows and packed rows against a loop over the episodes, over any number of processes."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_files import make_steps

from minrnn_lightning.data.offline_rl.episodes import make_episodes
from minrnn_lightning.data.offline_rl.rows import (
    EpisodeStreams,
    HeldOutRows,
    PackedEpisodes,
    RandomWindows,
    Steps,
    packed_index,
    tiled_index,
)
from minrnn_lightning.errors import InputError

lengths_of = st.lists(st.integers(1, 30), min_size=1, max_size=8)
sizes = {"length": st.integers(1, 20), "batch_size": st.integers(1, 6), "world_size": st.integers(1, 4)}


def steps_of(lengths, discrete=False):
    arrays = make_steps(lengths, discrete=discrete)
    return arrays, Steps(make_episodes("test", np.cumsum(lengths), **arrays))


def expected(arrays, lengths, step):
    """Return to go and number of a step, counted by hand in float64."""
    first = 0
    for length in lengths:
        if step < first + length:
            rest = sum(float(reward) for reward in arrays["rewards"][step : first + length])
            return rest, step - first, first + length
        first += length
    raise AssertionError


def check_rows(rows, arrays, lengths):
    """Compare what is not masked with the arrays; returns the numbers of the steps, row by row."""
    assert rows.observations.dtype == rows.returns_to_go.dtype == torch.float32
    assert rows.timesteps.dtype == torch.int64
    assert rows.mask.dtype == rows.reset.dtype == torch.bool
    assert rows.reset[:, 0].all()
    for tensor in rows[:4]:
        assert not tensor[~rows.mask].any(), "what is masked is zero"
    found = []
    for row in range(len(rows.mask)):
        count = int(rows.mask[row].sum())
        assert rows.mask[row, :count].all(), "filled at the end only"
        numbers = rows.observations[row, :count, 0].long().tolist()
        for place, step in enumerate(numbers):
            rest, timestep, _ = expected(arrays, lengths, step)
            assert rows.returns_to_go[row, place].item() == pytest.approx(rest, rel=1e-6, abs=1e-5)
            assert rows.timesteps[row, place] == timestep
            assert rows.reset[row, place] == (place == 0 or timestep == 0)
        assert np.array_equal(rows.observations[row, :count].numpy(), arrays["observations"][numbers])
        assert np.array_equal(rows.actions[row, :count].numpy(), arrays["actions"][numbers])
        found.append(numbers)
    return found


@settings(deadline=None)
@given(lengths=lengths_of, **sizes, position=st.integers(0, 100), discrete=st.booleans())
def test_random_windows(lengths, length, batch_size, world_size, position, discrete):
    arrays, steps = steps_of(lengths, discrete)
    chosen = np.arange(len(lengths))[:: 1 + position % 2]
    shape = (steps, chosen, length, batch_size, 10, 3)
    shares = [RandomWindows(*shape, rank, world_size)[position] for rank in range(world_size)]
    whole = RandomWindows(steps, chosen, length, batch_size * world_size, 10, 3)[position]
    for field, tensor in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(share, field) for share in shares]), tensor)
    assert whole.actions.dtype == (torch.int64 if discrete else torch.float32)
    assert whole.mask.shape == (batch_size * world_size, length)
    starts = np.cumsum(lengths) - lengths
    for numbers in check_rows(whole, arrays, lengths):
        _, timestep, end = expected(arrays, lengths, numbers[0])
        assert numbers == list(range(numbers[0], min(numbers[0] + length, end)))
        assert numbers[0] - timestep in starts[chosen]
    assert not whole.reset[:, 1:].any()


def test_windows_start_anywhere_with_equal_probability():
    lengths = [1, 30, 9]
    _, steps = steps_of(lengths)
    stream = RandomWindows(steps, np.arange(3), 5, 1000, 10, seed=1)
    starts = torch.cat([stream[position].observations[:, 0, 0] for position in range(40)]).long()
    counts = starts.bincount(minlength=40)
    assert counts.shape == (40,)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


@settings(deadline=None)
@given(lengths=lengths_of, **sizes, epoch=st.integers(0, 3), discrete=st.booleans())
def test_packed_episodes(lengths, length, batch_size, world_size, epoch, discrete):
    arrays, steps = steps_of(lengths, discrete)
    chosen = np.arange(len(lengths))
    rows = -(-sum(lengths) // length)
    if rows < world_size:
        with pytest.raises(ValueError, match=f"{rows} rows of steps, too few for {world_size} processes"):
            PackedEpisodes(steps, chosen, length, batch_size, 0, 0, world_size)
        return
    ranks = [PackedEpisodes(steps, chosen, length, batch_size, 7, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    batches = [rank[epoch * len(rank) + index] for rank in ranks for index in range(len(rank))]
    found = [numbers for batch in batches for numbers in check_rows(batch, arrays, lengths)]
    assert sorted(step for numbers in found for step in numbers) == list(range(sum(lengths)))
    assert len(found) == rows
    assert sum(len(numbers) < length for numbers in found) <= 1, "only the last row is filled up"
    for numbers in found:
        for step, following in pairwise(numbers):
            _, _, end = expected(arrays, lengths, step)
            assert following == step + 1 if step + 1 < end else expected(arrays, lengths, following)[1] == 0


def test_epochs_pack_in_orders_of_their_own():
    _, steps = steps_of([5] * 20)
    stream = PackedEpisodes(steps, np.arange(20), 10, 4)
    first, second = (torch.cat([stream[3 * epoch + i].observations for i in range(3)]) for epoch in range(2))
    assert len(stream) == 3
    assert not torch.equal(first, second)
    assert torch.equal(stream[0].observations, first[:4]), "going back gives the same"


@settings(deadline=None)
@given(lengths=lengths_of, **sizes, packed=st.booleans())
def test_held_out_rows(lengths, length, batch_size, world_size, packed):
    arrays, steps = steps_of(lengths)
    ends = np.cumsum(lengths)
    index = (packed_index if packed else tiled_index)(ends - lengths, ends, length)
    if len(index) < world_size:
        with pytest.raises(ValueError, match="too few"):
            HeldOutRows(steps, index, batch_size, 0, world_size)
        return
    ranks = [HeldOutRows(steps, index, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [rank[number] for number in range(len(ranks[0])) for rank in ranks]
    found = [numbers for batch in batches for numbers in check_rows(batch, arrays, lengths)]
    assert [step for numbers in found for step in numbers] == list(range(sum(lengths)))
    if not packed:
        assert len(found) == sum(-(-n // length) for n in lengths)


@settings(deadline=None)
@given(lengths=lengths_of, **sizes, seed=st.none() | st.integers(0, 9), discrete=st.booleans())
def test_streams(lengths, length, batch_size, world_size, seed, discrete):
    rows = batch_size * world_size
    lengths = [*lengths, rows]
    arrays, steps = steps_of(lengths, discrete)
    given = steps, np.arange(len(lengths)), length
    shares = [EpisodeStreams(*given, batch_size, seed, rank, world_size) for rank in range(world_size)]
    whole = EpisodeStreams(*given, rows, seed)
    assert {len(share) for share in shares} == {len(whole)}
    starts = (np.cumsum(lengths) - lengths).tolist()
    found = [[] for _ in range(rows)]
    for position in range(len(whole), 2 * len(whole)):  # the second pass
        batch = whole[position]
        assert batch.continues == (position > len(whole))
        for field, tensor in batch._asdict().items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(torch.cat([getattr(share[position], field) for share in shares]), tensor)
        numbers = batch.observations[..., 0].long()
        assert torch.equal(batch.reset, batch.mask & torch.isin(numbers, torch.tensor(starts)))
        firsts = batch.reset.clone()
        firsts[:, 0] = True
        for row, part in enumerate(check_rows(batch._replace(reset=firsts), arrays, lengths)):
            found[row] += part
    assert max(map(len, found)) - min(map(len, found)) <= 1
    order = list(chain.from_iterable(found))
    assert sorted(order) == list(range(sum(lengths)))
    assert seed is not None or order == sorted(order)
    assert all(step + 1 == after or after in starts for step, after in pairwise(order))


def test_too_few_steps_for_streams():
    with pytest.raises(InputError, match="too short for streams: they have 5 steps, and there are 6 rows"):
        EpisodeStreams(steps_of([2, 3])[1], np.arange(2), 4, 6, 0)
