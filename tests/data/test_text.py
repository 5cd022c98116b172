"""Any text becomes windows: files, folders, patterns, Hub data sets; what cannot be read is said in one sentence."""

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from minrnn_lightning.data import TextDataModule
from minrnn_lightning.data.text import local_files
from minrnn_lightning.data.windows import token_array


def prepared(path, **options):
    data = TextDataModule(path, **{"batch_size": 2, "length": 10, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def text_of(data, part):
    return data.tokenizer.decode(token_array(data.parts[part]).tolist())


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_text_and_sizes(text_file, tokenizer):
    text = text_file.read_text()
    data = TextDataModule(str(text_file), tokenizer, vocab_size=300, batch_size=2, length=10)
    size = data.input_size
    assert size == data.output_size == {"char": 10, "byte": 256, "bpe": 300}[tokenizer]
    data.prepare_data()
    data.setup("fit")
    assert text_of(data, "train") == text[:1800]
    assert text_of(data, "validation") == text[1800:]
    assert token_array(data.parts["train"]).max() < size
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == targets.shape == (2, 10)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_tokens_are_mapped_into_memory(text_file):
    data = prepared(str(text_file))
    tokens = token_array(data.parts["train"])
    assert not tokens.flags.owndata
    assert tokens.dtype == np.uint8
    assert [file["filename"] for file in data.parts["train"].cache_files] == [str(data.folder / "train.arrow")]


def test_tokenised_once_for_each_text_and_vocabulary(text_file, cache, monkeypatch):
    folders = {prepared(str(text_file), tokenizer=kind, vocab_size=257).folder for kind in ("char", "byte", "bpe")}
    folders |= {prepared(str(text_file), held_out=0.2).folder}
    with monkeypatch.context() as patch:
        patch.setattr(TextDataModule, "texts", lambda self: pytest.fail("tokenised again"))
        folders |= {prepared(str(text_file), batch_size=3, length=5).folder}
    text_file.write_text("another text\n" * 100)
    folders |= {prepared(str(text_file)).folder}
    assert sorted((cache / "tokens").iterdir()) == sorted(folders)
    assert len(folders) == 5


def test_interrupted_preparation_leaves_nothing(text_file, cache, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("minrnn_lightning.data.text.tokens", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared(str(text_file))
    assert list((cache / "tokens").iterdir()) == []


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


@pytest.mark.parametrize(
    ("contents", "options", "error", "message"),
    [
        (None, {}, FileNotFoundError, "leads to no file; give a text file, a folder of "),
        (b"", {}, ValueError, "is empty; give a file with text"),
        (b"", {"tokenizer": "byte"}, ValueError, "is empty; give a file with text"),
        (
            b"text\xff\xfe",
            {},
            ValueError,
            r"is not text in UTF-8 \(byte 0xff at position 4\); convert it, or use token",
        ),
        (b"text\0", {"tokenizer": "bpe"}, ValueError, r"is not text in UTF-8 \(a zero byte\); convert it, or use tok"),
    ],
)
def test_bad_files(tmp_path, contents, options, error, message):
    if contents is not None:
        (tmp_path / "file.txt").write_bytes(contents)
    with pytest.raises(error, match=f"^{tmp_path}/file.txt {message}"):
        prepared(str(tmp_path / "file.txt"), **options)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path} holds no \*\.txt file; give"):
        TextDataModule(str(tmp_path)).input_size  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "word"}, "tokenizer must be char, byte or bpe, got word"),
        ({"vocab_size": 255}, "vocab_size must be 256 or more, .* got 255"),
        ({"held_out": 0.0}, "held_out must lie between 0 and 1, got 0.0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^{message}\.$"):
        TextDataModule("any.txt", **options)


def test_any_bytes(tmp_path):
    contents = bytes(np.random.default_rng(0).integers(256, size=1000, dtype=np.uint8))
    (tmp_path / "program").write_bytes(contents)
    data = prepared(str(tmp_path / "program"), tokenizer="byte")
    assert bytes(token_array(data.parts["train"])) + bytes(token_array(data.parts["validation"])) == contents


def test_too_short_for_the_part_in_use(text_file):
    data = prepared(str(text_file), batch_size=1, length=199)
    assert len(data.val_dataloader()) == 1
    data.length = 901
    with pytest.raises(ValueError, match=r"The training text is too short: it has 1800 tokens, but .* needs 1802;"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="The held-out text is too short: it has 200 tokens"):
        data.val_dataloader()


def test_too_few_byte_pairs(tmp_path):
    (tmp_path / "short.txt").write_text("ab " * 100)
    with pytest.warns(UserWarning, match="has only 2.. byte pairs; the others of vocab_size=4096 stay unused"):
        data = prepared(str(tmp_path / "short.txt"), tokenizer="bpe")
    assert data.input_size == 4096


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set."""
    parts = {"train": ["first document", "second"] * 20, "test": ["third and last"] * 3}
    found = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": rows}) for name, rows in parts.items()})

    def load(name, subset):
        if (name, subset) != ("owner/name-1.0", "small"):
            raise ConnectionError("no such data set\nand more")
        return found

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_hub(hub, tokenizer):
    data = prepared("owner/name-1.0", tokenizer=tokenizer, subset="small", vocab_size=257)
    text = "\n".join(["first document", "second"] * 20)
    cut = int(0.9 * len(text))
    assert (text_of(data, "train"), text_of(data, "validation")) == (text[:cut], text[cut:])
    assert text_of(data, "test") == "\n".join(["third and last"] * 3)
    assert len(data.test_dataloader().dataset.batches[0]) == 2


def test_bad_hub(hub, text_file, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^other/name is neither a file here nor .* \(no such data set\)\.$"):
        TextDataModule("other/name").input_size  # noqa: B018
    with pytest.raises(ValueError, match="needs a part train with a column words, but has train: text; test: text"):
        TextDataModule("owner/name-1.0", subset="small", column="words").input_size  # noqa: B018
    with pytest.raises(FileNotFoundError, match="leads to no file"):
        TextDataModule("owner/name.txt").input_size  # noqa: B018
    monkeypatch.chdir(text_file.parent.parent)
    assert TextDataModule(f"{text_file.parent.name}/{text_file.name}").input_size == 10


def test_every_stage(text_file, silent, trainer):
    data = TextDataModule(str(text_file), batch_size=3, length=20)
    trainer(max_epochs=2).fit(silent, data)
    trainer().test(silent, data, verbose=False)
    predicted = trainer().predict(silent, data)
    windows = torch.tensor(list(token_array(data.parts["validation"]))[:180]).view(9, 20)
    assert torch.equal(torch.cat(silent.seen["validation"]), windows.repeat(2, 1))
    assert torch.equal(torch.cat(silent.seen["test"]), windows)
    assert torch.equal(torch.cat(predicted), windows)
    first, second = torch.stack(silent.seen["train"]).chunk(2)
    assert first.shape == (89 // 3, 3, 20)
    assert not torch.equal(first, second)


def test_seed_decides_the_stream(text_file, monkeypatch):
    def first():
        return next(iter(prepared(str(text_file)).train_dataloader()))[0]

    default = first()
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert torch.equal(first(), default)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(first(), default)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_stay_the_same(text_file, silent, trainer):
    trainer(max_epochs=3, overfit_batches=2).fit(silent, TextDataModule(str(text_file), batch_size=2, length=9))
    first, second, third = torch.stack(silent.seen["train"]).chunk(3)
    assert first.shape == (2, 2, 9)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_checkpoint(text_file, tmp_path, silent, trainer):
    def fit(file, checkpoint=None):
        run = trainer(max_steps=2 if checkpoint is None else 3)
        run.fit(silent, TextDataModule(str(file), batch_size=2, length=9), ckpt_path=checkpoint)
        return run

    fit(text_file).save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    text = text_file.read_text()
    assert Tokenizer.from_str(saved["TextDataModule"]["tokenizer"]).decode([0, 1, 2]) == "\n a"
    assert saved["TextDataModule"]["corpus"] == saved["datamodule_hyper_parameters"]["corpus"]
    assert TextDataModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).length == 9

    fit(text_file, tmp_path / "x.ckpt")
    (tmp_path / "reversed.txt").write_text(text[::-1])
    with pytest.warns(UserWarning, match="The checkpoint was trained on another text"):
        fit(tmp_path / "reversed.txt", tmp_path / "x.ckpt")
    (tmp_path / "upper.txt").write_text(text.upper())
    with pytest.raises(ValueError, match=r"another vocabulary \(10 tokens\) than these data \(10\); .* init_from\.$"):
        fit(tmp_path / "upper.txt", tmp_path / "x.ckpt")
