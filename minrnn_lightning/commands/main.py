"""The ``minrnn`` command: a table of its subcommands, and one sentence for bad input."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from importlib import import_module
from typing import NoReturn

from minrnn_lightning import __version__
from minrnn_lightning.commands.call import call_function
from minrnn_lightning.commands.encoding import use_utf8
from minrnn_lightning.commands.recipes import find_recipes, recipes_folder
from minrnn_lightning.commands.yaml_files import check_arguments, join_negative, option_values
from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import keep_freed_memory
from minrnn_lightning.signals import exit_code, stop_on_signals

__all__ = ["find_recipes", "main", "recipes_folder"]

USAGE = """usage: minrnn <command> [options]

train and evaluate
  recipes    list the recipes and the overlays for hardware, for two CPU cores and as in the paper
  fit        train a recipe: minrnn fit --config shakespeare
  validate   validation loss of a checkpoint: minrnn validate --config shakespeare --ckpt_path last.ckpt
  test       loss and metrics on the test data
  predict    predictions of a task
  compare    train a recipe with several mixers and seeds: minrnn compare --config shakespeare_small
             --mixers mingru,gru,mingru+attention --seeds 0,1,2 --output FOLDER

use a trained model
  generate   continue a text: minrnn generate --checkpoint last.ckpt --prompt "ROMEO:"
  publish    make a folder for the Hugging Face Hub: minrnn publish --checkpoint last.ckpt --output play
  rollout    run a policy in its environment: minrnn rollout --checkpoint last.ckpt --target_return 3600
  export     write a file for onnxruntime, PyTorch or ExecuTorch that runs without this package:
             minrnn export --checkpoint last.ckpt --output model.onnx

make training data
  collect    train a linear policy in an environment and save its episodes: minrnn collect --env Hopper-v5

measure
  benchmark  benchmark against baselines; --output also writes JSON, CSV and plots: minrnn benchmark layer
             layer     time and memory of a layer against the sequence length
             scan      time of the scans alone and of copying the bytes that they move
             generate  time per token and size of the state against the length of the context
             step      time of single steps after a context against the batch size, and of nn.GRU and nn.LSTM
             policy    environment steps per second of policies
             accuracy  rounding errors of the scans against the sequence length
             export    differences, latency and size of files of every format
             chunks    time and memory of long sequences that are computed chunk by chunk
             gpu       checks of the scans on a GPU, then all of these on it, in one JSON and one page
             train     a recipe's training step: minrnn benchmark train --config shakespeare

in the shell
  completion print a script that completes commands, recipes and options at TAB: minrnn completion bash

A recipe is a file of options; `minrnn recipes` lists them, recipes first, then overlays that are given after a recipe:
  for hardware       minrnn fit --config shakespeare --config hardware/bf16
  for two CPU cores  minrnn fit --config mqar --config small/mqar
  as in the paper    minrnn fit --config shakespeare --config paper/shakespeare

