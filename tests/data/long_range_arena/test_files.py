"""Retrieval, images and IMDb: tiny files in the official formats, and damaged ones."""

import re

import numpy as np
import pytest
from lra_files import cifar_records, write_cifar, write_imdb, write_retrieval
from prepared_sequences import prepared, read, unchanged
from sklearn.datasets import load_digits

from minrnn_lightning.data import (
    IMDBDataModule,
    RetrievalDataModule,
    SequentialImageDataModule,
)
from minrnn_lightning.data.long_range_arena import images


@pytest.mark.parametrize("length", [4000, 10])
def test_retrieval(tmp_path, length):
    folder = tmp_path / "lra_release/lra_release/tsv_data"
    write_retrieval(folder)
    data = prepared(RetrievalDataModule(length=length, batch_size=4, data_dir=str(tmp_path)))
    for split, name in (("train", "train"), ("validation", "eval"), ("test", "test")):
        lines = (folder / f"new_aan_pairs.{name}.tsv").read_bytes().splitlines()
        labels, texts = read(data, split)
        assert labels == [0, 1] * 6
        assert texts == [text[:length] for line in lines for text in line.split(b"\t")[3:]]
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape[:2] == (4, 2)
    assert batch.lengths.shape == (4, 2)
    assert batch.inputs.shape[2] == batch.lengths.max()
    assert (data.input_size, data.output_size, data.chance, data.baseline) == (256, 2, 0.5, 0.5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"1.0\tP\tQ\tonly one text", "line 3 has 4 instead of 5 columns"),
        (b"2.0\tP\tQ\ta\tb", "line 3 begins with '2.0' instead of 0 or 1"),
        (b"1.0\tP\tQ\ta\t\xe9", r"line 3 is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_damaged_retrieval(tmp_path, line, words):
    write_retrieval(tmp_path / "pairs")
    file = tmp_path / "pairs/new_aan_pairs.test.tsv"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(ValueError, match=f"new_aan_pairs.test.tsv, {words}"):
        prepared(RetrievalDataModule(path=str(tmp_path / "pairs"), data_dir=str(tmp_path)))


def test_empty_text_is_one_byte(tmp_path):
    write_retrieval(tmp_path / "pairs")
    (tmp_path / "pairs/new_aan_pairs.train.tsv").write_text("0.0\tP\tQ\t\tb\n")
    data = prepared(RetrievalDataModule(path=str(tmp_path / "pairs"), data_dir=str(tmp_path)))
    assert read(data, "train") == ([0], [b"\0", b"b"])


def test_missing_retrieval(tmp_path):
    file = re.escape(str(tmp_path / "lra_release/lra_release/tsv_data/new_aan_pairs.train.tsv"))
    with pytest.raises(
        FileNotFoundError, match=f"^{file} is missing; unpack https.*lra_release.gz into {tmp_path}, or"
    ):
        prepared(RetrievalDataModule(data_dir=str(tmp_path)))


def test_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "download", lambda *arguments: pytest.fail("downloaded"))
    records = write_cifar(tmp_path / "cifar-10/cifar-10-binary.tar.gz")
    data = prepared(SequentialImageDataModule(data_dir=str(tmp_path), batch_size=8))
    train = np.concatenate([records[f"data_batch_{number}"] for number in range(1, 6)])
    for split, expected in (("train", train[:45_000]), ("validation", train[45_000:]), ("test", records["test_batch"])):
        labels, pixels = read(data, split)
        assert labels == expected[:, 0].tolist()
        for index in (0, len(expected) - 1):
            red, green, blue = expected[index, 1:].reshape(3, 1024).astype(float)
            grey = np.frombuffer(pixels[index], np.uint8)
            assert np.abs(grey - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.5 + 1e-9
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (8, 1024)
    assert batch.lengths.unique().tolist() == [1024]
    assert data.baseline == pytest.approx(0.1, abs=0.03)


def test_cifar_is_downloaded_and_checked(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(images, "download", lambda *arguments: fetched.append(arguments))
    file = tmp_path / "cifar-10/cifar-10-binary.tar.gz"
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} is not the binary version of CIFAR-10; delete it"):
        prepared(SequentialImageDataModule(data_dir=str(tmp_path)))
    assert fetched == [(images.URL, file, images.SHA256)]


def test_cifar_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "URL", "http://127.0.0.1:9/x")
    with pytest.raises(ConnectionError, match=r"is missing and http://127.*/x cannot be reached .*dataset=digits"):
        prepared(SequentialImageDataModule(data_dir=str(tmp_path)))


