"""What can be told from the traceback of an error: which package raised it, and which it has passed."""

import json
import textwrap

import pytest
from mistakes import MISTAKES

from minrnn_lightning.errors import packages_passed, raised_by


def caught(function, *args) -> Exception:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("no error")


def test_an_argument_that_a_package_refuses():
    error = caught(json.loads, "x")
    assert raised_by(error, "json")
    assert not raised_by(error, "textwrap")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_no_refusal(mistake):
    error = caught(MISTAKES[mistake])
    assert raised_by(error, "mistakes") == (mistake in ("value", "runtime"))  # which it raises


def test_an_operation_that_fails_in_a_package_is_no_refusal():
    assert not raised_by(caught(textwrap.dedent, 3), "textwrap")
    assert not raised_by(caught(textwrap.dedent, 3), "re")


def test_packages_that_an_error_has_passed():
    assert packages_passed(caught(json.loads, "x")) == ["tests", "json", "json", "json"]
    assert packages_passed(ValueError("never raised")) == []
