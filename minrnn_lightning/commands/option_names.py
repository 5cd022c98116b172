"""Names and types of the options of every command, from their parsers."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, getmro, signature
from typing import Any

from minrnn_lightning.annotations import type_hints

Options = dict[str, Any]  # type of the value, by name without dashes; None where the parser says none


def function_options(function: Callable[..., object]) -> Options:
    """Parameters of a function that is a command."""
    hints = type_hints(function)
    return {name: hints.get(name) for name in signature(function).parameters}


def parser_options(parser: ArgumentParser) -> Options:
    """Options of a parser, without those that print something and end."""
    return {
        action.option_strings[-1].rstrip("+").lstrip("-"): getattr(action, "_typehint", action.type)
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and action.help != SUPPRESS and not action.dest.endswith("help")
    }


def class_options(owner: type) -> Options:
    """Parameters of a class and of those of its bases that it passes on."""
    hints = type_hints(owner)
    names: dict[str, None] = {}
    for base in getmro(owner):
        parameters = signature(base).parameters
        names |= dict.fromkeys(
            name for name, each in parameters.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        )
        if not any(each.kind == Parameter.VAR_KEYWORD for each in parameters.values()):
            break
    return {name: hints.get(name) for name in names}


def options_of(command: str) -> Options:
    """Options of a command, by its name in ``commands.main``."""
    from minrnn_lightning.commands import main

    if command == "completion":
        return {}
    if command in main.FUNCTIONS:
        module, _, function = main.FUNCTIONS[command].rpartition(".")
        return function_options(getattr(import_module(f"minrnn_lightning.commands.{module}"), function))
    if command in main.TRAINER:
        from minrnn_lightning.commands.fit import fit_parser

        return parser_options(fit_parser(command))
    made_by = import_module(f"minrnn_lightning.commands.{command.replace(' ', '.')}")
    return parser_options(made_by.make_parser())
