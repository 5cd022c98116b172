"""A text that is tokenised block by block has the tokens of one that is tokenised at once, also when interrupted."""

import random
import re
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_text import prepared

from minrnn_lightning.data import TextDataModule
from minrnn_lightning.data.text import cache, documents, sources
from minrnn_lightning.data.text import module as module_of_text
from minrnn_lightning.data.text.documents import check_lengths, mark_after
from minrnn_lightning.data.text.tokenizer import BlockEncoder, bpe_tokenizer, char_tokenizer, end_between_pieces
from minrnn_lightning.errors import InputError


def cut(text, borders):
    """The blocks of a text between borders."""
    return [text[a:b] for a, b in pairwise(sorted({0, len(text), *(b for b in borders if b < len(text))}))]


borders = st.lists(st.integers(1, 40), max_size=6)


@settings(deadline=None)
@given(st.text("ab\n", max_size=40), st.text("ab\n", min_size=1, max_size=3), borders)
def test_starts_of_documents(text, separator, borders):
    marked = list(mark_after(separator, cut(text, borders)))
    assert "".join(block for block, _ in marked) == text
    offsets = np.cumsum([0, *(len(block) for block, _ in marked)])
    starts = [start + offset for (_, inside), offset in zip(marked, offsets, strict=False) for start in inside.tolist()]
    expected = [0, *(match.end() for match in re.finditer(re.escape(separator), text))]
    assert starts == [start for start in expected if start < len(text)]


TEXT = "".join(random.Random(0).choices("abcdefgh é日🙂\u0130\u2028\n", [9] * 8 + [9] + [1] * 5 + [2], k=3000))
LONG = TEXT + "no newline and longer than a piece ü" * 4000 + "\nthe end"


def tokens_at_once(tokenizer, text, separator):
    """Tokens and borders by the rule itself: each document, and in it each line of at most 65,536 characters."""
    ends = [match.end() for match in re.finditer(re.escape(separator), text)] if separator else []
    tokens, borders = [], []
    for a, b in pairwise([0, *(end for end in ends if end < len(text)), len(text)]):
        pieces = re.findall(r"[^\n]{0,65535}\n|[^\n]{1,65536}", text[a:b])
        found = [token for piece in pieces for token in tokenizer.encode(piece).ids]
        tokens += found
        borders += [True] + [False] * (len(found) - 1)
    return tokens, borders


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize(
    ("whole", "separator", "block"),
    [(TEXT, None, 277), (LONG, None, 70_001), (LONG, "a\n", 50_003), (TEXT, "\n", 331)],
    ids=["short", "long", "documents", "lines"],
)
def test_tokens(tmp_path, monkeypatch, kind, whole, separator, block):
    for module in (sources, documents, cache):
        monkeypatch.setattr(module, "BLOCK", block)
    (tmp_path / "text.txt").write_text(whole, encoding="utf-8", newline="")
    options = {"documents": separator, "vocab_size": 300, "held_out": 0.3}
    data = prepared(str(tmp_path / "text.txt"), tokenizer=kind, **options)
    text = whole.encode().decode("latin-1") if kind == "byte" else whole
    end = int(0.7 * len(text))
    expected = data.tokenizer
    if kind == "bpe":
        assert expected.to_str() == bpe_tokenizer(whole[:end], 300).to_str()
    elif kind == "char":
        assert expected.get_vocab() == char_tokenizer(whole).get_vocab()
    for split, part in (("train", text[:end]), ("validation", text[end:])):
        if kind == "byte":
            tokens = list(part.encode("latin-1"))
            starts = np.zeros(len(part), np.bool_)
            starts[[0, *(m.end() for m in re.finditer(separator or "$^", part) if m.end() < len(part))]] = True
        else:
            tokens, starts = tokens_at_once(expected, part, separator)
        assert data.splits[split].tolist() == tokens
        if separator:
            assert data.borders[split].tolist() == list(starts)


def test_unknown_characters_are_named():
    with pytest.raises(InputError, match=r"outside the vocabulary: '\\t' 'é'; leave them out"):
        BlockEncoder(char_tokenizer("abc"), "char").encode("aé\tbé", np.array([0]))


