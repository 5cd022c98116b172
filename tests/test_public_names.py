"""The public names and their docstrings; ``python tests/test_public_names.py`` lists them with one line each."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

REFERENCE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "reference.py"))
public_names = REFERENCE["public_names"]
SENTENCE = re.compile(r"[A-Z]((?![.?] [A-Z]).)*\.")  # a capital, no second sentence, and a full stop
SECTION = re.compile(r"^(\w+):\n((?:    .*\n|\n)+)", re.MULTILINE)


def documented() -> dict[str, object]:
    """The public functions and classes by full name; constants have no docstring."""
    names = {f"{module}.{name}": value for module, values in public_names().items() for name, value in values.items()}
    return {name: value for name, value in names.items() if inspect.isclass(value) or inspect.isfunction(value)}


def summary(value: object) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def described(value: object) -> set[str]:
    """The arguments in the docstring of a function, or in those of a class and its bases in this package."""
    owners = inspect.getmro(value) if inspect.isclass(value) else [value]
    names = set()
    for owner in owners:
        if not owner.__module__.startswith("minrnn_lightning"):
            continue
        sections = dict(SECTION.findall((inspect.cleandoc(owner.__doc__ or "")) + "\n"))
        text = sections.get("Args", "") + sections.get("Attributes", "")
        names |= set(re.findall(r"^    \*{0,2}(\w+):", text, re.MULTILINE))
    return names


def listing() -> str:
    """Every package with its public names and their summaries."""
    lines = []
    for module, values in public_names().items():
        lines += ["", module]
        for name, value in values.items():
            lines.append(f"  {name:28} {summary(value) if callable(value) else type(value).__name__}")
    return "\n".join(lines).lstrip()


@pytest.mark.parametrize("name", documented())
def test_summary_is_one_sentence(name):
    assert SENTENCE.fullmatch(summary(documented()[name])), summary(documented()[name])


@pytest.mark.parametrize("name", documented())
def test_every_argument_is_described(name):
    value = documented()[name]
    if inspect.isclass(value) and getattr(value.__init__, "__module__", "").startswith("torch"):
        return  # an abstract class whose constructor is that of nn.Module
    arguments = inspect.signature(value).parameters
    missing = set(arguments) - described(value)
    assert not missing, f"{name} does not describe {', '.join(sorted(missing))}"


def test_every_name_has_a_page():
    placed = [
        REFERENCE["subject"](module, value) for module, names in public_names().items() for value in names.values()
    ]
    assert set(placed) == REFERENCE["SUBJECTS"].keys()


if __name__ == "__main__":
    print(listing())
