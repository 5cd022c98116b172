"""The ``minrnn`` command: training through LightningCLI, plain functions for the rest, one sentence for bad input."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from minrnn_lightning import __version__

USAGE = """usage: minrnn <command> [options]

  fit        train a recipe: minrnn fit --config shakespeare
  validate   validation loss of a checkpoint: minrnn validate --config shakespeare --ckpt_path last.ckpt
  test       the same on the test data
  predict    the predictions of a task
  generate   continue a text: minrnn generate --checkpoint last.ckpt --prompt "ROMEO:"
  recipes    list the recipes that come with the package

minrnn <command> --help shows the options of a command, minrnn --version the version.
"""


def main(args: list[str] | None = None) -> None:
    """Run one command and exit with 1 or 2 and a sentence if the input is at fault.

    Args:
        args: the words after ``minrnn``; those of the shell when not given.
    """
    try:
        _run(list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits with 1
            sys.exit(130)
        raise
    except BrokenPipeError:  # the reader of our output has gone, like `| head`
        sys.stdout = None  # type: ignore[assignment]
        sys.exit(141)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _fail(sentence, 2 if isinstance(error, ArgumentError) else 1)


def _run(words: list[str]) -> None:
    match words:
        case [] | ["-h" | "--help", *_]:
            print(USAGE, end="")
        case ["--version", *_]:
            print(f"minrnn {__version__}")
        case ["fit" | "validate" | "test" | "predict", *_]:
            words = find_recipes(words)
            from minrnn_lightning.lightning_cli import MinRNNCLI

            MinRNNCLI(words)
        case ["generate", *rest]:
            _call(generate, rest)
        case ["recipes", *rest]:
            _call(list_recipes, rest)
        case [word, *_]:
            _fail(f"{word!r} is not a command; the first word is one of fit, validate, test, predict, generate, recipes", 2)


def _call(function: Callable[..., None], words: list[str]) -> None:
    """Call ``function`` with the options in ``words``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"minrnn {words}", exit_on_error=False)
    parser.add_function_arguments(function, as_positional=False)
    function(**parser.parse_args(words).as_dict())


# Recipes


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or beside the package in its source tree."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def find_recipes(words: list[str]) -> list[str]:
    """Replace the name of a packaged recipe after ``--config`` by its path, where there is no such file.

    Raises:
        FileNotFoundError: there is neither such a file nor such a recipe.
    """
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config") and equals:
            found.append(f"{option}={_recipe(value)}")
        elif found and found[-1] in ("-c", "--config"):
            found.append(_recipe(word))
        else:
            found.append(word)
    return found


def _recipe(name: str) -> str:
    packaged = recipes_folder() / Path(name).with_suffix(".yaml")
    if Path(name).is_file() or not packaged.is_file():
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name} is neither a file nor a packaged recipe; `minrnn recipes` lists the recipes")
        return name
    return str(packaged)


def list_recipes() -> None:
    """List the packaged recipes; give a name to ``--config``."""
    folder = recipes_folder()
    for path in sorted(folder.rglob("*.yaml")):
        with path.open(encoding="utf-8") as lines:
            print(f"{path.relative_to(folder).with_suffix('').as_posix():16} {lines.readline().lstrip('# ').rstrip()}")