@pytest.mark.parametrize("wrong", ["text", "short", "cut", "damaged", "labels"])
def test_wrong_archive(tmp_path, wrong):
    file = tmp_path / "cifar-10/cifar-10-binary.tar.gz"
    if wrong == "text":
        file.parent.mkdir()
        file.write_text("not an archive")
    elif wrong == "labels":
        write_cifar(file, classes=11)
    else:
        write_cifar(file, images=10)
        content = file.read_bytes()
        if wrong == "cut":
            file.write_bytes(content[:5000])
        elif wrong == "damaged":
            file.write_bytes(content[:90_000] + b"\xff" * 50_000 + content[140_000:])
    with pytest.raises(ValueError, match="is not the binary version of CIFAR-10; delete it, to have it fetched from"):
        prepared(SequentialImageDataModule(data_dir=str(tmp_path)))
    assert list((tmp_path / "sequences").iterdir()) == []


def test_grey():
    record = cifar_records(1, 3)
    record[0, 1:] = np.repeat(np.array([255, 255, 255], np.uint8), 1024)
    assert list(images.grey(record)) == [(int(record[0, 0]), [b"\xff" * 1024])]


def test_digits(tmp_path):
    digits = load_digits()
    data = prepared(SequentialImageDataModule("digits", data_dir=str(tmp_path)))
    known = {(int(n), image.tobytes()) for n, image in zip(digits.target, digits.images, strict=True)}
    sizes, seen = [], set()
    for split in ("train", "validation", "test"):
        labels, pixels = read(data, split)
        sizes.append(len(labels))
        for label, image in zip(labels, pixels, strict=True):
            large = np.frombuffer(image, np.uint8).reshape(32, 32)
            small = large[::4, ::4]
            assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
            seen.add((label, (small // 15).astype(float).tobytes()))
    assert sizes == [1437, 180, 180]
    assert seen == known


def test_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"The digits come with scikit-learn: pip install .minrnn-lightning\[lra\]"):
        prepared(SequentialImageDataModule("digits", data_dir=str(tmp_path)))


def test_another_archive_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "cifar-10/cifar-10-binary.tar.gz"
    file.parent.mkdir()

    def data():
        return SequentialImageDataModule(data_dir=str(tmp_path))

    official = data().folder
    assert not unchanged(data, file, b"another archive")
    assert unchanged(data, file), "its time says nothing"
    assert not unchanged(data, file, b"Another archive")
    monkeypatch.setattr(images, "SHA256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # of b""
    file.unlink()
    assert data().folder != official
    assert unchanged(data, file, b""), "the official archive need not be there"


def test_unknown_images():
    with pytest.raises(ValueError, match="dataset must be cifar10 or digits, got mnist"):
        SequentialImageDataModule("mnist")


def test_imdb(tmp_path):
    write_imdb(tmp_path / "aclImdb")
    data = prepared(IMDBDataModule(length=20, data_dir=str(tmp_path), batch_size=3))
    labels, reviews = read(data, "train")
    assert labels == [0] * 4 + [1] * 4
    assert reviews[5] == "train pos 1 très bien! ".encode()[:20]
    assert read(data, "validation") == read(data, "test")
    assert read(data, "test")[1][0].startswith(b"test neg 0")


@pytest.mark.parametrize(
    ("content", "words"), [(b"caf\xe9", r"2_5.txt is not UTF-8 \(byte 0xe9\)"), (b"", "2_5.txt is empty")]
)
def test_damaged_imdb(tmp_path, content, words):
    write_imdb(tmp_path / "aclImdb")
    (tmp_path / "aclImdb/test/pos/2_5.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        prepared(IMDBDataModule(data_dir=str(tmp_path)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_changed_reviews_are_read_again(tmp_path, split):
    write_imdb(tmp_path / "aclImdb")
    review = tmp_path / f"aclImdb/{split}/pos/2_5.txt"

    def data():
        return IMDBDataModule(length=20, data_dir=str(tmp_path))

    assert unchanged(data, review.with_name("._2_5.txt"), b"Mac OS X"), "hidden"
    assert unchanged(data, review.with_name("notes.md"), b"no review")
    assert not unchanged(data, review, b"more than before, with the time of before")
    assert read(prepared(data()), split)[1][6] == b"more than before, wi"
    assert not unchanged(data, review), "another time"
    before = data().folder
    review.rename(review.with_name("2_6.txt"))
    assert data().folder != before


def test_hidden_files_are_no_reviews(tmp_path):
    write_imdb(tmp_path / "aclImdb")
    (tmp_path / "aclImdb/train/pos/._2_5.txt").write_bytes(b"Mac OS X \xb0")
    assert read(prepared(IMDBDataModule(data_dir=str(tmp_path))), "train")[0] == [0] * 4 + [1] * 4


def test_missing_imdb(tmp_path):
    with pytest.raises(FileNotFoundError, match="aclImdb/train/neg holds no review; unpack https"):
        prepared(IMDBDataModule(data_dir=str(tmp_path)))
