"""Options of the command: their types, and a sentence for a value that cannot be parsed."""

from __future__ import annotations

from argparse import ArgumentError
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import getmro, isclass, signature
from pydoc import ErrorDuringImport, locate
from types import NoneType
from typing import Any

from minrnn_lightning.annotations import NAMES, accepted, members, type_hints
from minrnn_lightning.commands.option_names import class_options, function_options
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
    last: BaseException = error
    reason, whole, class_path = "", "", ""
    while cause:
        last, reason = cause, str(cause)
        whole = whole or reason.partition("\nGiven value: ")[2]
        first = reason.partition("\n")[0]
        if first.startswith("Parser key "):
            whole = ""
            keys = keys if keys[-1:] == [_quoted(first)] else [*keys, _quoted(first)]
        elif first.startswith("Problem with given class_path "):
            class_path = _quoted(first)
            owner = _locate(class_path)
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in reason.removeprefix("argument ").splitlines() if line.strip()]
    reason = " ".join(lines).rstrip(".")
    option = ".".join(keys)
    if reason.startswith("unrecognized arguments: "):
        names = (f"--{key}.{name}" if key else f"--{name}" for key, each in owners.items() for name in _options(each))
        given = reason.split()[2].partition("=")[0]
        return f"{reason}; see --help{_similar(given, names)}"
    top, _, name = option.rpartition(".")
    if isclass(owner) and owner in members(_options(owners.get(top)).get(name)):
        return f"{option} needs the name of a class: --{option}=NAME"
    _, _, names_missing = reason.partition(" arguments are required: ")
    missing = [f"--{name.rpartition('.')[2]}" for name in names_missing.split(", ")] if names_missing else []
    if missing and keys:
        return f"{option}.{missing[0].lstrip('-')} is required"
    if missing:
        recipe = ": give a recipe with --config, see `minrnn recipes`" if "." in names_missing else "; see --help"
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required{recipe}"
    if reason.startswith("Subcommand "):  # of a recipe
        _, command, _, wrong, *_ = reason.split("'")
        similar = _similar(wrong.partition(".")[0], _options(owners.get("")))
        return f"{wrong} in a recipe is not an option; see `minrnn {command} --help`{similar}"
    if reason.startswith("Key must be a string"):
        return f"{option or 'config'} has the key {reason.rpartition(': ')[2]}, which is not the name of an option"
    if not keys:
        return reason
    if class_path and isinstance(last, ImportError | AttributeError | SyntaxError):
        reason = f"there is no module {last.name}" if isinstance(last, ModuleNotFoundError) else reason
        return f"{option} is {class_path!r}, which cannot be imported: {reason}"
    if reason.startswith("Expected an instantiatable class"):
        return f"{option} needs the name of a class that is not abstract: --{option}=NAME"
    if isclass(owner) and reason.endswith("is not accepted"):
        wrong = _quoted(reason)
        if wrong == "class_path":
            return f"{option} has options next to class_path: put them below init_args"
        return (
            f"{option}.{wrong} is not an option of {owner.__name__}; "
            f"see `minrnn fit --{keys[0]}.help={owner.__name__}`{_similar(wrong, class_options(owner))}"
        )
    if reason.startswith("Expected a dot import path string"):
        return _no_class(option, reason.partition(": ")[2])
    owner = owner or owners.get(top)
    hint = _options(owner).get(name)
    _, says_value, given = reason.partition("Got value:")
    given = given.strip() or "an empty text"
    if given.startswith("NestedArg("):  # of a class that is none, or an option that it does not take
        _, key, _, value, *_ = given.split("'")
        if key == "class_path":
            return _no_class(option, value)
        return f"{option}.{key} cannot be {value!r}; --{option}.help=CLASS shows the options of a class"
    if hint and says_value:
        of_class = any(isclass(each) and each not in NAMES and each.__module__ != "builtins" for each in members(hint))
        if of_class and all(part.isidentifier() for part in given.split(".")):
            return _no_class(option, given)
        return f"{option} must be {accepted(hint)}, got {whole or given}"
    for kind, words in NAMES.items():
        if reason.startswith(f"Expected a {kind}") and says_value:
            return f"{option} must be {words}, got {given}"
    return f"{option}: {reason}"


def _options(owner: object) -> Mapping[str, Any]:
    """The types of the options of a class or function by name, or those that are given already."""
    if isinstance(owner, Mapping):
        return owner
    return class_options(owner) if isclass(owner) else function_options(owner) if callable(owner) else {}


def _locate(path: str) -> object:
    """What a dotted path names; None where it names nothing or cannot be imported."""
    try:
        return locate(path)
    except ErrorDuringImport:
        return None


def _no_class(option: str, given: str) -> str:
    return f"{option} is {given!r}, which is no class; give a name or a path such as my_package.MyClass"


def _similar(given: str, names: Iterable[str]) -> str:
    """A question whether an option was meant that begins with what was given, or differs in a few letters."""
    names = list(names)
    found = [name for name in names if name.startswith(given)] or get_close_matches(given, names, 1, 0.8)
    return f" (did you mean {found[0]}?)" if found else ""


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
