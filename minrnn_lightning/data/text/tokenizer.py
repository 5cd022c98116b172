"""The three vocabularies: characters, bytes and byte pairs, each a lossless ``tokenizers.Tokenizer``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from minrnn_lightning.errors import InputError


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


def bpe_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """At most ``vocab_size`` byte-pair tokens learned from the text, including the 256 bytes."""
    tokenizer = _byte_level(models.BPE(), use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=_BYTES, show_progress=False)
    tokenizer.train_from_iterator(_pieces(text), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of the text's tokens; ``tokenizer.decode`` gives the text back.

    Raises:
        InputError: Characters are outside the vocabulary; the message names them.
    """
    return list(tokens(tokenizer, text))


def tokens(tokenizer: Tokenizer, text: str) -> Iterator[int]:
    """As ``encode``, but as an iterator, for texts too long for a list."""
    unknown = sorted(character for character in set(text) if not tokenizer.encode(character).ids)
    if unknown:
        named = " ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if unknown[10:] else "")
        raise InputError(f"The text has characters outside the vocabulary: {named}; leave them out or replace them")
    for piece in _pieces(text):
        yield from tokenizer.encode(piece).ids


def token_sizes(tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """How many characters begin in each token of the vocabulary, and how many bytes of UTF-8 it holds.

    A character may be spread over several tokens; it counts where it begins, so that the sums over a text are its
    characters and its bytes.

    Returns:
        Characters and bytes, both int64 (tokens,).
    """
    contents = [b""] * tokenizer.get_vocab_size()
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    numbers = {character: byte for byte, character in enumerate(_BYTES)}
    for token, index in tokenizer.get_vocab().items():
        contents[index] = bytes(map(numbers.__getitem__, token)) if byte_level else token.encode()
    characters = torch.tensor([count_characters(token) for token in contents], dtype=torch.int64)
    return characters, torch.tensor([len(token) for token in contents], dtype=torch.int64)


def count_characters(text: bytes) -> int:
    """How many characters begin in bytes of UTF-8, all of which but 0x80 to 0xBF begin one."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) & 0xC0 != 0x80))


def _pieces(text: str) -> Iterator[str]:
    """The lines of a text, very long ones cut: a prompt is then tokenised as the training text was."""
    return (match.group() for match in re.finditer(r"[^\n]{0,65535}\n|[^\n]{1,65536}", text))


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
