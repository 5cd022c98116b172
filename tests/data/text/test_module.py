"""Any text becomes windows; what cannot be read is refused in one sentence."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from prepared_text import prepared, text_of
from tokenizers import Tokenizer

from minrnn_lightning.data import TextDataModule
from minrnn_lightning.errors import InputError


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
    assert data.splits["train"].max() < size
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == targets.shape == (2, 10)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_tokens_are_mapped_into_memory(text_file):
    data = prepared(str(text_file))
    tokens = data.splits["train"]
    assert not tokens.flags.owndata
    assert tokens.dtype == np.uint8
    assert tokens.filename == data.folder / "train.npy"


def test_worker_processes_map_the_file_themselves(text_file):
    stream = prepared(str(text_file)).train_dataloader().dataset
    sent = pickle.dumps(stream)
    assert len(sent) < 1000 < len(stream.tokens)
    received = pickle.loads(sent)
    assert received.tokens.filename == stream.tokens.filename
    assert torch.equal(received[3][0], stream[3][0])


def test_empty_training_split(text_file):
    text_file.write_text("a")
    data = prepared(str(text_file), held_out=0.01)
    with pytest.raises(ValueError, match=r"training text is too short: it has 0 tokens"):
        data.train_dataloader()


def test_tokenised_once_for_each_text_and_vocabulary(text_file, cache, monkeypatch):
    folders = {prepared(str(text_file), tokenizer=kind, vocab_size=257).folder for kind in ("char", "byte", "bpe")}
    folders |= {prepared(str(text_file), held_out=0.2).folder}
    with monkeypatch.context() as patch:
        patch.setattr(TextDataModule, "split_texts", lambda self: pytest.fail("tokenised again"))
        folders |= {prepared(str(text_file), batch_size=3, length=5).folder}
    text_file.write_text("another text\n" * 100)
    folders |= {prepared(str(text_file)).folder}
    assert sorted((cache / "tokens").iterdir()) == sorted(folders)
    assert len(folders) == 5


def test_interrupted_preparation_leaves_nothing(text_file, cache, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("minrnn_lightning.data.text.module.BlockEncoder.encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared(str(text_file))
    assert list((cache / "tokens").iterdir()) == []


def copies(path, **options):
    """The warning of copies, or nothing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prepared(path, **options)
        prepared(path, **options)  # from the cache
    told = [str(warning.message) for warning in said if "The held-out split has copies" in str(warning.message)]
    assert told in ([], [told[0]] * 2 if told else []), "once for each data module"
    return told[0] if told else ""


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_copies_in_both_parts_are_named(tmp_path, tokenizer):
    text = [f"{number} is a number é\n" * 40 for number in range(10)]
    for number, contents in enumerate(text):
        (tmp_path / f"{number}.txt").write_text(contents, encoding="utf-8")
    options = {"held_out": 0.35, "tokenizer": tokenizer}  # from the middle of 6.txt on
    assert copies(str(tmp_path), **options) == ""

    def copy(source, target):
        (tmp_path / f"{target}.txt").write_text(text[source], encoding="utf-8")
        told = copies(str(tmp_path), **options)
        (tmp_path / f"{target}.txt").write_text(text[target], encoding="utf-8")
        return told

    assert copy(1, 8) == (
        f"The held-out split has copies of files of the training split ({tmp_path}/8.txt equals {tmp_path}/1.txt), so "
        "its loss is too low; leave the copies out."
    )
    assert f"({tmp_path}/6.txt equals {tmp_path}/2.txt)" in copy(2, 6)
    assert f"({tmp_path}/9.txt equals {tmp_path}/6.txt)" in copy(6, 9)
    assert copy(3, 4) == copy(7, 9) == ""
    for number in (0, 5, 7, 9):
        (tmp_path / f"{number}.txt").write_text("\n")
    assert copies(str(tmp_path), **options) == "", "no text is no copy"


@pytest.mark.parametrize(("source", "target", "told"), [(1, 8, True), (1, 9, False), (3, 7, False), (8, 9, False)])
def test_copies_that_matter_while_tuning(tmp_path, source, target, told):
    """The validation is nearly all of 8.txt; 9.txt is held out."""
    for number in range(10):
        text = f"{source if number == target else number} is a number\n" * 40
        (tmp_path / f"{number}.txt").write_text(text)
    assert bool(copies(str(tmp_path), tuning=True)) == told


def test_where_the_held_out_part_begins_is_counted_in_characters(tmp_path):
    """In bytes, of which b.txt and its copy have three times as many, b.txt begins in the training split both times."""
    for name, contents in {"a": "a" * 100, "b": "日" * 100, "c": "日" * 100, "d": "d" * 97}.items():
        (tmp_path / f"{name}.txt").write_text(contents, encoding="utf-8")
    assert "c.txt equals" in copies(str(tmp_path), held_out=0.5)
    assert copies(str(tmp_path), held_out=0.75) == "", "all but a.txt is held out"
    assert "c.txt equals" in copies(str(tmp_path), held_out=0.75, tokenizer="byte")


