"""ListOps of the Long Range Arena: the value of a long nested expression, generated or read from official files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info

from minrnn_lightning.data.long_range_arena.module import Example, LabelledDataModule, Split
from minrnn_lightning.data.long_range_arena.tsv import file_keys, read_tsv
from minrnn_lightning.errors import InputError
from minrnn_lightning.signals import start_worker

SYMBOLS = [*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]  # a token is the index of its symbol
MIN, MAX, MED, SM, END = range(10, 15)
SYMBOL_PROBABILITY = 0.25  # of an operator, where depth allows one
CHUNK = 500  # expressions that share a seed
TRIES = 200_000  # for one expression of the requested length
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"


def median(values: Sequence[int]) -> int:
    """The median; of an even number of values the mean of the middle two, rounded down."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


OPERATORS: dict[int, Callable[[Sequence[int]], int]] = {
    MIN: min,
    MAX: max,
    MED: median,
    SM: lambda values: sum(values) % 10,
}


class _TooLongError(Exception):
    """The expression has too many tokens."""


def grow(draw: random.Random, tokens: bytearray, depth: int, max_arguments: int, length: int) -> int:
    """Append a random expression to ``tokens`` and return its value; ``depth`` is how deep it may still nest."""
    if depth == 1 or draw.random() > SYMBOL_PROBABILITY:
        value = draw.randrange(10)
        tokens.append(value)
    else:
        operator = draw.randrange(MIN, END)
        tokens.append(operator)
        arguments = draw.randint(2, max_arguments)
        values = [grow(draw, tokens, depth - 1, max_arguments, length) for _ in range(arguments)]
        tokens.append(END)
        value = OPERATORS[operator](values)
    if len(tokens) >= length:
        raise _TooLongError
    return value


def expressions(
    chunk: int, count: int, seed: int, shortest: int, length: int, max_depth: int, max_arguments: int
) -> list[Example]:
    """A chunk of random expressions of more than ``shortest`` and less than ``length`` tokens, with their values.

    Raises:
        InputError: Such expressions are too rare.
    """
    draw = random.Random(f"ListOps {seed} {chunk}")
    found: list[Example] = []
    tries = 0
    while len(found) < count:
        tokens = bytearray()
        tries += 1
        try:
            value = grow(draw, tokens, max_depth, max_arguments, length)
        except _TooLongError:
            continue
        if len(tokens) > shortest:
            found.append((value, [bytes(tokens)]))
        elif tries > TRIES * (len(found) + 1):
            raise InputError(
                f"Hardly any expression has more than {shortest} and less than {length} tokens; widen the range "
                "between shortest and length, or raise max_depth or max_arguments"
            )
    return found


