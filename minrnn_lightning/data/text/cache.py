"""Tokenising a text of any size: block by block, with blocks that are kept when it is interrupted."""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from minrnn_lightning.data.download import atomic_file
from minrnn_lightning.data.text.documents import MarkedBlock
from minrnn_lightning.data.text.sources import BLOCK
from minrnn_lightning.data.text.tokenizer import BlockEncoder
from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import peak_memory
from minrnn_lightning.signals import start_worker

LONG = 8  # blocks from which on the progress of a preparation is shown


class FinishedBlocks:
    """A folder of tokenised blocks, which a run that was interrupted leaves to the next one.

    A file appears in it under its name once it is complete, and its content depends on text and vocabulary alone, so
    that several processes can write to the folder at once.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the folder when the work in this context is interrupted, and remove it otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except InputError:  # what is in the folder belongs to a text that cannot be used
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except BaseException:
            with suppress(OSError):
                self.folder.rmdir()  # possible only if it is empty
            raise
        shutil.rmtree(self.folder, ignore_errors=True)

    def tokenizer(self, learn: Callable[[], Tokenizer]) -> Tokenizer:
        """The vocabulary, learned unless it is there."""
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            tokenizer = learn()
            with atomic_file(file) as target:
                target.write(tokenizer.to_str().encode())
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))

    def encode(
        self, split: str, blocks: Iterable[MarkedBlock], encoder: BlockEncoder, with_borders: bool, workers: int = 0
    ) -> None:
        """Tokenise the blocks of a split that are not there.

        Args:
            split: Name of the split.
            blocks: Its text.
            encoder: The vocabulary.
            with_borders: Whether to save where documents start.
            workers: Processes that tokenise a block each; 0 tokenises them in this process.
        """
        missing = (
            (self._file(split, number), block, self._file(f"borders-{split}", number) if with_borders else None)
            for number, block in enumerate(blocks)
            if not self._file(split, number).is_file()
        )
        if not workers:
            for work in missing:
                _encode(encoder, *work)
            return
        vocabulary = encoder.tokenizer.to_str(), encoder.kind
        with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=vocabulary) as pool:
            running = deque[Future[None]]()
            for work in missing:
                running.append(pool.submit(_encode_in_worker, *work))
                if len(running) > workers:  # no more blocks in memory than that
                    running.popleft().result()
            for block in running:
                block.result()

    def join(self, split: str, file: Path, dtype: npt.DTypeLike) -> None:
        """Save the arrays of a split as one, (tokens,)."""
        files = [self._file(split, number) for number in range(len(list(self.folder.glob(f"{split}-*.npy"))))]
        length = sum(len(np.load(part, mmap_mode="r")) for part in files)
        file.parent.mkdir(exist_ok=True)
        with file.open("wb") as target:
            form = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(target, form)
            for part in files:
                target.write(np.load(part).data)

    def _file(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:06}.npy"


def _encode(encoder: BlockEncoder, file: Path, block: MarkedBlock, borders_file: Path | None) -> None:
    """Save the tokens of a block, and where documents start in it if there is a file for that."""
    tokens, borders = encoder.encode(*block)
    if borders_file is not None:
        _save(borders_file, borders)
    _save(file, tokens)  # last: it says that the block is finished


_worker: BlockEncoder  # in the processes that tokenise


def _start_worker(vocabulary: str, kind: str) -> None:
    """Prepare a process that tokenises."""
    global _worker
    start_worker()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are as many as the cores that shall be used
    _worker = BlockEncoder(Tokenizer.from_str(vocabulary), kind)


def _encode_in_worker(file: Path, block: MarkedBlock, borders_file: Path | None) -> None:
    _encode(_worker, file, block, borders_file)


def _save(file: Path, array: npt.NDArray[Any]) -> None:
    with atomic_file(file) as target:
        np.save(target, array)


def with_progress(blocks: Iterable[str], length: int, description: str) -> Iterable[str]:
    """The blocks of a text, with a progress bar on stderr where there are many."""
    if length < LONG * BLOCK:
        return blocks
    return track(blocks, description, -(-length // BLOCK), console=Console(stderr=True))


def print_cost(length: int, seconds: float) -> None:
    """Print what the preparation of a long text took, on stderr.

    Args:
        length: Characters of the text, or bytes.
        seconds: Time of the preparation.
    """
    if length >= LONG * BLOCK:
        peak = peak_memory()
        memory = "" if peak is None else f", peak memory of the process {peak:,.0f} MB"
        speed = f"{length / seconds / 1e6:.1f} million a second"
        print(f"Prepared {length:,} characters in {seconds:,.0f} s, {speed}{memory}", file=sys.stderr)
