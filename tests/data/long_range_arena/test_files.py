"""Retrieval, images, Pathfinder and IMDb: tiny files in the official formats, and damaged ones."""

import io
import os
import re
import zlib

import numpy as np
import pytest
from lra_files import cifar_records, write_cifar, write_imdb, write_pathfinder, write_retrieval
from PIL import Image
from sklearn.datasets import load_digits

from minrnn_lightning.data import (
    IMDBDataModule,
    PathfinderDataModule,
    RetrievalDataModule,
    SequentialImageDataModule,
)
from minrnn_lightning.data.long_range_arena import images
from minrnn_lightning.data.long_range_arena.module import Split
from minrnn_lightning.data.long_range_arena.pathfinder import read_png
from minrnn_lightning.errors import InputError


def prepared(data):
    data.prepare_data()
    return data


def read(data, name):
    split = Split.read(data.folder, name)
    bounds = zip([0, *split.ends[:-1]], split.ends, strict=True)
    return split.labels.tolist(), [split.tokens[a:b].tobytes() for a, b in bounds]


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


def again(make, file, content=None):
    """Whether a data module still finds what was read before a file has another content, or only another time."""
    before, about = make().folder, file.stat() if file.exists() else None
    if content is not None:
        file.write_bytes(content)
    if about is not None:
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + (content is None)))
    return make().folder == before


def test_another_archive_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "cifar-10/cifar-10-binary.tar.gz"
    file.parent.mkdir()

    def data():
        return SequentialImageDataModule(data_dir=str(tmp_path))

    official = data().folder
    assert not again(data, file, b"another archive")
    assert again(data, file), "its time says nothing"
    assert not again(data, file, b"Another archive")
    monkeypatch.setattr(images, "SHA256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # of b""
    file.unlink()
    assert data().folder != official
    assert again(data, file, b""), "the official archive need not be there"


def test_unknown_images():
    with pytest.raises(ValueError, match="dataset must be cifar10 or digits, got mnist"):
        SequentialImageDataModule("mnist")


def test_pathfinder(tmp_path):
    folder = tmp_path / "lra_release/lra_release/pathfinder32/curv_contour_length_14"
    pixels = write_pathfinder(folder)
    with pytest.warns(UserWarning, match="sample_3.png is empty and left out"):
        data = prepared(PathfinderDataModule(data_dir=str(tmp_path), batch_size=2))
    splits = [read(data, name) for name in ("train", "validation", "test")]
    assert sorted(len(labels) for labels, _ in splits) in ([1, 2, 16], [2, 2, 15])
    seen = {image: label for labels, sequences in splits for label, image in zip(labels, sequences, strict=True)}
    expected = {image.tobytes(): int(name[7:-4]) % 2 for name, image in pixels.items() if name != "sample_3.png"}
    assert seen == expected
    assert next(iter(data.train_dataloader())).inputs.shape == (2, 1024)


def png(grey, mode="L", **options):
    """The content of a PNG file, written by Pillow."""
    file = io.BytesIO()
    Image.fromarray(grey).convert(mode).save(file, "png", **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}], ids=str)
def test_grey_png(tmp_path, options):
    for seed in range(20):  # Pillow chooses another filter for smooth images than for noise
        random = np.random.default_rng(seed)
        pixels = np.cumsum(random.integers(-seed, seed + 1, size=(9, 9)), axis=seed % 2) % 256
        (tmp_path / "x.png").write_bytes(png(pixels.astype(np.uint8), **options))
        assert np.array_equal(read_png(tmp_path / "x.png", 9), pixels)


def other_images():
    """PNG files that are damaged, or of another size or other colours than 8 by 8 pixels with 8 bits of grey."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for mode in ("1", "RGB", "LA", "P", "I;16"):
        yield mode, png(grey, mode)
    yield "size", png(grey[:, :7])
    noise = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    for size in (0, 7, 24, 40, 80):
        yield f"{size} bytes", png(noise)[:size]
    yield "checksum", png(grey).replace(b"IDAT", b"IDAT\0")
    four_colours = png(grey % 4, "P", bits=2)
    header = four_colours[12:25] + bytes([0, *four_colours[26:29]])  # grey, of 2 bits, which Pillow reads as mode L
    yield "2 bits", four_colours[:12] + header + zlib.crc32(header).to_bytes(4, "big") + four_colours[33:]


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in other_images()])
def test_other_images_are_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png is not a grey PNG image of 8 pixels a side; unpack https"):
        read_png(tmp_path / "x.png", 8)


@pytest.mark.parametrize("wrong", ["cut", "text", "size", "metadata"])
def test_damaged_pathfinder(tmp_path, wrong):
    folder = tmp_path / "curv_contour_length_14"
    write_pathfinder(folder, side=16 if wrong == "size" else 32)
    file = folder / "imgs/0/sample_5.png"
    if wrong == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif wrong == "text":
        file.write_text("GIF89a")
    elif wrong == "metadata":
        with (folder / "metadata/0.npy").open("a") as lines:
            lines.write("imgs/0 sample_1.png\n")
    words = r"0\.npy, line 21 is not" if wrong == "metadata" else r"\.png is not a grey PNG image of 32 pixels a side"
    with pytest.raises(ValueError, match=words):
        prepared(PathfinderDataModule(path=str(tmp_path), data_dir=str(tmp_path / "data")))


def test_changed_images_are_read_again(tmp_path):
    folder = tmp_path / "p/curv_contour_length_14"
    write_pathfinder(folder)
    image = folder / "imgs/0/sample_2.png"

    def data():
        return PathfinderDataModule(path=str(tmp_path / "p"), data_dir=str(tmp_path))

    assert again(data, folder / "imgs/0/._sample_2.png", b"Mac OS X")
    assert again(data, folder / "metadata/._0.npy", b"Mac OS X"), "hidden"
    assert not again(data, image, image.read_bytes() + b" ")
    assert not again(data, image), "another time"
    assert not again(data, folder / "metadata/0.npy"), "another time"
    image.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(str(image))} is missing, though .*metadata lists it; unpack"
    ):
        prepared(data())


def test_missing_pathfinder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pathfinder32/.*metadata holds no \*.npy file; unpack https"):
        prepared(PathfinderDataModule(data_dir=str(tmp_path)))


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

    assert again(data, review.with_name("._2_5.txt"), b"Mac OS X"), "hidden"
    assert again(data, review.with_name("notes.md"), b"no review")
    assert not again(data, review, b"more than before, with the time of before")
    assert read(prepared(data()), split)[1][6] == b"more than before, wi"
    assert not again(data, review), "another time"
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
