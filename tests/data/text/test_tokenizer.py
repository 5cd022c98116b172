"""No vocabulary loses anything, and what it cannot hold is named."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minrnn_lightning.data.text.tokenizer import bpe_tokenizer, byte_tokenizer, char_tokenizer, encode, token_sizes

SENTENCES = "The quick brown fox\njumps over\n\n  the lazy dog, the dog.\r\n" * 20
BPE = bpe_tokenizer(SENTENCES, 280)
MIXED = bpe_tokenizer("naïve 日本語 🙂🙃 日本語\n" * 20, 280)  # has tokens that are a part of a character, or several


@settings(deadline=None)
@given(st.text())
def test_byte_tokens_are_the_bytes(text):
    tokenizer = byte_tokenizer()
    assert encode(tokenizer, text) == list(text.encode())
    assert tokenizer.decode(encode(tokenizer, text)) == text


@settings(deadline=None)
@given(st.text() | st.text("The quick brown fox\n"))
def test_byte_pairs_lose_nothing(text):
    assert BPE.decode(encode(BPE, text)) == text


@settings(deadline=None)
@given(st.text("\n !$&',-.3:;?" + string.ascii_letters))
def test_characters_lose_nothing(text):
    characters = "\n !$&',-.3:;?" + string.ascii_letters
    tokenizer = char_tokenizer(characters)
    assert encode(tokenizer, text) == [sorted(characters).index(character) for character in text]
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("tokenizer", [char_tokenizer(SENTENCES), byte_tokenizer(), BPE], ids=["char", "byte", "bpe"])
def test_long_lines_and_saved_vocabularies(tokenizer):
    text = SENTENCES.replace("\n", " ") * 100 + "\n" + SENTENCES
    saved = Tokenizer.from_str(tokenizer.to_str())
    assert saved.get_vocab() == tokenizer.get_vocab()
    assert saved.decode(encode(saved, text)) == text
    assert encode(saved, text) == encode(tokenizer, text)


def test_byte_pairs_are_learned():
    assert BPE.get_vocab_size() == 280
    assert len(encode(BPE, SENTENCES)) < len(SENTENCES) / 2
    assert bpe_tokenizer(SENTENCES, 280).to_str() == BPE.to_str()


def test_unknown_characters_are_named():
    with pytest.raises(ValueError, match=r"outside the vocabulary: '\\t' 'é'; leave"):
        encode(char_tokenizer("abc \n"), "a é\tb é")
    with pytest.raises(ValueError, match=r"'h' 'i' 'j' and 16 more; leave"):
        encode(char_tokenizer(""), string.ascii_lowercase)


@settings(deadline=None)
@given(st.text() | st.text("The né日🙂\r\n"))
def test_sizes_of_tokens_add_up_to_the_text(text):
    for tokenizer in (char_tokenizer(text), byte_tokenizer(), BPE, MIXED):
        saved = Tokenizer.from_str(tokenizer.to_str())
        characters, sizes = token_sizes(saved)
        assert characters.dtype == sizes.dtype == torch.int64
        assert len(characters) == len(sizes) == saved.get_vocab_size()
        numbers = encode(saved, text)
        assert (characters[numbers].sum(), sizes[numbers].sum()) == (len(text), len(text.encode()))


def test_sizes_of_single_tokens():
    characters, sizes = token_sizes(char_tokenizer("aé日🙂"))
    assert (characters.tolist(), sizes.tolist()) == ([1, 1, 1, 1], [1, 2, 3, 4])
    characters, sizes = token_sizes(byte_tokenizer())
    assert sizes.tolist() == [1] * 256
    assert characters.tolist() == [int(not 128 <= byte < 192) for byte in range(256)]


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_sizes_of_added_tokens(kind):
    """They are kept as text, also beside byte-level tokens."""
    tokenizer = byte_tokenizer() if kind == "byte" else char_tokenizer(string.ascii_letters)
    added = ["  ", "<\uff5cend\u2581\uff5c>", "é日"]
    tokenizer.add_tokens(added[:1])
    tokenizer.add_special_tokens(added[1:])
    saved = Tokenizer.from_str(tokenizer.to_str())
    characters, sizes = token_sizes(saved)
    numbers = [saved.token_to_id(token) for token in added]
    assert characters[numbers].tolist() == [len(token) for token in added]
    assert sizes[numbers].tolist() == [len(token.encode()) for token in added]
    text = "The né日  lazy"
    if kind == "byte":
        assert sizes[saved.encode(text).ids].sum() == len(text.encode())
