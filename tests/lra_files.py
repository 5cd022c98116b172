"""Tiny files in the formats of the Long Range Arena and its sources, for the tests that read them."""

import io
import random
import tarfile
from pathlib import Path

import numpy as np

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")


def binary_form(draw: random.Random, depth: int) -> str:
    """An expression as the official files write it: every further entry of a list adds a pair of parentheses."""
    if depth == 0 or draw.random() < 0.3:
        return str(draw.randrange(10))
    text = draw.choice(OPERATORS)
    for _ in range(draw.randint(2, 4)):
        text = f"( {text} {binary_form(draw, depth - 1)} )"
    return f"( {text} ] )"


def write_listops(folder: Path, examples: int = 12) -> None:
    """The three files of ListOps; the targets are arbitrary."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for part in ("train", "val", "test"):
        lines = [f"{binary_form(draw, 3)}\t{draw.randrange(10)}" for _ in range(examples)]
        (folder / f"basic_{part}.tsv").write_text("\n".join(["Source\tTarget", *lines]) + "\n")


def write_retrieval(folder: Path, examples: int = 12) -> None:
    """The three files of Retrieval."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for part in ("train", "eval", "test"):
        lines = []
        for number in range(examples):
            texts = ["".join(draw.choices("abc é", k=draw.randint(1, 40))).strip() or "x" for _ in range(2)]
            lines.append(f"{number % 2}.0\tP{number}\tQ{number}\t{texts[0]}\t{texts[1]}\n")
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(lines), encoding="utf-8")


def cifar_records(images: int, seed: int) -> np.ndarray:
    """Records of random images, (images, 3073)."""
    records = np.random.default_rng(seed).integers(256, size=(images, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


def write_cifar(file: Path, images: int = 10_000, classes: int = 10) -> dict[str, np.ndarray]:
    """An archive in the binary format, and what is in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    base = cifar_records(images, 0)
    records = {}
    with tarfile.open(file, "w:gz", compresslevel=0) as archive:
        for number, name in enumerate(names):
            records[name] = base.copy()
            records[name][:, 0] = (base[:, 0] + number) % classes
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = records[name].size
            archive.addfile(member, io.BytesIO(records[name].tobytes()))
    return records


def write_pathfinder(folder: Path, images: int = 20, side: int = 32) -> dict[str, np.ndarray]:
    """Images written by Pillow and their metadata; one image is empty, as in the release."""
    from PIL import Image

    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs/0").mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels, lines = {}, []
    for number in range(images):
        name = f"sample_{number}.png"
        smooth = np.cumsum(random.integers(-9, 10, size=(side, side)), axis=1) + 128
        pixels[name] = smooth.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels[name]).save(folder / "imgs/0" / name)
        lines.append(f"imgs/0 {name} {number} {number % 2} 0.5 3 1.0\n")
    (folder / "imgs/0" / "sample_3.png").write_bytes(b"")
    (folder / "metadata/0.npy").write_text("".join(lines))
    return pixels


def write_imdb(folder: Path, reviews: int = 4) -> None:
    """Reviews of both kinds in both parts."""
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            (folder / part / label).mkdir(parents=True)
            for number in range(reviews):
                review = f"{part} {label} {number} " + "très bien! " * number
                (folder / part / label / f"{number}_5.txt").write_text(review, encoding="utf-8")
