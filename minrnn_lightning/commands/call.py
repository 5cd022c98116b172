"""Commands that are plain functions: their parameters are the options."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable
from inspect import signature
from itertools import pairwise

from minrnn_lightning.commands.checks import check_function
from minrnn_lightning.commands.options import explain


def call_function(function: Callable[..., None], name: str, args: list[str]) -> None:
    """Call a function, the command ``name``, with the options in ``args`` as its parameters.

    Raises:
        ArgumentError: An option is unknown or its value has another type.
    """
    from jsonargparse import ArgumentParser

    flags = {f"--{option.name}" for option in signature(function).parameters.values() if option.default is False}
    args = [
        f"{arg}=true" if arg in flags and following.startswith("-") else arg
        for arg, following in pairwise([*args, "--"])
    ]
    parser = ArgumentParser(prog=f"minrnn {name}", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=False)
    try:
        options = parser.parse_args(args).as_dict()
    except ArgumentError as error:
        raise ArgumentError(None, explain(error, {"": function})) from error
    check_function(name, options)
    function(**options)
