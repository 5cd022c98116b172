"""Pathfinder: tiny images in the official layout, and damaged ones."""

import io
import re
import zlib

import numpy as np
import pytest
from lra_files import write_pathfinder
from PIL import Image
from prepared_sequences import prepared, read, unchanged

from minrnn_lightning.data import PathfinderDataModule
from minrnn_lightning.data.long_range_arena.pathfinder import read_png
from minrnn_lightning.errors import InputError


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

    assert unchanged(data, folder / "imgs/0/._sample_2.png", b"Mac OS X")
    assert unchanged(data, folder / "metadata/._0.npy", b"Mac OS X"), "hidden"
    assert not unchanged(data, image, image.read_bytes() + b" ")
    assert not unchanged(data, image), "another time"
    assert not unchanged(data, folder / "metadata/0.npy"), "another time"
    image.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(str(image))} is missing, though .*metadata lists it; unpack"
    ):
        prepared(data())


def test_images_that_were_read_are_of_one_size(tmp_path):
    write_pathfinder(tmp_path / "p/curv_contour_length_14")
    with pytest.warns(UserWarning, match="is empty and left out"):
        prepared(PathfinderDataModule(path=str(tmp_path / "p"), data_dir=str(tmp_path)))
    with pytest.raises(InputError, match="is not a grey PNG image of 64 pixels a side"):
        prepared(PathfinderDataModule(side=64, path=str(tmp_path / "p"), data_dir=str(tmp_path)))


def test_missing_pathfinder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pathfinder32/.*metadata holds no \*.npy file; unpack https"):
        prepared(PathfinderDataModule(data_dir=str(tmp_path)))
