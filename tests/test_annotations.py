"""Whether a value fits a type annotation, and what it accepts in words."""

from collections.abc import Iterable
from threading import Thread
from typing import Any, Literal

import pytest
from torch import Tensor

from minrnn_lightning.annotations import accepted, fits

NAN = float("nan")


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3, 10**30], [True, 1.0, "1", None, NAN, [1]]),
        (float, [0, 1.5, float("inf")], [False, "1.5", None, NAN]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [b"a", 3, None]),
        (int | None, [3, None], [True, "3", NAN]),
        (Literal["a", "b"], ["a", "b"], ["c", None, 3, ["a"]]),
        (list[int], [[], [1, 2], (1, 2)], [[1, "2"], 1, "12", {1: 2}, None]),
        (str | type | list[str | type], ["a", int, ["a", int]], [3, ["a", 3], None]),
        (dict[str, dict[str, Any]] | None, [None, {}, {"a": {"b": len}}], [{"a": 3}, {1: {}}, []]),
        (Any, [None, 3, NAN, len], []),
    ],
    ids=str,
)
def test_values_that_fit(hint, right, wrong):
    assert [value for value in right if not fits(value, hint)] == []
    assert [value for value in wrong if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (str | type[int] | list[str], "a text or a class or a list"),
        (dict[str, int], "a dictionary (each value a whole number)"),
        (dict[str, Any], "a dictionary"),
        (float | Tensor, "a number"),
        (Iterable[str] | Thread, "a list or of the class Thread"),
    ],
    ids=str,
)
def test_what_a_type_accepts(hint, words):
    assert accepted(hint) == words
