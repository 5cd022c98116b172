"""Type annotations of parameters: which there are, what they accept in words, and whether a value fits."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from inspect import getmro, isclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
NAMES |= {list: "a list", dict: "a dictionary", type: "a class"}


def type_hints(owner: Callable[..., object]) -> Mapping[str, Any]:
    """Types of the parameters of a function or class, those of its base classes included."""
    functions = [vars(base).get("__init__") for base in getmro(owner)] if isclass(owner) else [owner]
    hints: list[dict[str, Any]] = []
    for function in functions:
        try:
            hints.append(get_type_hints(function))
        except (TypeError, NameError):  # no function, or a name that is imported for type checkers only
            continue
    return ChainMap(*hints)


def accepted(hint: Any) -> str:
    """What a type accepts, in words."""
    parts = members(hint)
    values = [repr(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
    names = [_in_words(part) for part in parts if get_origin(part) is not Literal and not _is_tensor(part)]
    return " or ".join(([f"one of {', '.join(values)}"] if values else []) + list(dict.fromkeys(names)))


def _is_tensor(hint: Any) -> bool:
    """Whether a type is PyTorch's tensor, which no option can be; by name, since PyTorch need not be imported."""
    return getattr(hint, "__name__", "") == "Tensor"


def _in_words(hint: Any) -> str:
    """One member of a union in words; a dictionary with what it holds, where that is fixed."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if isclass(origin) and issubclass(origin, Mapping) and len(arguments) == 2 and arguments[1] is not Any:
        return f"a dictionary (each value {accepted(arguments[1])})"
    if origin in NAMES:
        return NAMES[origin]
    if isclass(origin) and issubclass(origin, Iterable):
        return NAMES[list]
    return f"of the class {origin.__name__}" if isclass(origin) else str(hint)


def members(hint: Any) -> list[Any]:
    """Members of a union; another type itself."""
    if get_origin(hint) in (Union, UnionType):
        return [part for member in get_args(hint) for part in members(member)]
    return [NoneType if hint is None else hint]


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type, with its items where that is a list or a dictionary; a number is not NaN.

    Args:
        value: Any value.
        hint: A type annotation; a whole number fits ``float``, and a tuple a list.
    """
    parts = members(hint)
    if len(parts) > 1:
        return any(fits(value, part) for part in parts)
    origin, arguments = get_origin(parts[0]) or parts[0], get_args(parts[0])
    if origin is Any:
        return True
    if origin is Literal:
        return any(value == each for each in arguments)
    if origin in (int, float):
        kinds = int if origin is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and value == value
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(each, arguments[0]) for each in value if arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
        return isinstance(value, origin) and all(
            fits(key, arguments[0]) and fits(each, arguments[1]) for key, each in value.items()
        )
    return isinstance(value, origin) if isinstance(origin, type) else True
