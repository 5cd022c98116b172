"""Paths, folders and patterns lead to text files; hidden files are left out, links are followed."""

import pytest

from minrnn_lightning.data import TextDataModule
from minrnn_lightning.data.text.files import local_files


def test_files(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        (tmp_path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "books" / name).write_text(f"contents of {name}")
    books = str(tmp_path / "books")

    def names(path):
        return [file.name for file in local_files(path)]

    assert names(books) == ["a.txt", "b.txt", "c.txt"]
    assert names(f"{books}/*.txt") == ["a.txt", "b.txt"]
    assert names([f"{books}/d.md", f"{books}/?.txt"]) == ["d.md", "a.txt", "b.txt"]
    data = TextDataModule([f"{books}/b.txt", f"{books}/d.md"])
    assert data.read() == b"contents of b.txt\ncontents of d.md"


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"contents of {name}", encoding="utf-8")


def names(path, folder):
    return [str(file.relative_to(folder)) for file in local_files(path)]


HIDDEN = ("._a.txt", ".x/b.txt", "deep/.ipynb_checkpoints/c-checkpoint.txt", "deep/.c.txt", ".venv/lib/deep/top.txt")


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**", "**/**/*.txt", "**/[.a-z]*.txt"])
@pytest.mark.parametrize("root", ["books", ".books"])
def test_hidden_files_are_no_data(tmp_path, pattern, root):
    books = tmp_path / root
    write(books, ("a.txt", "deep/c.txt", *HIDDEN))
    assert names(str(books / pattern), books) == ["a.txt", "deep/c.txt"]


def test_hidden_files_that_are_named_are_data(tmp_path, monkeypatch):
    write(tmp_path, ("a.txt", "deep/c.txt", *HIDDEN))
    for path, expected in {
        "._a.txt": ["._a.txt"],
        ".*.txt": ["._a.txt"],
        ".x": [".x/b.txt"],
        ".x/*": [".x/b.txt"],
        ".[x]/*": [".x/b.txt"],
        ".venv": [".venv/lib/deep/top.txt"],
        "**/.ipynb_checkpoints/*.txt": ["deep/.ipynb_checkpoints/c-checkpoint.txt"],
        "*/.c.txt": ["deep/.c.txt"],
    }.items():
        assert names(f"{tmp_path}/{path}", tmp_path) == expected
    monkeypatch.chdir(tmp_path / ".x")
    assert [str(file) for path in (".", "../.x", "../*.txt") for file in local_files(path)] == [
        "b.txt",
        "../.x/b.txt",
        "../a.txt",
    ]


def test_linked_files_and_folders(tmp_path):
    books, elsewhere = tmp_path / "books", tmp_path / "elsewhere"
    write(books, ("b.txt", "deep/c.txt"))
    write(elsewhere, ("d.txt", "deeper/e.txt", ".hidden.txt"))
    plain = ["b.txt", "deep/c.txt"]
    (books / "a_copy.md").symlink_to(books / "b.txt")
    (books / "again").symlink_to(books / "deep")
    (books / "deep" / "up").symlink_to(books)
    (books / "deep" / "round").symlink_to(".")
    (books / "nothing.txt").symlink_to("nowhere.txt")
    for path in (books, f"{books}/**/*.txt", [f"{books}/*.txt", books]):
        assert names(path, books) == plain, "links within a folder add nothing, and loops end"
    (books / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(books)
    for path in (str(books), f"{books}/**/*.txt"):
        assert names(path, books) == [*plain, "linked/d.txt", "linked/deeper/e.txt"]
    assert names(f"{books}/*/*.txt", books) == ["again/c.txt", "linked/d.txt"]
    (tmp_path / "link").symlink_to(books)
    assert names(str(tmp_path / "link"), tmp_path / "link") == names(str(books), books)


def test_a_file_given_twice_counts_once(tmp_path, monkeypatch):
    write(tmp_path, ("a.txt", "b.txt", "c.txt"))
    (tmp_path / "link.txt").symlink_to("a.txt")
    monkeypatch.chdir(tmp_path)
    twice = ["c.txt", f"{tmp_path}/c.txt", "./link.txt", ".", "[ab].txt"]
    assert [file.name for file in local_files(twice)] == ["c.txt", "link.txt", "b.txt"]
    assert TextDataModule(twice).read() == b"contents of c.txt\ncontents of a.txt\ncontents of b.txt"


@pytest.mark.parametrize("path", ["", " ", [], ["a.txt", ""], [""], None])
def test_empty_path(path, tmp_path, monkeypatch):
    write(tmp_path, ["a.txt"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^path must name a text, got .*; give a text file, a folder"):
        TextDataModule(path)
    with pytest.raises(ValueError, match=r"^path must name a text"):
        local_files(path)
