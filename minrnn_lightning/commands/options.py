"""Options of the command: their types, and a sentence for a value that cannot be parsed."""

from __future__ import annotations

from argparse import ArgumentError
from collections import ChainMap
from collections.abc import Callable, Mapping
from inspect import getmro, isclass, signature
from pydoc import locate
from types import NoneType
from typing import Any

from minrnn_lightning.annotations import NAMES, accepted, members, type_hints
from minrnn_lightning.errors import InputError


def split_commas(text: str) -> list[str]:
    """Items of ``a,b``, ``a, b`` or ``[a,b]``, each once and without surrounding spaces; none of an empty text."""
    items = (item.strip() for item in text.strip("[] ").split(","))
    return list(dict.fromkeys(item for item in items if item))


def explain(error: ArgumentError, owners: Mapping[str, Callable[..., object] | Mapping[str, Any]]) -> str:
    """One sentence for an error of jsonargparse, which nests the types and values that it tried over many lines.

    Its causes are a chain of exceptions from the option down to the value; the sentence is made of their keys and the
    last of them.

    Args:
        error: What ``parse_args`` raised.
        owners: The class or function whose parameters are the options, or their types by name, by the first key; ""
            for options without one.
    """
    keys: list[str] = []
    owner: object = None
    cause: BaseException | None = error
    reason, whole = "", ""
    while cause:
        reason = str(cause)
        whole = whole or reason.partition("\nGiven value: ")[2]
        first = reason.partition("\n")[0]
        if first.startswith("Parser key "):
            whole = ""
            keys = keys if keys[-1:] == [_quoted(first)] else [*keys, _quoted(first)]
        elif first.startswith("Problem with given class_path "):
            owner = locate(_quoted(first))
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in reason.removeprefix("argument ").splitlines() if line.strip()]
    reason = " ".join(lines).rstrip(".")
    option = ".".join(keys)
    if reason.startswith("unrecognized arguments: "):
        return f"{reason}; see --help"
    if not keys:
        return reason
    if isclass(owner) and reason.endswith("is not accepted"):
        return (
            f"{option}.{_quoted(reason)} is not an option of {owner.__name__}; "
            f"see `minrnn fit --{keys[0]}.help={owner.__name__}`"
        )
    what, _, given = reason.partition(": ")
    if what == "Expected a dot import path string":
        return f"{option} is {given!r}, which is no class; give a name or a path such as my_package.MyClass"
    top, _, name = option.rpartition(".")
    owner = owner or owners.get(top)
    hint = (owner if isinstance(owner, Mapping) else type_hints(owner) if callable(owner) else {}).get(name)
    _, says_value, given = reason.partition("Got value:")
    given = given.strip() or "an empty text"
    if given.startswith("NestedArg("):  # of a class that is none, or an option that it does not take
        _, key, _, value, *_ = given.split("'")
        return f"{option}.{key} cannot be {value!r}; --{option}.help=CLASS shows the options of a class"
    if hint and says_value:
        return f"{option} must be {accepted(hint)}, got {whole or given}"
    for kind, words in NAMES.items():
        if reason.startswith(f"Expected a {kind}") and says_value:
            return f"{option} must be {words}, got {given}"
    return f"{option}: {reason}"


def _quoted(text: str) -> str:
    """What is between the first quotation marks."""
    return text.replace('"', "'").split("'")[1]


def refuse_null(part: str, class_path: str, options: Mapping[str, Any]) -> None:
    """Refuse null for an option whose default is a value and whose type does not include None.

    Args:
        part: ``model`` or ``data``.
        class_path: Import path of the class.
        options: Values for its parameters.

    Raises:
        InputError: A value is None where none is accepted.
    """
    owner = locate(class_path)
    if not isclass(owner):
        return
    # a subclass passes on options of its base
    parameters = ChainMap(*(dict(signature(base).parameters) for base in getmro(owner)))
    hints = type_hints(owner)
    for name, value in options.items():
        parameter = parameters.get(name)  # none where a class hands it to something else than its base
        if value is not None or parameter is None or parameter.default in (None, parameter.empty):
            continue
        if name in hints and not {NoneType, Any} & set(members(hints[name])):
            raise InputError(
                f"{part}.{name} must be {accepted(hints[name])}, got null: leave it out for the default, "
                f"{parameter.default}"
            )