minrnn <command> --help shows the options of a command, minrnn --version the version.
"""

TRAINER = ("fit", "validate", "test", "predict")  # run by LightningCLI
FUNCTIONS = {  # commands whose options are the parameters of a function, in ``minrnn_lightning.commands``
    "generate": "generate.generate_command",
    "publish": "publish.publish",
    "rollout": "rollout.rollout_command",
    "export": "export.export_command",
    "collect": "collect.collect",
    "recipes": "recipes.list_recipes",
    "benchmark layer": "benchmark.layer.layer",
    "benchmark scan": "benchmark.scan.scan",
    "benchmark generate": "benchmark.generate.generate",
    "benchmark step": "benchmark.step.step",
    "benchmark policy": "benchmark.policy.policy",
    "benchmark accuracy": "benchmark.accuracy.accuracy",
    "benchmark export": "benchmark.export.export_benchmark",
    "benchmark chunks": "benchmark.chunks.chunks",
    "benchmark gpu": "benchmark.gpu.gpu",
}
FILES = ("checkpoint", "ckpt_path", "init_from", "path", "dataset", "data_dir", "output", "runs", "config")  # options
FILE_ERRORS = (OSError, FileNotFoundError, PermissionError)  # without a name where a disk is full or a folder is gone
VARIABLES = ("MINRNN_IMPORT", "MINRNN_KEEP_MEMORY")  # of the environment
FOLDERS = ("MINRNN_DATA_DIR", "XDG_CACHE_HOME")  # environment variables
COMMANDS = (*TRAINER, "compare", *FUNCTIONS, "benchmark train", "completion")


def main(args: list[str] | None = None) -> None:
    """Run one command; exit with 1 or 2 and a sentence if the input is at fault.

    Args:
        args: Arguments after ``minrnn``; those of the shell when not given.
    """
    if args is None:  # not where a test or a notebook calls
        use_utf8()
        stop_on_signals()
    args = join_negative(sys.argv[1:] if args is None else args)
    try:
        keep_freed_memory()
        _import_trusted()
        check_arguments(args)
        try:
            _run(args)
        finally:
            _flush()
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
        _fail(_with_option(sentence, args), 2 if isinstance(error, ArgumentError) else 1)


def _flush() -> None:
    """Write what is printed and not yet written, as long as an error of it can be told."""
    try:
        if sys.stdout is not None:  # as it is where it is closed
            sys.stdout.flush()
    except OSError:
        sys.stdout = None  # which Python would try again at its end
        raise


def _import_trusted() -> None:
    """Import the modules in ``MINRNN_IMPORT``, whose mixers a checkpoint may then name."""
    for name in filter(None, map(str.strip, os.environ.get("MINRNN_IMPORT", "").split(","))):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(f"MINRNN_IMPORT names {name!r}, and there is no module {error.name}") from error
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"MINRNN_IMPORT names {name!r}, which Python cannot import: {reason}") from error


def _run(args: list[str]) -> None:
    name = " ".join(args[: 2 if args[:1] == ["benchmark"] else 1])
    rest = args[len(name.split()) :]
    if name in ("", "-h", "--help"):
        print(USAGE, end="")
    elif name == "--version":
        print(f"minrnn {__version__}")
    elif name in TRAINER:
        from minrnn_lightning.commands.fit import MinRNNCLI

        MinRNNCLI(find_recipes(args))
    elif name == "compare":
        from minrnn_lightning.commands.compare import compare

        compare(rest)
    elif name == "benchmark train":
        from minrnn_lightning.commands.benchmark.train import train

        train(rest)
    elif name in FUNCTIONS:
        module, _, function = FUNCTIONS[name].rpartition(".")
        call_function(getattr(import_module(f"minrnn_lightning.commands.{module}"), function), name, rest)
    elif name == "completion":
        from minrnn_lightning.commands.completion import print_completion

        print_completion(rest)
    elif args[0] == "benchmark":
        _fail("minrnn benchmark is followed by layer, scan, generate, step, policy, accuracy, export or train", 2)
    else:
        accepted = ", ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))
        _fail(f"{name!r} is not a command; the first argument is one of {accepted}", 2)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"minrnn: {sentence}", file=sys.stderr)
    sys.exit(code)


def _with_option(sentence: str, args: list[str]) -> str:
    """Name the option in front of a sentence that begins with its value, or quotes it and names no option."""
    given = [(option, value) for option, value in option_values(args) if option and value]
    if sentence.partition(" ")[0] in {_last(option) for option, _ in given} | set(VARIABLES):
        return sentence
    given += [(name, os.environ[name]) for name in FOLDERS if os.environ.get(name)]
    for option, value in sorted(given, key=lambda each: _last(each[0]) not in FILES):
        begins = sentence.startswith(value) and sentence[len(value) :][:1] in ("", " ", ":", ",", "/", ".")
        if begins and _last(option) not in sentence:
            return f"{option}: {sentence}"
    if not any(_last(option) in sentence for option, _ in given):
        quoted = (option for option, value in given if repr(value) in sentence)
        return ": ".join([*list(quoted)[:1], sentence])
    return sentence


def _last(option: str) -> str:
    """The name of an option without the parts that it belongs to."""
    return option.rpartition(".")[2].rstrip("+")


def _sentence(error: BaseException | None) -> str | None:
    """What to tell the user about an error of the input; None for an error of the program, which needs its traceback.

    jsonargparse and Lightning wrap errors, so that the sentence may be that of a cause.
    """
    while error:
        if isinstance(error, OSError):
            if type(error) in FILE_ERRORS and error.filename is None and (error.errno or type(error) is OSError):
                return f"a file cannot be read or written: {error.strerror or error}"
            if error.strerror:
                return ": ".join(map(str, filter(None, (error.filename2 or error.filename, error.strerror))))
        # OSError also without a file name: a network or a disk. By name, because Lightning may not even be imported.
        if isinstance(error, (InputError, OSError, ArgumentError)) or (
            type(error).__name__ == "MisconfigurationException"
        ):
            return " ".join(str(error).removeprefix("argument ").split())
        error = error.__cause__
    return None
