"""Pages of the reference: the public names by subject, and the help of every command."""

from __future__ import annotations

import contextlib
import io
import os
import pkgutil
from importlib import import_module

import minrnn_lightning
from minrnn_lightning.commands.main import COMMANDS, main

SUBJECTS = {  # title and first sentence of each page, by the module whose names it has
    "nn": ("Layers and backbone", "Layers in place of `nn.GRU` and `nn.LSTM`, and stacks of residual blocks."),
    "nn.mixers": (
        "Mixers",
        "What mixes the steps of a sequence in a block: `Backbone(mixer=NAME)`, `--model.mixer NAME`.",
    ),
    "ops": ("Scan", "The recurrence as an operator of PyTorch."),
    "tasks": ("Tasks", "Lightning modules: a model with its loss, metrics, optimizer and schedule."),
    "data": ("Data modules", "Lightning data modules: text, synthetic tasks, Long Range Arena, recorded episodes."),
    "batches": ("Batches", "What data modules hand to tasks: named tuples, so that a task takes plain tuples too."),
    "rl": ("Online reinforcement learning", "Rollouts for `PPOTask`."),
    "callbacks": ("Callbacks", "Callbacks of Lightning, which the command adds or a recipe names."),
    "export": ("Export", "Files that run without this package: [how to](../export.md)."),
}
MODULES = {  # modules without a list of public names whose functions and classes the pages use
    "nn": ["minrnn_lightning.nn.functional"],
    "batches": ["minrnn_lightning.batches"],
    "tasks": ["minrnn_lightning.generate.generate"],
    "export": ["minrnn_lightning.export.quantize"],
    "nn.mixers": ["minrnn_lightning.testing.check_mixer"],
    "rl": [
        "minrnn_lightning.integrations.torchrl.BackboneModule",
        "minrnn_lightning.integrations.sb3.BackbonePolicy",
        "minrnn_lightning.integrations.rsl_rl.BackboneModel",
        "minrnn_lightning.integrations.pufferlib.load_policy",
    ],
}
SAME_AS_FIT = {"validate", "test", "predict"}


def public_names() -> dict[str, dict[str, object]]:
    """The objects in ``__all__`` of every package by name, each under the first package that has it."""
    modules = ["minrnn_lightning"]
    modules += [m.name for m in pkgutil.walk_packages(minrnn_lightning.__path__, "minrnn_lightning.") if m.ispkg]
    found: dict[str, dict[str, object]] = {}
    known: list[object] = []
    for module in map(import_module, modules):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not any(value is other for other in known):
                known.append(value)
                found.setdefault(module.__name__, {})[name] = value
    return found


def subject(package: str, value: object) -> str:
    """The page of a public name: that of the longest prefix of its module, of a constant of the package it is in."""
    module = str(getattr(value, "__module__", ""))
    module = module if module.startswith("minrnn_lightning") else package
    inside = module.removeprefix("minrnn_lightning").lstrip(".")
    return max((each for each in SUBJECTS if f"{inside}.".startswith(f"{each}.")), key=len)


def reference_pages() -> dict[str, str]:
    """Markdown by file name; mkdocstrings reads signatures and docstrings from the source."""
    names: dict[str, list[str]] = {each: [] for each in SUBJECTS}
    for package, values in public_names().items():
        for name, value in values.items():
            names[subject(package, value)].append(f"{package}.{name}")
    pages = {}
    for each, (title, sentence) in SUBJECTS.items():
        listed = "\n".join(entry(name) for name in [*names[each], *MODULES.get(each, ())])
        pages[f"{each}.md"] = f"# {title}\n\n{sentence}\n\n{listed}"
    return pages | {"commands.md": commands_page()}


def entry(name: str) -> str:
    """The directive of mkdocstrings for a name; the layers have the methods of their base, which is not public."""
    inherited = "    options:\n      inherited_members: [forward, step, initial_state]\n" if ".Min" in name else ""
    return f"::: {name}\n{inherited}"


def help_of(*args: str) -> str:
    """What a command prints for ``--help``."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*args, "--help"])
    return out.getvalue().strip()


def commands_page() -> str:
    """The help of every command, as it is printed."""
    os.environ["COLUMNS"] = "100"
    commands = [(), *(each.split() for each in COMMANDS if each not in SAME_AS_FIT)]
    texts = [f"## {' '.join(['minrnn', *each])}\n\n```text\n{help_of(*each)}\n```\n" for each in commands]
    return "# Commands\n\nWhat `minrnn <command> --help` prints.\n\n" + "\n".join(texts)
