"""``minrnn completion``: a script that completes commands, recipes, options and their values in bash or zsh."""

from __future__ import annotations

import shlex
from argparse import ArgumentError
from collections.abc import Iterable
from inspect import isabstract
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from minrnn_lightning.annotations import members
from minrnn_lightning.commands.option_names import class_options, options_of
from minrnn_lightning.commands.recipes import recipes_folder

BASH = """# minrnn in bash: minrnn completion bash > ~/.local/share/bash-completion/completions/minrnn
_minrnn_words() {{  # words to complete, by the command, the option before the cursor and what is typed
    case "$1 $2" in
{cases}
        *) return 1 ;;
    esac
}}

_minrnn() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" command="${{COMP_WORDS[1]}}"
    if [[ $current == = ]]; then  # bash has cut the word at the sign
        current=""
    elif [[ $previous == = ]]; then
        previous="${{COMP_WORDS[COMP_CWORD - 2]}}"
    fi
    if ((COMP_CWORD == 1)); then
        command="" previous=""
    elif [[ $command == benchmark ]]; then
        ((COMP_CWORD == 2)) && previous="" || command="benchmark ${{COMP_WORDS[2]}}"
    fi
    local words
    if words="$(_minrnn_words "$command" "$previous")"; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        [[ $previous == --config || $previous == -c ]] && COMPREPLY+=($(compgen -f -- "$current"))
    elif [[ $current == -* ]] && words="$(_minrnn_words "$command" options)"; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}

complete -o filenames -F _minrnn minrnn
"""

ZSH = """#compdef minrnn
# minrnn in zsh: minrnn completion zsh > "${{fpath[1]}}/_minrnn"
_minrnn_words() {{  # words to complete, by the command, the option before the cursor and what is typed
    case "$1 $2" in
{cases}
        *) return 1 ;;
    esac
}}

_minrnn() {{
    local current="$words[CURRENT]" previous="$words[CURRENT-1]" command="$words[2]" found
    if [[ $current == --*=* ]]; then
        previous="${{current%%=*}}"
        compset -P '*='
    fi
    if ((CURRENT == 2)); then
        command="" previous=""
    elif [[ $command == benchmark ]]; then
        if ((CURRENT == 3)); then previous=""; else command="benchmark $words[3]"; fi
    fi
    if found="$(_minrnn_words "$command" "$previous")"; then
        compadd -- ${{=found}}
        [[ $previous == --config || $previous == -c ]] && _files
    elif [[ $current == -* ]] && found="$(_minrnn_words "$command" options)"; then
        compadd -- ${{=found}}
    else
        _files
    fi
}}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _minrnn "$@"; else compdef _minrnn minrnn; fi
"""


def print_completion(args: list[str]) -> None:
    """Print a completion script; it holds all names, so that completing starts no Python.

    Args:
        args: The shell, bash or zsh.

    Raises:
        ArgumentError: If it is neither.
    """
    if args in (["-h"], ["--help"]):
        print(
            "usage: minrnn completion bash|zsh\n\nPrint a script that completes commands, recipes and options at TAB."
        )
        return
    if args not in (["bash"], ["zsh"]):
        raise ArgumentError(None, f"minrnn completion is followed by bash or zsh, got {' '.join(args)!r}")
    lines = [f"        {pattern}) echo {shlex.quote(' '.join(words))} ;;" for pattern, words in cases()]
    print((BASH if args == ["bash"] else ZSH).format(cases="\n".join(lines)), end="")


def cases() -> list[tuple[str, list[str]]]:
    """Words to complete, by patterns of a command and the option before them, or ``options`` for its options."""
    from minrnn_lightning.commands.main import COMMANDS, TRAINER

    names = list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    benchmarks = [command.split()[1] for command in COMMANDS if " " in command]
    folder = recipes_folder()
    recipes = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    found = [(" ", names), ("benchmark ", benchmarks), ("* --config", recipes), ("* -c", recipes)]
    found.append(("completion completion", ["bash", "zsh"]))
    fit = {**options_of("fit"), **_class_options()}
    for command in COMMANDS:
        options = options_of(command)
        if command in (*TRAINER, "compare", "benchmark train"):
            options |= fit
        values = {f"{command} --{name}": words for name, hint in options.items() if (words := _values(hint))}
        found += values.items()
        found.append((f"{command} options", ["--help", *(f"--{name}" for name in options)]))
    return [(pattern.replace(" ", "\\ "), words) for pattern, words in found]


def _class_options() -> dict[str, Any]:
    """Options of all tasks and data modules that can be used, and the names of these classes."""
    from minrnn_lightning import data, tasks
    from minrnn_lightning.nn import MIXERS

    found: dict[str, Any] = {}
    for key, part in (("model", tasks), ("data", data)):
        named = [getattr(part, name) for name in part.__all__ if name.endswith(("Task", "DataModule"))]
        classes = [each for each in named if not isabstract(each)]
        for each in classes:
            found |= {f"{key}.{name}": hint for name, hint in class_options(each).items()}
        found[key] = Literal[tuple(each.__name__ for each in classes)]
    found["model.mixer"] = Literal[tuple(sorted(MIXERS))]
    return {name: hint for name, hint in found.items() if name not in ("model.input_size", "model.output_size")}


def _values(hint: object) -> list[str]:
    """The values that a type names."""
    values: Iterable[object] = (
        value
        for part in members(hint)
        for value in (get_args(part) if get_origin(part) is Literal else (["true", "false"] if part is bool else []))
    )
    words = [str(value) for value in values]
    return [*words, "null"] if words and NoneType in members(hint) else words
