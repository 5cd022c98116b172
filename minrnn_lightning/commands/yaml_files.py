"""YAML of recipes and of values on the command line, checked before jsonargparse reads it."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from minrnn_lightning.errors import InputError

if TYPE_CHECKING:
    from yaml import Node

MOST_COPIES = 10_000  # values that aliases may add: each is copied, so that a few lines could expand to billions
MOST_BYTES = 1_000_000  # of a recipe: YAML of a hundred times as much takes minutes to read
MOST_DIGITS = 4_300  # of a number: Python reads no more
NEGATIVE = re.compile(r"-(\d|\.|inf|nan)", re.IGNORECASE)
HYPHEN = re.compile(r"-[^-\d\s.]\S*")  # what argparse takes for an option
SUFFIXES = (".yaml", ".yml")
CONFIG = ("c", "config")  # read where the names of packaged recipes are known
TEXT = "prompt"  # the option of any text, of which nothing reads YAML or a file
WRITTEN = ("", "output", "histogram", "video")  # options of files that are written


def check_arguments(args: list[str]) -> None:
    """Refuse arguments that are not UTF-8, YAML that cannot be used in a value, and recipes that cannot be read.

    Raises:
        InputError: An argument or a file is not UTF-8, or its YAML refers to itself, grows beyond bounds by aliases or
            has a key twice.
        ArgumentError: A file is not YAML, or an option of a class or of the Trainer has no value.
    """
    for arg, following in pairwise([*args, "--"]):
        without = arg.startswith("--") and following.startswith("--") and "=" not in arg
        dotted = "." in arg and not arg.endswith(".help")  # of which jsonargparse would name what is before the dot
        if without and (dotted or arg == "--config"):
            raise ArgumentError(None, f"{arg}: expected one argument")
        if arg == f"--{TEXT}" and HYPHEN.fullmatch(following):
            raise ArgumentError(None, f"a prompt that begins with a hyphen needs =, as in {arg}={following}")
    for option, value in option_values(args):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{option or 'an argument'} must be text in UTF-8, got {value!a}") from None
        if option == TEXT:
            continue
        if option not in WRITTEN and _is_file(value):
            _check_readable(option, value)
            if option not in CONFIG and value.endswith(SUFFIXES):
                check_recipe(value)
        if option.endswith(".class_path") and value in ("", "~", "null"):
            raise ArgumentError(None, f"{option} must be the name of a class, got {value!r}")
        if len(value) > MOST_DIGITS or "&" in value or "{" in value:
            _check_yaml(value, option, is_file=False)


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # a name that is too long, for one
        return False


def _check_readable(option: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read: {error.strerror}") from error


def join_negative(args: Iterable[str]) -> list[str]:
    """Join an option with a value such as -100,-200 or -inf, which argparse would take for another option."""
    joined: list[str] = []
    for arg in args:
        if NEGATIVE.match(arg) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def option_values(args: list[str]) -> Iterator[tuple[str, str]]:
    """The option, without dashes, and the value of every argument; arguments without an option have an empty one."""
    option = ""
    for arg in args:
        if arg.startswith("--") or arg == "-c":
            option, equals, value = arg.lstrip("-").partition("=")
            if equals:
                yield option, value
        else:
            yield option, arg
            option = ""


def check_recipe(path: str) -> None:
    """Refuse a file that is not a mapping in YAML and UTF-8.

    Raises:
        InputError: It is too large or not UTF-8, or its YAML cannot be used.
        ArgumentError: It is not YAML.
        OSError: It cannot be read.
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size:,} bytes, and a recipe at most {MOST_BYTES:,}: give a recipe")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): a recipe "
            "is a YAML file in UTF-8"
        ) from error
    _check_yaml(text, path, is_file=True)


def _check_yaml(text: str, source: str, is_file: bool) -> None:
    """Refuse what jsonargparse would not terminate on, or would accept silently; a value may be no YAML at all."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        sizes: dict[int, int] = {}
        copies = 0 if root is None else _size(root, source, sizes, is_file) - len(sizes)
    except yaml.MarkedYAMLError as error:
        if is_file:
            where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
            reason = ", ".join(filter(None, (error.context, error.problem)))
            raise ArgumentError(None, f"{source} is not YAML: {reason}{where}") from error
        return
    except yaml.YAMLError as error:  # of characters
        if is_file:
            raise ArgumentError(None, f"{source} is not YAML: it holds characters that are no text") from error
        return
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply") from error
    if copies > MOST_COPIES:
        raise InputError(f"{source} expands to more than {MOST_COPIES:,} values by its aliases (*name): write fewer")
    if is_file and not isinstance(root, yaml.MappingNode):
        raise ArgumentError(None, f"{source} holds no options: a recipe is a mapping in YAML, such as `model: ...`")


def _has_meaning(node: Node) -> bool:
    """Whether a node has no tag, or one that fits its value."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError):  # which PyYAML lets through
            return False
        return True
    return node.tag in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _size(node: Node, source: str, sizes: dict[int, int], is_file: bool) -> int:
    """The number of nodes below one and itself, where every alias counts as a copy.

    Args:
        node: The node.
        source: Option or file, for the message.
        sizes: Sizes of the nodes so far by ``id``; 0 for those that are not finished.
        is_file: Whether it is of a file, whose tags must be known.

    Raises:
        InputError: A node contains itself, a mapping has a key twice, or a number is too long to be read.
        ArgumentError: A tag is unknown, ``init_args`` is no mapping, or ``class_path`` no name.
    """
    import yaml

    if id(node) in sizes:
        if not sizes[id(node)]:
            raise InputError(f"{source} refers to itself in line {node.start_mark.line + 1}, so that it has no end")
        return sizes[id(node)]
    sizes[id(node)] = 0
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        raise InputError(f"{source} has a number of {len(node.value):,} digits: at most {MOST_DIGITS:,} can be read")
    if is_file and not _has_meaning(node):
        tag, line = node.tag.replace("tag:yaml.org,2002:", "!!"), node.start_mark.line + 1
        raise ArgumentError(None, f"{source} has the tag {tag} in line {line}, which its value cannot have: remove it")
    below: list[Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise InputError(f"{source} has the key {key.value!r} twice, again in line {line}: remove one")
                keys.add(key.value)
                null = value.tag == "tag:yaml.org,2002:null"
                if key.value == "init_args" and not (null or isinstance(value, yaml.MappingNode)):
                    raise ArgumentError(None, f"init_args of {source} must be a mapping such as {{dim: 64}}")
                if key.value == "class_path" and (null or not isinstance(value, yaml.ScalarNode)):
                    raise ArgumentError(None, f"class_path of {source} must be the name of a class")
                below.append(key)
            elif isinstance(key, yaml.ScalarNode):
                if not isinstance(value, yaml.MappingNode | yaml.SequenceNode):
                    raise ArgumentError(None, f"<< in {source} must be followed by a mapping such as *name")
            else:
                line = key.start_mark.line + 1
                raise ArgumentError(None, f"{source} has a key in line {line} that is not the name of an option")
            below.append(value)
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    sizes[id(node)] = 1 + sum(_size(each, source, sizes, is_file) for each in below)
    return sizes[id(node)]
