"""Published corpora: their layout, splits, vocabularies and results, and how they are downloaded."""

import hashlib
import math
import re
import zipfile

import pytest
import torch
from corpus_files import write_corpora
from prepared_text import text_of

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.data import CorpusDataModule
from minrnn_lightning.data.text import corpora
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import LanguageTask


@pytest.fixture
def folder(tmp_path):
    write_corpora(tmp_path / "data")
    return tmp_path / "data"


def ready(name, folder, **options):
    data = CorpusDataModule(name, data_dir=str(folder), **{"batch_size": 2, "length": 16, "vocab_size": 280, **options})
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.filterwarnings("ignore:.*is not the published")
@pytest.mark.parametrize(("name", "size"), [("enwik8", 256), ("text8", 27)])
def test_corpora_of_one_file(folder, name, size):
    assert CorpusDataModule(name).input_size == size, "before it is downloaded"
    data = ready(name, folder)
    content = (folder / name / name).read_bytes()
    assert data.input_size == data.tokenizer.get_vocab_size() == size
    cuts = [0, int(0.9 * len(content)), int(0.95 * len(content)), len(content)]
    for split, first, end in zip(("train", "validation", "test"), cuts, cuts[1:], strict=False):
        numbers = {ord(" "): 0} | {ord("a") + index: index + 1 for index in range(26)}
        part = content[first:end]
        assert data.splits[split].tolist() == [byte if name == "enwik8" else numbers[byte] for byte in part]
    assert sorted(data.splits) == ["test", "train", "validation"]
    full = 10**8
    assert [int(0.9 * full), int(0.95 * full)] == [90_000_000, 95_000_000]


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_corpora_of_several_files(folder):
    stories = ready("tinystories", folder, documents="<|endoftext|>")
    files = {"train": "TinyStoriesV2-GPT4-train.txt", "validation": "TinyStoriesV2-GPT4-valid.txt"}
    assert {split: text_of(stories, split) for split in stories.splits} == {
        split: (folder / "TinyStories" / file).read_text() for split, file in files.items()
    }
    assert stories.borders["validation"].sum() == 9
    wikitext = ready("wikitext103", folder)
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert text_of(wikitext, split) == (folder / f"wikitext-103/wiki.{file}.tokens").read_text()
    assert stories.token_words is None
    tuned = ready("wikitext103", folder, tuning=True)
    whole = (folder / "wikitext-103/wiki.train.tokens").read_text()
    assert text_of(tuned, "train") + text_of(tuned, "validation") == whole


@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
def test_perplexity_per_word(folder, trainer, tokenizer):
    data = ready("wikitext103", folder, tokenizer=tokenizer)
    text = (folder / "wikitext-103/wiki.valid.tokens").read_text()
    words = sum(len(line.split()) + 1 for line in text.splitlines())  # with the end of each line
    assert data.token_words[data.splits["validation"].astype(int)].sum() == words
    task = LanguageTask(data.input_size, data.input_size, dim=8, depth=1)
    (results,) = trainer().validate(task, data, verbose=False)
    targets = torch.cat([targets.flatten() for _, targets in data.val_dataloader()])
    read = data.tokenizer.decode(targets[targets != IGNORED].tolist())
    nats = results["val/loss"] * len(targets)
    assert results["val/word_perplexity"] == pytest.approx(math.exp(nats / read.count(" ")), rel=1e-4)


def published(monkeypatch, tmp_path, name, **contents):
    """Publish a corpus as an archive of these files in a folder, and return it."""
    archive = tmp_path / "remote.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file, content in contents.items():
            target.writestr(f"folder/{file}", content)
    (file,) = corpora.CORPORA[name].downloads
    changed = {
        "downloads": {file: (archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())},
        "sha256": tuple(hashlib.sha256(content).hexdigest() for content in contents.values()),
    }
    monkeypatch.setitem(corpora.CORPORA, name, corpora.CORPORA[name]._replace(**changed))
    return archive


@pytest.mark.filterwarnings("error")
def test_download(tmp_path, monkeypatch):
    content = b"<text>" * 500
    archive = published(monkeypatch, tmp_path, "enwik8", enwik8=content)
    data = ready("enwik8", tmp_path / "data")
    assert (tmp_path / "data/enwik8/enwik8").read_bytes() == content
    assert data.corpus == data.hparams.corpus == data.state_dict()["corpus"] == "enwik8"
    archive.unlink()
    assert ready("enwik8", tmp_path / "data").folder == data.folder
    (tmp_path / "data/enwik8/enwik8").write_bytes(content + b"more")
    with pytest.warns(UserWarning, match="enwik8 is not the published enwik8: losses are not comparable"):
        data = ready("enwik8", tmp_path / "data")
    assert re.fullmatch("[0-9a-f]{16}", data.corpus)


def test_download_that_fails(tmp_path, monkeypatch):
    archive = published(monkeypatch, tmp_path, "text8", other=b"abc")
    with pytest.raises(InputError, match=r"text8\.zip does not contain text8; delete it to have it downloaded again"):
        ready("text8", tmp_path / "data")
    (tmp_path / "data/text8/text8.zip").unlink()
    archive.write_bytes(b"another")
    with pytest.raises(InputError, match="the file was removed"):
        ready("text8", tmp_path / "data")
    archive.unlink()
    with pytest.raises(
        ConnectionError, match=r"^The file .*text8\.zip is missing and .* cannot be reached .*; save file"
    ):
        ready("text8", tmp_path / "data")
    assert not (tmp_path / "data/text8").exists()


def test_other_characters_and_names(folder):
    (folder / "text8/text8").write_text("A" + " word" * 500)
    with pytest.raises(InputError, match="outside the vocabulary: 'A'"), pytest.warns(UserWarning, match="is not the"):
        ready("text8", folder)
    with pytest.raises(InputError, match=r"^name must be enwik8, text8, wikitext103 or tinystories, got enwik9$"):
        CorpusDataModule("enwik9")
