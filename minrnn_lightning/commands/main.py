"""The ``minrnn`` command: training through LightningCLI, plain functions for the rest, one sentence for bad input."""

from __future__ import annotations

import codecs
import io
import locale
import os
import re
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import NoReturn

from minrnn_lightning import __version__
from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import keep_freed_memory
from minrnn_lightning.signals import exit_code, stop_on_signals

USAGE = """usage: minrnn <command> [options]

  fit        train a recipe: minrnn fit --config shakespeare
  validate   validation loss of a checkpoint: minrnn validate --config shakespeare --ckpt_path last.ckpt
  test       the same on the test data
  predict    the predictions of a task
  generate   continue a text: minrnn generate --checkpoint last.ckpt --prompt "ROMEO:"
  rollout    let a policy act in its environment: minrnn rollout --checkpoint last.ckpt --target_return 3600
  compare    train a recipe with several mixers and seeds: minrnn compare --config shakespeare_small
             --mixers mingru,gru,mingru+attention --seeds 0,1,2 --output FOLDER
  collect    train a small teacher in an environment and save its episodes: minrnn collect --env Hopper-v5
  recipes    list the recipes that come with the package
  benchmark  measure beside baselines, with --output FOLDER as JSON, CSV and plots too: minrnn benchmark layer
             layer     time and memory of a layer against the length
             scan      the scans alone, beside copying the bytes that they move
             generate  time of a step and size of the state against the length of the context
             policy    steps of an environment with policies that act in it
             accuracy  the error of the scans against the length
             train     a recipe's training step: minrnn benchmark train --config shakespeare

minrnn <command> --help shows the options of a command, minrnn --version the version.
"""


def main(args: list[str] | None = None) -> None:
    """Run one command and exit with 1 or 2 and a sentence if the input is at fault.

    Args:
        args: the words after ``minrnn``; those of the shell when not given.
    """
    if args is None:  # not where a test or a notebook calls
        _use_utf8()
        stop_on_signals()
    try:
        keep_freed_memory()
        _run(list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning exits with 1
            sys.exit(exit_code(end.__context__))
        raise
    except BrokenPipeError:  # the reader of our output has gone, like `| head`
        sys.stdout = None
        sys.exit(141)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _fail(sentence, 2 if isinstance(error, ArgumentError) else 1)


def _use_utf8() -> None:
    """Read and write files in UTF-8 whatever the system's encoding, and replace what the terminal cannot show.

    Recipes, logs and configurations are opened by libraries that ask the system for its encoding; Python's UTF-8 mode,
    which must be chosen before Python starts, answers for all of them. From Python 3.15 on it is the default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return
    encoding = f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:replace"
    environment = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "minrnn_lightning", *sys.argv[1:]]
    if sys.platform == "win32":  # which has no exec that keeps the console
        with suppress(KeyboardInterrupt):  # the other process gets it too
            sys.exit(subprocess.call(command, env=environment))
    os.execve(sys.executable, command, environment)


def _run(words: list[str]) -> None:
    match words:
        case [] | ["-h" | "--help", *_]:
            print(USAGE, end="")
        case ["--version", *_]:
            print(f"minrnn {__version__}")
        case ["fit" | "validate" | "test" | "predict", *_]:
            words = find_recipes(words)
            from minrnn_lightning.commands.fit import MinRNNCLI

            MinRNNCLI(words)
        case ["generate", *rest]:
            _call(generate, "generate", rest)
        case ["rollout", *rest]:
            from minrnn_lightning.commands.rollout import rollout_command

            _call(rollout_command, "rollout", rest)
        case ["compare", *rest]:
            from minrnn_lightning.commands.compare import compare

            find_recipes(rest)  # refuses one that is not there; the runs look for it again
            compare(rest)
        case ["collect", *rest]:
            from minrnn_lightning.commands.collect import collect

            _call(collect, "collect", rest)
        case ["recipes", *rest]:
            _call(recipes, "recipes", rest)
        case ["benchmark", "train", *rest]:
            from minrnn_lightning.commands.benchmark.train import train

            train(find_recipes(rest))
        case ["benchmark", ("layer" | "scan" | "generate" | "policy" | "accuracy") as kind, *rest]:
            function = getattr(import_module(f"minrnn_lightning.commands.benchmark.{kind}"), kind)
            _call(function, f"benchmark {kind}", rest)
        case ["benchmark", *_]:
            _fail("minrnn benchmark is followed by layer, scan, generate, policy, accuracy or train", 2)
        case [word, *_]:
            _fail(
                f"{word!r} is not a command; the first word is one of fit, validate, test, predict, generate, rollout, "
                "compare, collect, recipes, benchmark",
                2,
            )


def _call(function: Callable[..., None], name: str, words: list[str]) -> None:
    """Call a plain function, the command ``name``, with the options in ``words``."""
    from jsonargparse import ArgumentParser

    flags = {f"--{option.name}" for option in signature(function).parameters.values() if option.default is False}
    words = [f"{word}=true" if word in flags else word for word in _join_negative(words)]
    parser = ArgumentParser(prog=f"minrnn {name}", exit_on_error=False)
    parser.add_function_arguments(function, as_positional=False)
    function(**parser.parse_args(words).as_dict())


def _join_negative(words: list[str]) -> list[str]:
    """Join an option with a value such as -100,-200, which argparse would take for another option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"minrnn: {sentence}", file=sys.stderr)
    sys.exit(code)


