"""The three vocabularies: characters, bytes and byte pairs, each a lossless ``tokenizers.Tokenizer``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from minrnn_lightning.errors import InputError

Starts = npt.NDArray[np.int64]


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """One token for each of the characters, numbered in sorted order."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(characters)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token for each byte of the UTF-8 text; the token's number is the byte."""
    vocabulary = {character: byte for byte, character in enumerate(_BYTES)}
    return _byte_level(models.BPE(vocab=vocabulary, merges=[]))


def bpe_tokenizer(text: str | Iterable[str], vocab_size: int) -> Tokenizer:
    """At most ``vocab_size`` byte-pair tokens learned from a text or its blocks, including the 256 bytes."""
    tokenizer = _byte_level(models.BPE(), use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=_BYTES, show_progress=False)
    blocks = [text] if isinstance(text, str) else text
    marked = ((block, np.empty(0, np.int64)) for block in blocks)
    tokenizer.train_from_iterator((list(_pieces(block)) for block, _ in end_between_pieces(marked)), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of the text's tokens; ``tokenizer.decode`` gives the text back.

    Raises:
        InputError: Characters are outside the vocabulary; the message names them.
    """
    check_known(tokenizer, text)
    return [token for piece in _pieces(text) for token in tokenizer.encode(piece).ids]


class BlockEncoder:
    """Tokens of the blocks of a text: those that ``encode`` gives for each of its documents, in arrays.

    Args:
        tokenizer: The vocabulary.
        kind: Which of the three it is.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self.tokenizer, self.kind = tokenizer, kind
        self.dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
        if kind == "char":
            self.numbers = np.full(sys.maxunicode + 1, -1, np.int32)
            for character, number in tokenizer.get_vocab().items():
                self.numbers[ord(character)] = number

    def encode(self, text: str, starts: Starts) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Tokens of a block that begins where a token can, and whether a document starts with each.

        Args:
            text: The block; with bytes, each is a character.
            starts: Positions of the characters with which a document starts.

        Returns:
            Two arrays (tokens,).

        Raises:
            InputError: Characters are outside the vocabulary.
        """
        if self.kind == "bpe":
            return self._byte_pairs(text, starts)
        borders = np.zeros(len(text), np.bool_)
        borders[starts] = True
        if self.kind == "byte":
            return np.frombuffer(text.encode("latin-1"), np.uint8), borders
        points = code_points(text)
        numbers = self.numbers[points]
        if numbers.min(initial=0) < 0:
            _refuse_unknown(map(chr, np.unique(points[numbers < 0]).tolist()))
        return numbers.astype(self.dtype), borders

    def _byte_pairs(self, text: str, starts: Starts) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """The pieces of each document by themselves, on all cores."""
        begins = starts.tolist()
        is_continued = begins[:1] != [0]  # by the block before
        pieces, first_pieces = list[str](), list[int]()
        for first, end in pairwise([*[0] * is_continued, *begins, len(text)]):
            first_pieces.append(len(pieces))
            pieces += _pieces(text[first:end])
        arrays = [np.empty(0, self.dtype)]
        counts = [0]
        for batch in range(0, len(pieces), _BATCH):
            found = [each.ids for each in self.tokenizer.encode_batch_fast(pieces[batch : batch + _BATCH])]
            counts += map(len, found)
            arrays.append(np.fromiter(chain.from_iterable(found), self.dtype))
        tokens = np.concatenate(arrays)
        borders = np.zeros(len(tokens), np.bool_)
        borders[np.cumsum(counts)[first_pieces[is_continued:]]] = True
        return tokens, borders


def end_between_pieces(blocks: Iterable[tuple[str, Starts]]) -> Iterator[tuple[str, Starts]]:
    """The same text and starts of documents in blocks none of which ends within a piece."""
    rest, waiting = "", np.empty(0, np.int64)
    for block, marks in blocks:
        text, starts = rest + block, np.append(waiting, marks + len(rest))
        end = max([text.rfind("\n") + 1, *starts[-1:].tolist()])
        end += (len(text) - end) // _LONGEST * _LONGEST
        if end:
            yield text[:end], starts[starts < end]
        rest, waiting = text[end:], starts[starts >= end] - end
    if rest:
        yield rest, waiting


def code_points(text: str) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The code point of each character, unsigned integers (characters,)."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def characters_of(blocks: Iterable[str]) -> set[str]:
    """The different characters of a text."""
    seen = np.zeros(sys.maxunicode + 1, np.bool_)
    for block in blocks:
        seen[code_points(block)] = True
    return set(map(chr, np.flatnonzero(seen).tolist()))


def check_known(tokenizer: Tokenizer, characters: Iterable[str]) -> None:
    """Refuse characters, such as those of a text, that have no token.

    Raises:
        InputError: Characters are outside the vocabulary; the message names them.
    """
    _refuse_unknown(character for character in set(characters) if not tokenizer.encode(character).ids)


def _refuse_unknown(characters: Iterable[str]) -> None:
    """Refuse characters, if there are any.

    Raises:
        InputError: There are.
    """
    unknown = sorted(characters)
    if unknown:
        named = " ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if unknown[10:] else "")
        raise InputError(f"The text has characters outside the vocabulary: {named}; leave them out or replace them")


def token_sizes(tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """How many characters begin in each token of the vocabulary, and how many bytes of UTF-8 it holds.

    A character may be spread over several tokens; it counts where it begins, so that the sums over a text are its
    characters and its bytes.

    Returns:
        Characters and bytes, both int64 (tokens,).
    """
    contents = token_contents(tokenizer)
    characters = torch.tensor([count_characters(token) for token in contents], dtype=torch.int64)
    return characters, torch.tensor([len(token) for token in contents], dtype=torch.int64)


def token_contents(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of UTF-8 that each token of the vocabulary stands for."""
    contents = [b""] * tokenizer.get_vocab_size()
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    numbers = {character: byte for byte, character in enumerate(_BYTES)}
    for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
        contents[index] = bytes(map(numbers.__getitem__, token)) if byte_level else token.encode()
    for index, added in tokenizer.get_added_tokens_decoder().items():  # as text, in every vocabulary
        contents[index] = added.content.encode()
    return contents


def count_characters(text: bytes) -> int:
    """How many characters begin in bytes of UTF-8, all of which but 0x80 to 0xBF begin one."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) & 0xC0 != 0x80))


def _pieces(text: str) -> Iterator[str]:
    """The lines of a text, very long ones cut: a prompt is then tokenised as the training text was."""
    return (match.group() for match in _PIECE.finditer(text))


def _byte_level(model: models.Model, use_regex: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable characters that stand for the 256 bytes in byte-level vocabularies, the convention of GPT-2."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


_BYTES = _byte_characters()
_LONGEST = 1 << 16  # characters of a piece
_PIECE = re.compile(rf"[^\n]{{0,{_LONGEST - 1}}}\n|[^\n]{{1,{_LONGEST}}}")
_BATCH = 2000  # pieces that are tokenised together
