"""LabelledBatch sequences: every example once an epoch, like lengths together, any number of processes and workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data.long_range_arena.module import HeldOutSequences, LabelledDataModule, Split, TrainingSequences
from minrnn_lightning.data.long_range_arena.tsv import read_tsv


def numbered(lengths, width=1):
    """A split whose sequences repeat their own number, and whose labels are the numbers of the examples."""
    tokens = np.concatenate([np.full(n, number % 256, np.uint8) for number, n in enumerate(lengths)])
    return Split(tokens, np.cumsum(lengths), np.arange(len(lengths) // width))


class Numbers(LabelledDataModule):
    """A data module of made-up sequences."""

    output_size = 3

    def __init__(self, batch_size=2, num_workers=0, data_dir=None, examples=20):
        super().__init__(batch_size, 9, num_workers, data_dir)
        self.number = examples

    def source(self):
        return [self.number]

    def examples(self):
        examples = [(n % 3, [bytes([n] * (1 + n % 9))]) for n in range(self.number)]
        return {"train": examples, "validation": iter(examples[:7]), "test": examples[:5]}


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=60)


@given(lengths)
def test_sequences_come_back(lengths):
    split = numbered(lengths)
    batch = split.batch(np.arange(len(lengths)))
    assert batch.lengths.tolist() == lengths
    assert batch.targets.tolist() == list(range(len(lengths)))
    for number, (row, n) in enumerate(zip(batch.inputs.tolist(), lengths, strict=True)):
        assert row == [number] * n + [0] * (max(lengths) - n)


def test_pairs():
    batch = numbered([2, 1, 3, 1], width=2).batch(np.array([1, 0]))
    assert batch.inputs.tolist() == [[[2, 2, 2], [3, 0, 0]], [[0, 0, 0], [1, 0, 0]]]
    assert batch.lengths.tolist() == [[3, 1], [2, 1]]
    assert batch.targets.tolist() == [1, 0]


@settings(deadline=None)
@given(lengths, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_training_epoch(lengths, batch_size, world_size, epoch):
    split = numbered(lengths)
    if len(lengths) < batch_size * world_size:
        with pytest.raises(ValueError, match=f"has {len(lengths)} examples, too few for a batch of"):
            TrainingSequences(split, batch_size, 0, 0, world_size)
        return
    ranks = [TrainingSequences(split, batch_size, 5, rank, world_size) for rank in range(world_size)]
    size = len(ranks[0])
    assert size == len(lengths) // (batch_size * world_size)
    batches = [rank[epoch * size + index] for rank in ranks for index in range(size)]
    assert all(len(batch.targets) == batch_size for batch in batches)
    seen = torch.cat([batch.targets for batch in batches])
    assert len(seen.unique()) == len(seen)
    whole = TrainingSequences(split, batch_size * world_size, 5)
    for index in range(size):
        shares = torch.cat([rank[epoch * size + index].targets for rank in ranks])
        assert torch.equal(whole[epoch * size + index].targets, shares)


def test_like_lengths_share_a_batch():
    random = np.random.default_rng(0)
    split = numbered(random.integers(1, 200, size=640).clip(max=255))
    stream = TrainingSequences(split, 20)
    filled = np.mean(
        [float(batch.lengths.double().mean() / batch.inputs.shape[1]) for batch in map(stream.__getitem__, range(32))]
    )
    assert filled > 0.85  # 0.5 without sorting
    longest = [stream[position].inputs.shape[1] for position in range(32)]
    assert longest != sorted(longest)
    assert [stream[32].targets.tolist()] != [stream[0].targets.tolist()]


@settings(deadline=None)
@given(lengths, st.integers(1, 4), st.integers(1, 3))
def test_held_out_examples_come_once(lengths, batch_size, world_size):
    split = numbered(lengths)
    if len(lengths) < world_size:
        with pytest.raises(ValueError, match=f"too few for {world_size} processes"):
            HeldOutSequences(split, batch_size, 0, world_size)
        return
    ranks = [HeldOutSequences(split, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = torch.cat([rank[index].targets for rank in ranks for index in range(len(rank))])
    assert sorted(seen.tolist()) == list(range(len(lengths)))


def test_the_first_held_out_batches_are_a_fair_sample():
    data = HeldOutSequences(numbered(range(1, 201)), 2)
    first = np.mean([float(data[index].lengths.double().mean()) for index in range(40)])
    assert first == pytest.approx(100, abs=25)  # 41 if they came by rising length


def test_made_once_and_kept_whole(tmp_path, monkeypatch):
    data = Numbers(data_dir=str(tmp_path))
    data.prepare_data()
    assert [path.name for path in (tmp_path / "sequences").iterdir()] == [data.folder.name]
    assert len(list(data.folder.iterdir())) == 9
    again = Numbers(data_dir=str(tmp_path))
    monkeypatch.setattr(Numbers, "examples", lambda self: pytest.fail("made again"))
    again.prepare_data()
    assert sum(len(batch.targets) for batch in again.val_dataloader()) == 7
    assert Numbers(data_dir=str(tmp_path), examples=21).folder != data.folder


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def broken(self):
        return {"train": (1 / 0 for _ in range(1))}

    monkeypatch.setattr(Numbers, "examples", broken)
    with pytest.raises(ZeroDivisionError):
        Numbers(data_dir=str(tmp_path)).prepare_data()
    assert list(tmp_path.rglob("*.npy")) == []
    assert list((tmp_path / "sequences").iterdir()) == []


def test_workers_change_nothing(tmp_path, recorder, trainer):
    seen = []
    for num_workers in (0, 2):
        recorder.inputs["train"].clear()
        trainer(max_epochs=2).fit(recorder, Numbers(num_workers=num_workers, data_dir=str(tmp_path)))
        seen.append(list(recorder.inputs["train"]))
    assert len(seen[0]) == 20
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_baseline_is_the_commonest_label(tmp_path):
    data = Numbers(data_dir=str(tmp_path))
    data.prepare_data()
    assert data.baseline == 2 / 5  # training has 7, 7 and 6 of the labels; test 0, 1, 2, 0, 1
    assert data.chance == 1 / 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\tb\nc\n", "x.tsv, line 2 has 1 instead of 2 columns between tabs; it is cut short"),
        (b"a\tb\nc\td\te\n", "x.tsv, line 2 has 3 instead of 2 columns"),
        (b"a\tb\n\xff\xfe\tb\n", r"x.tsv, line 2 is not UTF-8 \(byte 0xff\)"),
        (b"", "x.tsv holds no example"),
    ],
)
def test_damaged_lines(tmp_path, content, words):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(read_tsv(tmp_path / "x.tsv", 2))


def test_lines_and_their_places(tmp_path):
    file = Path(tmp_path, "x.tsv")
    file.write_bytes("Head\r\ná\tb\r\n".encode())
    assert list(read_tsv(file, 2, header=True)) == [(f"{file}, line 2", ["á", "b"])]
    file.write_bytes(b"Source\tTarget\n")
    with pytest.raises(ValueError, match="holds no example"):
        list(read_tsv(file, 2, header=True))
