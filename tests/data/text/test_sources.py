"""Texts that are read in blocks are the same as those that are read at once, wherever a block ends."""

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minrnn_lightning.data.text import sources
from minrnn_lightning.data.text.sources import FileText, RowText, evenly_chosen
from minrnn_lightning.errors import InputError

UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)
texts = st.lists(UNICODE, min_size=1, max_size=4)
in_this_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


def compare(text, whole, parts, block):
    """A text that is read in blocks, and the string that it is."""
    assert text.length == len(whole)
    assert text.is_empty == (whole == "")
    assert text.read() == whole
    assert list(text.blocks()) == [whole[i : i + block] for i in range(0, len(whole), block)]
    starts = [sum(len(part) + 1 for part in parts[:number]) for number in range(len(parts))]
    assert text.starts.tolist() == starts
    for first, end in ((0, 5), (3, 9), (len(whole) // 2, len(whole))):
        part = text.part(first, min(end, len(whole)))
        assert "".join(part.blocks()) == whole[first:end]
        inside = [start - first for start in starts if first < start < min(end, len(whole))]
        assert part.starts.tolist() == [0, *inside]


@in_this_folder
@given(parts=texts, block=st.integers(4, 9), as_bytes=st.booleans())
def test_files(tmp_path, parts, block, as_bytes):
    files = [tmp_path / f"{number}.txt" for number in range(len(parts))]
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        file.write_bytes(b"\xef\xbb\xbf" * (number % 2 and not as_bytes) + part.encode())
    if as_bytes:
        parts = [part.encode().decode("latin-1") for part in parts]
    elif parts[0].startswith("\ufeff"):
        parts = [parts[0][1:], *parts[1:]]
    parts = [part.removeprefix("\ufeff") if not as_bytes and not n % 2 else part for n, part in enumerate(parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", block)
        compare(FileText(files, as_bytes), "\n".join(parts), parts, block)


@in_this_folder
@given(rows=texts, block=st.integers(1, 9), as_bytes=st.booleans())
def test_rows(rows, block, as_bytes):
    table = datasets.Dataset.from_dict({"text": [None, *rows], "other": [0] * (1 + len(rows))})
    if as_bytes:
        rows = [row.encode().decode("latin-1") for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", block)
        compare(RowText("name", table, "text", as_bytes), "\n".join(rows), rows, block)


@pytest.mark.parametrize("block", [4, 5, 6, 7, 100])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ü日🙂".encode() + b"ab\xff", "byte 0xff at position 11"),
        ("ü日🙂".encode()[:-1], "byte 0xf0 at position 5"),
        ("abc日".encode()[:-1] + b"abcd", "byte 0xe6 at position 3"),
        (b"\xef\xbb\xbfabcdefgh\x80", "byte 0x80 at position 11"),
        (b"abcdefgh\0abc", "a zero byte at position 8"),
        (b"\0abcdefgh\xff", "byte 0xff at position 9"),
    ],
)
def test_errors_name_the_position(tmp_path, monkeypatch, content, message, block):
    monkeypatch.setattr(sources, "BLOCK", block)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/file is not text in UTF-8 \({message}\); convert it"):
        FileText([tmp_path / "file"]).read()


def test_large_files_of_equal_content_are_found(tmp_path, monkeypatch):
    """Only those of equal size are compared."""
    monkeypatch.setattr(sources, "BLOCK", 4)
    for name, content in {"a": "12345", "b": "123456", "c": "12345", "d": "54321", "e": " \n" * 9}.items():
        (tmp_path / name).write_text(content)
    a, b, c, d, e = FileText([tmp_path / name for name in "abcde"]).contents
    assert a == c
    assert len({a, b, d}) == 3
    assert e is None


def test_chosen_blocks():
    blocks = list(map(str, range(100)))
    assert list(evenly_chosen(blocks, 1.0)) == blocks
    chosen = np.array(list(map(int, evenly_chosen(blocks, 0.3))))
    assert len(chosen) == 30
    assert set(np.diff(chosen)) <= {3, 4}
