"""The three vocabularies: characters, bytes, byte pairs; all of them ``tokenizers.Tokenizer`` that lose nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """One token for each of the characters, numbered in sorted order."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(characters)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token for each byte of the UTF-8 text; the token's number is the byte."""
    tokenizer = Tokenizer(models.BPE(vocab={_printable(byte): byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bpe_tokenizer(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """At most ``vocab_size`` byte-pair tokens learned from the lines, the 256 bytes among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [_printable(byte) for byte in range(256)]
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of the text's tokens; ``tokenizer.decode`` gives the text back.

    The text is read line by line, prompts and training texts alike.

    Raises:
        ValueError: If a character is outside the vocabulary; the message names it.
    """
    unknown = sorted(character for character in set(text) if not tokenizer.encode(character).ids)
    if unknown:
        raise ValueError(
            f"The text has characters outside the vocabulary: {' '.join(map(repr, unknown[:10]))}"
            f"{' and ' + str(len(unknown) - 10) + ' more' if len(unknown) > 10 else ''}; leave them out or replace them."
        )
    return [index for line in text.splitlines(keepends=True) for index in tokenizer.encode(line).ids]


def _printable(byte: int) -> str:
    """The printable character that stands for a byte in byte-level vocabularies (the convention of GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in visible else chr(256 + sum(other not in visible for other in range(byte)))
