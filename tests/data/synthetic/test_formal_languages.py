"""Formal languages: every rule against a plain reading of one string at a time, in all three encodings."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning.data import FormalLanguageDataModule
from minrnn_lightning.data.synthetic.languages import ENCODINGS
from minrnn_lightning.data.synthetic.languages.deepmind import SYMBOLS, expression

ALL = [(encoding, task) for encoding, languages in ENCODINGS.items() for task in languages]


def walk(steps):
    place = 0
    for step in steps:
        place = (place + step) % 5
    return place


def commonest(tokens, tie):
    most = max(Counter(tokens).values())
    return tie([token for token in tokens if tokens.count(token) == most])


def first_and_last(tokens):
    return int(tokens[0] != tokens[-1])


def stack(tokens):
    bits = []
    for token in tokens:
        if token == 2:
            del bits[-1:]
        else:
            bits.append({0: 0, 1: 1, 3: 0, 4: 1}[token])
    return [*reversed(bits), 2]


def value_of(tokens):
    text = "".join(SYMBOLS[token] for token in tokens)
    assert re.fullmatch(r"[-0-4+*()x=]+", text)
    return eval(text) % 5  # Python has the same rules of precedence


def solutions(tokens):
    text = "".join(SYMBOLS[token] for token in tokens)
    left, right = text.split("=")
    assert left.count("x") == 1
    return [digit for digit in range(5) if (eval(left.replace("x", str(digit))) - int(right)) % 5 == 0]


def missing_bit(tokens):
    tokens = tokens[: len(tokens) // 2 * 2]
    place = tokens.index(2)
    return tokens[(place + len(tokens) // 2) % len(tokens)]


def missing_token(tokens):
    """The shortest period of the string tells where the copy begins; any right reading gives the same answer."""
    half = len(tokens) // 2
    assert [token for token in tokens[half:] if token != 10] == [
        token for token, copy in zip(tokens[:half], tokens[half:], strict=True) if copy != 10
    ]
    return tokens[tokens.index(10) - half]


def ones(tokens):
    return len([token for token in tokens if token == 1]) % 2


REFERENCES = {
    "minrnn": {
        "bucket_sort": sorted,
        "cycle_nav": lambda tokens: walk(token - 1 for token in tokens),
        "even_pairs": first_and_last,
        "parity_check": ones,
        "majority": lambda tokens: commonest(tokens, max),
        "majority_count": lambda tokens: max(Counter(tokens).values()),
    },
    "xlstm": {
        "bucket_sort": sorted,
        "cycle_nav": lambda tokens: 4 + walk({1: 0, 2: 1, 3: -1}[token] for token in tokens),
        "even_pairs": lambda tokens: 1 + first_and_last(tokens),
        "parity_check": lambda tokens: 1 + sum(token == 2 for token in tokens) % 2,
        "majority": lambda tokens: commonest(tokens, lambda tied: tied[0]),
        "majority_count": lambda tokens: max(Counter(tokens).values()),
        "missing_duplicate": missing_token,
    },
    "deepmind": {
        "bucket_sort": sorted,
        "cycle_nav": lambda tokens: walk(token - 1 for token in tokens),
        "even_pairs": first_and_last,
        "parity_check": ones,
        "missing_duplicate": missing_bit,
        "reverse_string": lambda tokens: tokens[::-1],
        "duplicate_string": lambda tokens: tokens + tokens,
        "odds_first": lambda tokens: tokens[1::2] + tokens[0::2],
        "stack_manipulation": stack,
        "modular_arithmetic": value_of,
        "modular_arithmetic_brackets": value_of,
    },
}


def questions(encoding, task, length, seed, batch_size=6):
    """Tokens, answers, and the batch they come from, after the checks that hold for every language."""
    language = ENCODINGS[encoding][task]
    batch = language.rule(np.random.default_rng(seed), batch_size, length)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.lengths.tolist() == [length] * batch_size
    assert 0 <= batch.inputs.min() <= batch.inputs.max() < language.input_size
    assert batch.targets.max() < language.output_size
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        places = [place for place, target in enumerate(targets) if target != -100]
        assert places == list(range(places[0], places[-1] + 1))
        yield inputs, places[0], [targets[place] for place in places]


@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize(("encoding", "task"), [(e, t) for e, references in REFERENCES.items() for t in references])
@given(extra=st.integers(0, 40), seed=st.integers(0, 1000))
def test_rule(encoding, task, extra, seed):
    length = ENCODINGS[encoding][task].shortest + extra
    for inputs, place, given_answers in questions(encoding, task, length, seed):
        if encoding == "xlstm":
            tokens, rest = inputs[: place + 1], inputs[place + 1 :]
            assert rest == [0] * (len(given_answers) - 1)
            size = len(tokens) + len(given_answers)
            assert size == {"bucket_sort": length // 2 * 2, "missing_duplicate": (length - 1) // 2 * 2 + 1}.get(
                task, length
            )
        else:
            tokens, rest = inputs[:place], inputs[place:]
            assert len(tokens) == length - (task == "modular_arithmetic" and length % 2 == 0)
            query = ENCODINGS[encoding][task].input_size - 1
            assert set(rest) == {query}
            assert query not in tokens
        expected = REFERENCES[encoding][task](tokens)
        assert given_answers == (expected if isinstance(expected, list) else [expected])


@settings(deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 1000))
def test_missing_duplicate_of_minrnn(length, seed):
    known = set()
    for inputs, place, (answer,) in questions("minrnn", "missing_duplicate", length, seed):
        string, beginning = inputs[:length], inputs[length:place]
        assert string[: len(beginning)] == beginning
        assert answer == string[len(beginning)]
        assert inputs[place:] == [9]
        known.add(len(beginning))
    assert len(known) == 1


@settings(deadline=None)
@given(length=st.integers(3, 40), seed=st.integers(0, 1000))
def test_solve_equation(length, seed):
    for inputs, place, (answer,) in questions("deepmind", "solve_equation", length, seed):
        assert place == length
        assert solutions(inputs[:place]) == [answer]


@settings(deadline=None)
@given(length=st.integers(1, 60), seed=st.integers(0, 1000))
def test_expression_has_its_length_and_value(length, seed):
    tokens, value = expression(np.random.default_rng(seed), length, 3)
    assert len(tokens) == length
    assert value_of(tokens) == value


@pytest.mark.parametrize(
    ("task", "tokens", "answers"),
    [
        ("bucket_sort", [8, 6, 5, 2, 3, 0], [0, 2, 3, 5, 6, 8]),
        ("cycle_nav", [2, 1, 0, 2, 2, 2], 3),
        ("even_pairs", [0, 0, 0, 0, 0, 0], 0),
        ("parity_check", [1, 1, 0, 0, 1, 1], 0),
        ("majority", [43, 44, 24, 55, 8, 36, 45, 53, 33, 23, 19, 26], 55),
        ("majority_count", [43, 44, 24, 55, 8, 36, 45, 53, 33, 23, 19, 26], 1),
    ],
)
def test_references_agree_with_the_published_examples(task, tokens, answers):
    assert REFERENCES["minrnn"][task](tokens) == answers


def test_possible_answers_are_counted():
    for encoding, task in ALL:
        language = ENCODINGS[encoding][task]
        rule = language.rule
        found = set()
        for length in (language.shortest + 1, 31, 200) if "count" in task else (language.shortest + 1, 31):
            found |= set(rule(np.random.default_rng(length), 400, length).targets.unique().tolist()) - {-100}
        assert len(found) <= language.possible
        if task != "majority_count":
            assert len(found) == language.possible, (encoding, task)


def test_held_out_lengths_are_evenly_spaced():
    data = FormalLanguageDataModule("even_pairs", batch_size=4, eval_lengths=(10, 30), eval_batches=5)
    assert [int(batch.lengths[0]) for batch in data.test_dataloader()] == [10, 15, 20, 25, 30]


def test_ties_of_majority_are_as_frequent_as_published():
    """41.6 % at the lengths of the test, 61.6 % at those of the training."""
    for lengths, share in ((range(40, 257), 0.416), (range(1, 41), 0.616)):
        ties = []
        for length in lengths:
            tokens = ENCODINGS["minrnn"]["majority"].rule(np.random.default_rng(length), 60, length).inputs[:, :-1]
            counts = torch.nn.functional.one_hot(tokens, 63).sum(1)
            ties.append((counts == counts.amax(1, keepdim=True)).sum(1).gt(1).double().mean())
        assert float(torch.stack(ties).mean()) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "sorting"}, "task 'sorting' is unknown in the encoding minrnn; it can be bucket_sort, missing"),
        ({"task": "majority", "encoding": "deepmind"}, "task 'majority' is unknown in the encoding deepmind"),
        ({"task": "majority", "encoding": "morse"}, "encoding must be minrnn, xlstm, deepmind, got morse"),
        (
            {"task": "majority", "eval_lengths": (9, 8)},
            r"eval_lengths must be the shortest and the longest, got \[9, 8",
        ),
        ({"task": "majority", "eval_lengths": (0, 8)}, "The length of majority must be at least 1, got 0"),
        ({"task": "majority", "shortest": 41}, "shortest training length, 41, is above the longest, 40"),
        ({"task": "majority", "eval_batches": 0}, "nothing to evaluate on"),
        (
            {"task": "solve_equation", "encoding": "deepmind", "length": 2},
            "length of solve_equation must be at least 3",
        ),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        FormalLanguageDataModule(**options)
