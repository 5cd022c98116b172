"""Generated data: the stream depends on seed and position alone, held-out sets are fixed, guesses are blind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data import FormalLanguageDataModule, InductionHeadsDataModule, SelectiveCopyingDataModule
from minrnn_lightning.data.synthetic.batches import answer_batch, append_queries, blind_accuracy, distinct
from minrnn_lightning.data.synthetic.module import TEST, VALIDATION, HeldOutExamples, TrainingExamples

SMALL = {"batch_size": 3, "length": 12, "data_tokens": 4, "vocab_size": 8, "eval_batches": 2}


def copying(**options):
    return SelectiveCopyingDataModule(**{**SMALL, **options})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@settings(deadline=None)
@given(st.integers(1, 40), st.data(), st.integers(0, 100))
def test_distinct(population, data, seed):
    count = data.draw(st.integers(0, population))
    rows = distinct(np.random.default_rng(seed), 5, population, count)
    assert rows.shape == (5, count)
    assert all(len(set(row)) == count and set(row) <= set(range(population)) for row in rows.tolist())


def test_every_set_is_equally_likely():
    rows = np.sort(distinct(np.random.default_rng(0), 60_000, 5, 2), axis=1)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 10  # 5 over 2
    assert np.abs(counts / 6000 - 1).max() < 0.08  # six standard deviations


def test_queries_come_last():
    batch = append_queries(np.array([[3, 1]]), np.array([[5, 6, 7]]), query=9, length=2)
    assert batch.inputs.tolist() == [[3, 1, 9, 9, 9]]
    assert batch.targets.tolist() == [[-100, -100, 5, 6, 7]]
    assert batch.lengths.tolist() == [2]


def test_stream_depends_on_seed_position_and_rank_only():
    rule = copying().rule
    stream = TrainingExamples(rule, 4, (12, 12), 10, seed=3)
    forwards = [stream[position] for position in range(25)]
    again = TrainingExamples(rule, 4, (12, 12), 10, seed=3)
    assert all(same(again[position], forwards[position]) for position in reversed(range(25)))
    others = [TrainingExamples(rule, 4, (12, 12), 10, seed=4), TrainingExamples(rule, 4, (12, 12), 10, seed=3, rank=1)]
    seen = {tuple(stream[position].inputs.flatten().tolist()) for stream in (again, *others) for position in range(25)}
    assert len(seen) == 75


@pytest.mark.parametrize(
    "data",
    [copying(curriculum=[(2, 4, 5), (3, 8, 2)]), FormalLanguageDataModule("parity_check", "xlstm", 4, eval_batches=3)],
    ids=["curriculum", "xlstm"],
)
def test_workers_change_nothing(data, recorder, trainer):
    seen = []
    for num_workers in (0, 1, 2):
        data.num_workers = num_workers
        recorder.inputs["train"].clear()
        recorder.inputs["validation"].clear()
        trainer(max_steps=8).fit(recorder, data)
        seen.append([*recorder.inputs["train"], *recorder.inputs["validation"]])
    assert len(seen[0]) == 8
    for other in seen[1:]:
        assert all(torch.equal(*pair) for pair in zip(seen[0], other, strict=True))


def test_curriculum():
    stream = copying(curriculum=[(2, 4, 5), (3, 8, 2)]).training_examples()
    shapes = [tuple(stream[position].inputs.shape) for position in range(7)]
    assert shapes == [(5, 8)] * 2 + [(2, 12)] * 3 + [(3, 16)] * 2
    assert [int(stream[position].lengths[0]) for position in (0, 2, 5)] == [4, 8, 12]


def test_lengths_are_drawn_for_each_batch_or_example():
    one = FormalLanguageDataModule("parity_check", batch_size=64, length=9).training_examples()
    lengths = [one[position].lengths.unique().tolist() for position in range(60)]
    assert {n for (n,) in lengths} == set(range(1, 10))
    each = FormalLanguageDataModule("parity_check", "xlstm", batch_size=300, length=9).training_examples()[0]
    assert set(each.lengths.tolist()) == set(range(2, 10))
    assert each.inputs.shape == (300, 8)
    answered = (each.targets != -100).long().argmax(1)
    assert torch.equal(answered, each.lengths - 2)  # the last token; the answer counts
    assert not (each.inputs * (torch.arange(8) > answered[:, None])).any()


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 4))
def test_processes_share_held_out_batches(batch_size, world_size):
    rule = copying().rule
    if batch_size < world_size:
        with pytest.raises(ValueError, match=f"batch_size must be at least the number of processes, {world_size}"):
            HeldOutExamples(rule, batch_size, [12], TEST, 0, world_size)
        return
    whole = HeldOutExamples(rule, batch_size, [12, 8], TEST)
    ranks = [HeldOutExamples(rule, batch_size, [12, 8], TEST, rank, world_size) for rank in range(world_size)]
    for index in range(2):
        shared = sorted(row for rank in ranks for row in rank[index].inputs.tolist())
        assert shared == sorted(whole[index].inputs.tolist())


def test_held_out_sets_are_fixed_and_differ(monkeypatch):
    data = copying(eval_lengths=[8, 12])
    first = [list(data.val_dataloader()), list(data.test_dataloader())]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    second = [list(data.val_dataloader()), list(data.test_dataloader())]
    for before, after in zip(first, second, strict=True):
        assert all(map(same, before, after))
        assert [int(batch.lengths[0]) for batch in before] == [8, 8, 12, 12]
    assert not same(first[0][0], first[1][0])
    assert not same(first[0][0], first[0][1])
    assert HeldOutExamples(data.rule, 3, [8], VALIDATION)[0].inputs.tolist() == first[0][0].inputs.tolist()


def test_baseline_by_hand():
    known = answer_batch(np.zeros((4, 3), int), np.array([[-100, 1, 2], [-100, 1, 3], [5, -100, 3], [1, 4, -100]]), 3)
    # First answers 1, 1, 5, 1; second ones 2, 3, 3, 4.
    unknown = answer_batch(np.zeros((3, 3), int), np.array([[1, -100, 3], [-100, 1, 4], [5, -100, -100]]), 3)
    assert blind_accuracy(known, unknown) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_baselines():
    assert copying(length=30).baseline == pytest.approx(copying().chance, abs=0.03)
    assert copying().chance == 1 / 6
    assert InductionHeadsDataModule(length=20).baseline == pytest.approx(1 / 15, abs=0.03)


def test_baseline_of_bucket_sort_is_that_of_the_quantiles():
    accuracies = []
    for length in (40, 148, 256):
        digits = np.sort(np.random.default_rng(length).integers(10, size=(2000, length)), axis=1)
        guess = np.floor(10 * (np.arange(length) + 0.5) / length)
        accuracies.append((digits == guess).mean())
    data = FormalLanguageDataModule("bucket_sort", eval_batches=3)
    assert data.baseline == pytest.approx(np.mean(accuracies), abs=0.01)
    assert 0.7 < data.baseline < 0.75


def test_speed_is_counted():
    assert copying().samples_per_second(0.05) > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 3}, "4 data tokens do not fit into length 3; raise length or lower data_tokens"),
        ({"eval_lengths": [12, 2]}, "4 data tokens do not fit into length 2"),
        ({"curriculum": [(1, 3, 1)]}, "4 data tokens do not fit into length 3"),
        ({"curriculum": [(0, 12, 1)]}, r"must be steps, length and batch size, each at least 1, got \[0, 12, 1\]"),
        ({"data_tokens": 0}, "data_tokens must be at least 1, got 0"),
        ({"vocab_size": 2}, "vocab_size must be at least 3: the query, the noise and a data symbol, got 2"),
        ({"eval_lengths": []}, "nothing to evaluate on"),
        ({"eval_batches": 0}, "nothing to evaluate on"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        copying(**options)
