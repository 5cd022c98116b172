"""Recall tasks: the rules against a search through the sequences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data import AssociativeRecallDataModule, InductionHeadsDataModule, MQARDataModule
from minrnn_lightning.data.synthetic.mqar import mqar
from minrnn_lightning.data.synthetic.recall import associative_recall, induction_heads

seeds = st.integers(0, 1000)


def rows(batch):
    return zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)


@settings(deadline=None)
@given(st.integers(4, 30), st.integers(2, 20), seeds)
def test_induction_heads(length, vocab_size, seed):
    for tokens, targets in rows(induction_heads(np.random.default_rng(seed), 5, length, vocab_size)):
        assert len(tokens) == length
        assert tokens.count(vocab_size - 1) == 2
        assert tokens[-1] == vocab_size - 1
        assert targets == [-100] * (length - 1) + [tokens[tokens.index(vocab_size - 1) + 1]]


def test_trigger_is_everywhere():
    batch = induction_heads(np.random.default_rng(0), 2000, 8)
    assert sorted(set((batch.inputs == 15).int().argmax(1).tolist())) == [0, 1, 2, 3, 4]


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(2, 10), st.booleans(), seeds)
def test_associative_recall(pairs, keys, odd, seed):
    vocab_size = 2 * keys + 2 + odd
    batch = associative_recall(np.random.default_rng(seed), 5, 2 * pairs, vocab_size)
    for tokens, targets in rows(batch):
        shown, values = tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        value_of = dict(zip(shown, values, strict=True))
        assert [value_of[key] for key in shown] == values
        assert max(shown) < keys <= min(values)
        assert max(values) < 2 * keys
        assert tokens[2 * pairs] == vocab_size - 2
        assert targets == [-100] * (2 * pairs + 1) + [value_of[tokens[-1]]]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 20), st.booleans(), seeds)
def test_mqar(pairs, room, more_symbols, random_filler, seed):
    length, vocab_size = 4 * pairs + room, 2 * pairs + 2 + more_symbols
    batch = mqar(np.random.default_rng(seed), 5, length, vocab_size, pairs, 0.1, random_filler)
    for tokens, targets in rows(batch):
        keys, values = tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        value_of = dict(zip(keys, values, strict=True))
        assert len(value_of) == len(set(values)) == pairs
        assert 1 <= min(keys) <= max(keys) < vocab_size // 2 <= min(values) <= max(values) < vocab_size
        asked = [place for place, target in enumerate(targets) if target != -100]
        assert sorted(tokens[place] for place in asked) == sorted(keys)
        assert all(targets[place] == value_of[tokens[place]] for place in asked)
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
        if not random_filler:
            assert all(token == 0 for place, token in enumerate(tokens[2 * pairs :], 2 * pairs) if place not in asked)


@pytest.mark.parametrize("power", [1.0, 0.1])
def test_first_slot_of_mqar(power):
    """The key that is asked for at a slot: with one pair the probability is the weight's share."""
    batch = mqar(np.random.default_rng(0), 20_000, 12, 12, 1, power)
    slots = (batch.targets[:, 2::2] != -100).double().mean(0)
    weights = [slot ** (power - 1) for slot in range(1, 6)]
    assert slots.tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InductionHeadsDataModule(length=3), "length of induction heads must be at least 4, got 3"),
        (lambda: InductionHeadsDataModule(vocab_size=1), "vocab_size must be at least 2, got 1"),
        (lambda: AssociativeRecallDataModule(length=7), "must be even, two tokens for each pair, got 7"),
        (lambda: AssociativeRecallDataModule(vocab_size=3), "vocab_size must be at least 4, got 3"),
        (lambda: MQARDataModule(length=31), "length for 8 pairs must be at least 32, got 31"),
        (lambda: MQARDataModule(vocab_size=17), "vocab_size must be at least 18 for 8 pairs, got 17"),
        (lambda: MQARDataModule(pairs=0), "pairs must be at least 1, got 0"),
        (lambda: MQARDataModule(power=0), "power must be above 0 and finite, got 0"),
    ],
)
def test_bad_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_chance():
    assert InductionHeadsDataModule().chance == 1 / 15
    assert AssociativeRecallDataModule().chance == 1 / 9
    assert MQARDataModule().chance == 1 / 4096