def _sentence(error: BaseException | None) -> str | None:
    """What to tell the user about an error of theirs; None for an error of the program, which needs its traceback.

    jsonargparse and Lightning wrap errors, so that the sentence may be that of a cause.
    """
    while error:
        if isinstance(error, ArgumentError):
            return _shorten(str(error).removeprefix("argument "))  # which names the option
        if isinstance(error, OSError) and error.strerror:
            return ": ".join(map(str, filter(None, (error.filename2 or error.filename, error.strerror))))
        # by name, because Lightning may not even be imported
        if isinstance(error, (InputError, OSError)) or type(error).__name__ == "MisconfigurationException":
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def _shorten(message: str) -> str:
    """One line of a message of jsonargparse, without the types and nested values that it tried."""
    noise = r"Does not validate|Subtypes:|Errors:|Expected a (path|<class 'NoneType'>)|Given value( type|: \w*[({])|$"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = "; ".join(line.rstrip(".") for line in lines if not re.match(noise, line)).replace(":; ", ": ")
    text = re.sub(r"Problem with given class_path '(?:\w+\.)*(\w+)':", r"\1:", text)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    accepted = r"\1: \2: \3; see `minrnn fit --\1.help=\2`"
    text = re.sub(r"^([\w.]+): (\w+): (Option '[^']*' is not accepted).*", accepted, text)
    text = re.sub(r"^unrecognized arguments: .*", r"\g<0>; see --help", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    return re.sub(r"Expected a <class '(\w+)'>", r"expected \1", text)


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or beside the package in its source tree."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def find_recipes(words: list[str]) -> list[str]:
    """Replace the name of a packaged recipe after ``--config`` by its path, where there is no file of that name.

    Args:
        words: the words of the command line.

    Raises:
        FileNotFoundError: there is neither such a file nor such a recipe.
    """
    found: list[str] = []
    for word in words:
        option, equals, name = word.partition("=")
        if option in ("-c", "--config") and equals:
            found.append(f"{option}={_find_recipe(name)}")
        elif found and found[-1] in ("-c", "--config"):
            found.append(_find_recipe(word))
        else:
            found.append(word)
    return found


def _find_recipe(name: str) -> str:
    packaged = recipes_folder() / Path(name).with_suffix(".yaml")
    if not Path(name).is_file():
        if not packaged.is_file():
            raise FileNotFoundError(f"{name} is neither a file nor a packaged recipe; see `minrnn recipes`")
        return str(packaged)
    return name


def recipes() -> None:
    """List the packaged recipes, whose names `--config` understands, the main one first."""
    folder = recipes_folder()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path.stem != "shakespeare", path))
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    for name, path in zip(names, paths, strict=True):
        with path.open(encoding="utf-8") as lines:
            headline = lines.readline().lstrip("#").strip()
        print(f"{name:{max(map(len, names))}} {headline}")


def generate(
    checkpoint: str,
    prompt: str = "",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    batch: int = 1,
    stats: int = 0,
) -> None:
    """Continue a text with a trained language model; everything needed is in the checkpoint.

    Args:
        checkpoint: a .ckpt file that `minrnn fit` wrote.
        prompt: the text to continue; - reads it from standard input; an empty one starts at the beginning of a line.
        max_new_tokens: how many tokens to make.
        temperature: below 1 more careful, above 1 more daring, 0 always the most probable token.
        top_k: sample among the k most probable tokens only.
        top_p: sample among the most probable tokens that together reach this probability.
        seed: of the random generator, for the same text again.
        batch: how many texts to make at once; one is shown as it is made, several when they are finished.
        stats: print speed and memory to standard error every so many tokens; 0 never.
    """
    for name, size, least in (("batch", batch, 1), ("stats", stats, 0)):
        if size < least:
            raise InputError(f"{name} must be at least {least}, got {size}")
    import torch

    from minrnn_lightning.data.text.tokenizer import encode
    from minrnn_lightning.generate import generate, load_language_task, report_speed, stream_text

    task, tokenizer = load_language_task(checkpoint)
    text = sys.stdin.read() if prompt == "-" else prompt
    start = encode(tokenizer, text) if text else tokenizer.encode("\n").ids or [0]
    random = torch.Generator()
    random.seed() if seed is None else random.manual_seed(seed)
    tokens = generate(
        task,
        torch.tensor([start] * batch),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=random,
    )
    if stats:
        tokens = report_speed(tokens, stats, len(start))
    if batch == 1:
        print(text, end="", flush=True)
        for piece in stream_text(tokenizer, (int(token) for token in tokens)):
            print(piece, end="", flush=True)
        print()
    else:
        for number, row in enumerate(torch.stack(list(tokens), 1).tolist(), 1):
            print(f"--- {number} of {batch} ---\n{text}{''.join(stream_text(tokenizer, row))}")