class ListOpsDataModule(LabelledDataModule):
    """ListOps: minimum, maximum, median and sum modulo 10 of lists within lists; the value is one of ten classes.

    The expressions are generated with the official parameters and a seed, as many as in the official files, without
    duplicates; the official files themselves cannot be generated again. Parentheses are left out: 15 symbols. A token
    is a digit, 10 to 13 ``[MIN [MAX [MED [SM``, 14 the bracket that closes them.

    The baseline depends on the outermost operator only and is well above chance: 36.5 % with the official parameters.

    Args:
        batch_size: Examples in a batch, per process.
        length: Every expression has fewer tokens than this.
        shortest: Every generated expression has more tokens than this.
        sizes: Expressions for training, validation and test.
        max_depth: How deep lists nest, the digits included.
        max_arguments: Most entries of a list.
        seed: Seed of the expressions, independent of the training seed.
        path: Folder of the official ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv`` to read instead.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is out of range, no expression has such a length, or a line of a file is damaged.
        FileNotFoundError: An official file is missing.

    Source: Nangia & Bowman 2018, https://arxiv.org/abs/1804.06028, in the version of Tay et al. 2021,
    https://arxiv.org/abs/2011.04006; https://github.com/google-research/long-range-arena.
    """

    input_size = len(SYMBOLS)
    output_size = 10

    def __init__(
        self,
        batch_size: int = 32,
        length: int = 2000,
        shortest: int = 500,
        sizes: tuple[int, int, int] = (96_000, 2_000, 2_000),
        max_depth: int = 10,
        max_arguments: int = 10,
        seed: int = 0,
        path: str | None = None,
        num_workers: int = 0,
        data_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        if not 0 <= shortest < length - 1:
            raise InputError(
                f"shortest must be at least 0 and below length - 1, as expressions have more than shortest and less "
                f"than length tokens; got shortest {shortest} and length {length}"
            )
        if len(sizes) != 3 or min(sizes) < 1:
            raise InputError(f"sizes must be three, each at least 1, got {list(sizes)}")
        if max_depth < 2 or max_arguments < 2:
            raise InputError(f"max_depth and max_arguments must be at least 2, got {max_depth} and {max_arguments}")
        self.shortest, self.sizes, self.seed = shortest, tuple(sizes), seed
        self.max_depth, self.max_arguments = max_depth, max_arguments
        self.path = path

    def source(self) -> list[Any]:
        """The parameters, or the official files."""
        if self.path is None:
            return [self.length, self.shortest, self.sizes, self.max_depth, self.max_arguments, self.seed]
        folder = Path(self.path).expanduser()
        advice = f"unpack {URL} and give its folder listops-1000 as path, or leave path out to make the expressions"
        return [self.length, *file_keys((folder / name for name in FILES.values()), advice)]

    def examples(self) -> dict[str, Iterable[Example]]:
        """The expressions of the three splits."""
        if self.path is not None:
            folder = Path(self.path).expanduser()
            return {split: self.read(folder / name) for split, name in FILES.items()}
        made = self.make(sum(self.sizes))
        first, second = self.sizes[0], self.sizes[0] + self.sizes[1]
        return {"train": made[:first], "validation": made[first:second], "test": made[second:]}

    def make(self, count: int) -> list[Example]:
        """Different expressions, generated by one process per thread of PyTorch, whose number does not affect them."""
        chunks = -(-count // CHUNK)
        parameters = (self.seed, self.shortest, self.length, self.max_depth, self.max_arguments)
        make = partial(_chunk, parameters=parameters)
        found: dict[bytes, Example] = {}
        first = 0
        with ProcessPoolExecutor(torch.get_num_threads(), initializer=start_worker) as pool:
            if chunks > 4:
                rank_zero_info(f"Making {count:,} ListOps expressions, once; they will be kept in {self.folder}")
            while len(found) < count:
                before = len(found)
                for examples in (pool.map if chunks > 4 else map)(make, range(first, first + chunks)):
                    found.update((example[1][0], example) for example in examples if example[1][0] not in found)
                if len(found) == before:
                    raise InputError(
                        f"There are hardly {count} different expressions of such a length; lower sizes or widen the "
                        "range between shortest and length"
                    )
                first, chunks = first + chunks, 1
        return list(found.values())[:count]

    def read(self, file: Path) -> Iterator[Example]:
        """The expressions of an official file.

        Raises:
            InputError: A line is damaged or has too many tokens; the message names the line.
        """
        number = {symbol: token for token, symbol in enumerate(SYMBOLS)}
        for location, (source, target) in read_tsv(file, columns=2, header=True):
            symbols = source.replace("(", " ").replace(")", " ").split()
            unknown = next((symbol for symbol in symbols if symbol not in number), None)
            if unknown is not None or target not in number or not target.isdigit():
                wrong = f"the target {target!r}" if unknown is None else f"the symbol {unknown!r}"
                raise InputError(f"{location} is not ListOps because of {wrong}; unpack the file again")
            tokens = bytes(number[symbol] for symbol in symbols)
            if not tokens or tokens.count(END) != sum(tokens.count(operator) for operator in OPERATORS):
                raise InputError(f"{location} is cut short: its brackets do not match; unpack the file again")
            if len(tokens) >= self.length:
                raise InputError(f"{location} has {len(tokens)} tokens; raise length above that, it is {self.length}")
            yield int(target), [tokens]

    def clues(self, split: Split) -> npt.NDArray[np.uint8]:
        """The outermost operator: the first token of each expression."""
        clues: npt.NDArray[np.uint8] = split.tokens[np.concatenate([[0], split.ends[:-1]])]
        return clues


def _chunk(chunk: int, parameters: tuple[int, int, int, int, int]) -> list[Example]:
    seed, shortest, length, max_depth, max_arguments = parameters
    return expressions(chunk, CHUNK, seed, shortest, length, max_depth, max_arguments)