def test_blocks_end_between_pieces():
    lines = [("ab", np.array([0])), ("c" * 140_000, np.array([9])), ("\nd", np.array([], int))]
    found = [(len(text), starts.tolist()) for text, starts in end_between_pieces(lines)]
    assert found == [(11 + 2 * 65536, [0, 11]), (140_000 - 2 * 65536 - 9 + 1, []), (1, [])]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "BLOCK", 500)
    (tmp_path / "text.txt").write_text("0123 56789\n" * 500)
    calls, encode = [], BlockEncoder.encode

    def interrupted(self, *args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args[0])
        return encode(self, *args)

    options = {"tokenizer": kind, "vocab_size": 260, "documents": "line"}
    with monkeypatch.context() as patch:
        patch.setattr(BlockEncoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(str(tmp_path / "text.txt"), data_dir=str(tmp_path / "data"), **options)
    kept = list((tmp_path / "data" / "tokens").iterdir())
    assert len(kept) == 1
    assert len(list(kept[0].iterdir())) == 6 + (kind == "bpe")  # tokens and borders of three blocks
    with monkeypatch.context() as patch:
        patch.setattr(BlockEncoder, "encode", lambda self, *args: calls.append(args[0]) or encode(self, *args))
        if kind == "bpe":
            patch.setattr("minrnn_lightning.data.text.module.bpe_tokenizer", lambda *args: pytest.fail("learned again"))
        data = prepared(str(tmp_path / "text.txt"), data_dir=str(tmp_path / "data"), **options)
    texts = [text for text in calls if len(text) > 1]  # but the end of a document
    assert "".join(texts) == "0123 56789\n" * 500
    whole = prepared(str(tmp_path / "text.txt"), data_dir=str(tmp_path / "other"), **options)
    for split in ("train", "validation"):
        assert np.array_equal(data.splits[split], whole.splits[split])
        assert np.array_equal(data.borders[split], whole.borders[split])
    assert [folder.name for folder in (tmp_path / "data" / "tokens").iterdir()] == [data.folder.name]


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("when", [0, 3, 11])
def test_another_process_may_finish_first(tmp_path, monkeypatch, kind, when):
    monkeypatch.setattr(sources, "BLOCK", 500)
    (tmp_path / "text.txt").write_text("0123 56789\n" * 500)
    options = {"tokenizer": kind, "vocab_size": 260, "data_dir": str(tmp_path / "data")}
    calls, save = [], np.save

    def late_save(file, array):
        save(file, array)
        calls.append(file)
        if len(calls) == when + 1:  # the file has no name yet, and the other process removes the folder it is in
            prepared(str(tmp_path / "text.txt"), **options)

    monkeypatch.setattr(cache.np, "save", late_save)
    data = prepared(str(tmp_path / "text.txt"), **options)
    assert len(calls) > when + 1
    assert data.tokenizer.decode(data.splits["train"]) == "0123 56789\n" * 450
    assert [folder.name for folder in (tmp_path / "data" / "tokens").iterdir()] == [data.folder.name]


def test_processes_tokenise_as_one(tmp_path, monkeypatch):
    for module in (sources, documents, cache, module_of_text):
        monkeypatch.setattr(module, "BLOCK", 1000)
    (tmp_path / "text.txt").write_text(TEXT * 5, encoding="utf-8", newline="")
    options = {"tokenizer": "bpe", "vocab_size": 300, "documents": "line"}
    here, encode = [], cache._encode
    monkeypatch.setattr(cache, "_encode", lambda *args: here.append(args[1].name) or encode(*args))
    one, several = (
        prepared(str(tmp_path / "text.txt"), data_dir=str(tmp_path / str(workers)), num_workers=workers, **options)
        for workers in (0, 2)
    )
    trained = [name for name in here if name.startswith("train")]
    assert len(trained) == len(set(trained)) >= cache.LONG  # by the first preparation alone
    for split in ("train", "validation"):
        assert np.array_equal(several.splits[split], one.splits[split])
        assert np.array_equal(several.borders[split], one.borders[split])


def test_a_text_that_is_refused_leaves_nothing(tmp_path):
    (tmp_path / "text.txt").write_text("abc" * 500)
    with pytest.raises(InputError, match="which does not occur in"):
        prepared(str(tmp_path / "text.txt"), data_dir=str(tmp_path / "data"), tokenizer="bpe", documents="line")
    assert list((tmp_path / "data" / "tokens").iterdir()) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_lengths_of_documents(monkeypatch, block):
    monkeypatch.setattr(documents, "BLOCK", block)
    tokens = np.frombuffer(b"ab;;c;;;;de;;;;;", np.uint8)
    starts = np.zeros(len(tokens), np.bool_)
    starts[[0, 4, 7, 9, 13, 15]] = True
    with pytest.warns(UserWarning, match="^2 of 6 documents of the split train have length 0"):
        check_lengths("train", tokens, starts, np.frombuffer(b";;", np.uint8), ";;")
    with pytest.raises(InputError, match="must have a token to predict"):
        check_lengths("train", tokens[:3], np.ones(3, np.bool_), tokens[2:3], ";")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch, capsys, kind):
    """Of Python and NumPy; byte pairs are learned in memory that is not counted here."""
    for module in (sources, documents, cache):
        monkeypatch.setattr(module, "BLOCK", 1 << 14)
    peaks = []
    for size in (4, 16):
        (tmp_path / "text.txt").write_text("the king of Rome é\n" * 1000 * size, encoding="utf-8")
        data = TextDataModule(str(tmp_path / "text.txt"), kind, 260, documents="line", data_dir=str(tmp_path / "data"))
        tracemalloc.start()
        data.prepare_data()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]
    assert peaks[1] > 1 << 14
    cost = r"Prepared [\d,]+ characters in \d+ s, [\d.]+ million a second, peak memory of the process [\d,]+ MB\n"
    assert len(re.findall(cost, capsys.readouterr().err)) == 1  # not of the short one