def test_each_file_is_decoded_by_itself(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + "né ".encode() * 30)
    (tmp_path / "b.txt").write_bytes(mark + "né\r\n ".encode() * 30 + "\ufeff".encode())
    text = "né " * 30 + "\n" + "né\r\n " * 30 + "\ufeff"
    for tokenizer in ("char", "bpe"):
        data = prepared(str(tmp_path), tokenizer=tokenizer, vocab_size=256)
        assert text_of(data, "train") + text_of(data, "validation") == text
    data = prepared(str(tmp_path), tokenizer="byte")
    raw = bytes(data.splits["train"]) + bytes(data.splits["validation"])
    assert raw == (tmp_path / "a.txt").read_bytes() + b"\n" + (tmp_path / "b.txt").read_bytes()
    (tmp_path / "b.txt").write_bytes(mark + b"abc\xe9 " * 30)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b\.txt is not text in UTF-8 \(byte 0xe9 at position 6\); conv"):
        prepared(str(tmp_path))
    (tmp_path / "b.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b\.txt is text in UTF-16 and not in UTF-8; convert it"):
        prepared(str(tmp_path))


def test_checksum_is_that_of_the_bytes(tmp_path):
    """Texts tokenised before are found again; this is ``sha256sum`` of the file."""
    (tmp_path / "a.txt").write_bytes(b"To be, or not to be\n")
    data = TextDataModule(str(tmp_path / "a.txt"))
    assert data.checksum == "6f8853fab201b437"
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfTo be, or not to be\n")
    assert TextDataModule(str(tmp_path / "b.txt")).folder == data.folder
    assert TextDataModule(str(tmp_path / "b.txt"), "byte").checksum != data.checksum


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_tuning_leaves_the_held_out_split_alone(text_file, tokenizer):
    options = {"tokenizer": tokenizer, "vocab_size": 260}
    text = text_file.read_text()
    text_file.write_text(text[:1800] + "Z" * 200)
    data = prepared(str(text_file), tuning=True, **options)
    assert sorted(data.splits) == ["train", "validation"]
    assert (text_of(data, "train"), text_of(data, "validation")) == (text[:1620], text[1620:1800])
    assert prepared(str(text_file), **options).folder != data.folder
    vocabulary = data.tokenizer.get_vocab()
    text_file.write_text(text[:1800] + "Y" * 200)
    assert prepared(str(text_file), tuning=True, **options).tokenizer.get_vocab() == vocabulary


def test_tuning_has_no_test(text_file, recorder, trainer):
    data = TextDataModule(str(text_file), batch_size=3, length=20, tuning=True)
    trainer(max_epochs=1).fit(recorder, data)
    assert torch.cat(recorder.inputs["validation"]).shape == (8, 20)
    message = "^tuning must be false for test and predict: with it, the held-out text is not read; leave it out, or use"
    for run in (lambda: trainer().test(recorder, data, verbose=False), lambda: trainer().predict(recorder, data)):
        with pytest.raises(InputError, match=message):
            run()


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
        (
            b"text\0",
            {"tokenizer": "bpe"},
            ValueError,
            r"is not text in UTF-8 \(a zero byte at position 4\); convert it, or",
        ),
        (b"\xef\xbb\xbf", {}, ValueError, "is empty; give a file with text"),
        ("text".encode("utf-16"), {}, ValueError, "is text in UTF-16 and not in UTF-8; convert it, or use tokenizer"),
        (b"\xfe\xff\0t", {"tokenizer": "bpe"}, ValueError, "is text in UTF-16 and not in UTF-8; convert it, or use "),
        ("text".encode("utf-32"), {}, ValueError, "is text in UTF-32 and not in UTF-8; convert it, or use tokenizer"),
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
        ({"vocab_size": 255}, "vocab_size must be at least 256, .* got 255"),
        ({"held_out": 0.0}, "held_out must lie between 0 and 1, got 0.0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        TextDataModule("any.txt", **options)


def test_any_bytes(tmp_path):
    contents = bytes(np.random.default_rng(0).integers(256, size=1000, dtype=np.uint8))
    (tmp_path / "program").write_bytes(contents)
    data = prepared(str(tmp_path / "program"), tokenizer="byte")
    assert bytes(data.splits["train"]) + bytes(data.splits["validation"]) == contents


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


def test_every_stage(text_file, recorder, trainer):
    data = TextDataModule(str(text_file), batch_size=3, length=20)
    trainer(max_epochs=2).fit(recorder, data)
    trainer().test(recorder, data, verbose=False)
    predicted = trainer().predict(recorder, data)
    windows = torch.tensor(list(data.splits["validation"])[:180]).view(9, 20)
    assert torch.equal(torch.cat(recorder.inputs["validation"]), windows.repeat(2, 1))
    assert torch.equal(torch.cat(recorder.inputs["test"]), windows)
    assert torch.equal(torch.cat(predicted), windows)
    first, second = torch.stack(recorder.inputs["train"]).chunk(2)
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
def test_overfit_batches_stay_the_same(text_file, recorder, trainer):
    trainer(max_epochs=3, overfit_batches=2).fit(recorder, TextDataModule(str(text_file), batch_size=2, length=9))
    first, second, third = torch.stack(recorder.inputs["train"]).chunk(3)
    assert first.shape == (2, 2, 9)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_checkpoint(text_file, tmp_path, recorder, trainer):
    def fit(file, checkpoint=None):
        run = trainer(max_steps=2 if checkpoint is None else 3)
        run.fit(recorder, TextDataModule(str(file), batch_size=2, length=9), ckpt_path=checkpoint)
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
    with pytest.raises(ValueError, match=r"another vocabulary \(10 tokens\) than these data \(10\); .* init_from$"):
        fit(tmp_path / "upper.txt", tmp_path / "x.ckpt")
