"""Word problems of groups: the answers against permutations applied one after the other."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data import WordProblemDataModule
from minrnn_lightning.data.synthetic.word_problems import GROUPS, elements, generators, products, word_problem

ORDERS = {"S3": 6, "S4": 24, "S5": 120, "A4": 12, "A5": 60}


def sign(permutation):
    """By the lengths of its cycles."""
    seen, result = set(), 1
    for start in range(len(permutation)):
        length = 0
        while start not in seen:
            seen.add(start)
            start, length = permutation[start], length + 1
        if length:
            result *= (-1) ** (length - 1)
    return result


@pytest.mark.parametrize("group", GROUPS)
def test_elements(group):
    found = [tuple(row) for row in elements(group).tolist()]
    expected = [p for p in permutations(range(int(group[1]))) if group[0] == "S" or sign(p) == 1]
    assert found == expected
    assert len(found) == ORDERS[group] == WordProblemDataModule(group).input_size


@pytest.mark.parametrize("group", GROUPS)
def test_products_are_those_of_a_group(group):
    table = products(group)
    everything = np.arange(len(table))
    assert (table[0] == everything).all()  # the first element is the identity
    assert (table[:, 0] == everything).all()
    assert (np.sort(table, axis=0) == everything[:, None]).all()
    assert (np.sort(table, axis=1) == everything).all()
    p, q, r = np.random.default_rng(0).integers(len(table), size=(3, 500))
    assert (table[table[p, q], r] == table[p, table[q, r]]).all()
    assert (table != table.T).any()


@pytest.mark.parametrize("group", GROUPS)
def test_generators_make_the_group(group):
    table, two = products(group), generators(group)
    found = {0}
    for _ in range(20):
        found |= {int(table[p, q]) for p in found for q in two}
    assert len(found) == ORDERS[group]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(GROUPS), st.integers(1, 12), st.integers(0, 1000))
def test_answers(group, length, seed):
    rows = elements(group).tolist()
    batch = word_problem(np.random.default_rng(seed), 4, length, products(group))
    assert batch.inputs.shape == batch.targets.shape == (4, length)
    assert batch.lengths.tolist() == [length] * 4
    for tokens, answers in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        points = list(range(int(group[1])))
        for token, answer in zip(tokens, answers, strict=True):
            points = [rows[token][point] for point in points]
            assert rows[answer] == points


def test_data_module():
    data = WordProblemDataModule("S3", batch_size=5, length=7, eval_lengths=[7, 9], eval_batches=2)
    assert (data.input_size, data.output_size, data.chance) == (6, 6, 1 / 6)
    assert data.training_examples()[0].inputs.shape == (5, 7)
    assert [batch.inputs.shape for batch in data.val_dataloader()] == [(5, 7), (5, 7), (5, 9), (5, 9)]
    assert abs(data.baseline - 1 / 6) < 0.02


def test_generators_are_frequent_in_the_curriculum_only():
    data = WordProblemDataModule(
        "S5", batch_size=200, length=50, generator_share=0.75, curriculum=[[2, 40, 300]], eval_batches=1
    )
    two, table = generators("S5"), products("S5")
    words, (held_out,) = data.training_examples(), data.val_dataloader()
    for batch, share in ((words[1], 0.75 + 0.25 / 60), (words[2], 1 / 60), (held_out, 1 / 60)):
        assert abs(np.isin(batch.inputs.numpy(), two).mean() - share) < 0.02
        tokens, answers = batch.inputs.numpy(), batch.targets.numpy()
        assert (table[answers[:, :-1], tokens[:, 1:]] == answers[:, 1:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "D3"}, "group must be one of S3, S4, S5, A4, A5, got D3"),
        ({"generator_share": 1.5}, "generator_share must be from 0 to 1, got 1.5"),
        ({"length": 0}, "length must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        WordProblemDataModule(**options)
