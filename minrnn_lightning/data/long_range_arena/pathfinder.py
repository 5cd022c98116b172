"""Pathfinder of the Long Range Arena: are two dots connected by a dashed path? Images read pixel by pixel."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from minrnn_lightning.data.folders import digest, visible_files
from minrnn_lightning.data.long_range_arena.module import Example, LabelledDataModule
from minrnn_lightning.errors import InputError

URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
DIFFICULTY = "curv_contour_length_14"
# What Pillow raises for damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
BIT_DEPTH_AND_COLOUR, EIGHT_BITS_OF_GREY = slice(24, 26), bytes([8, 0])  # https://www.w3.org/TR/png-3/#11IHDR


class PathfinderDataModule(LabelledDataModule):
    """Pathfinder, and Path-X at 128 pixels a side: the hard images of the official release, 80, 10 and 10 % of them.

    The release has no splits; the images are shuffled in an order that never changes and divided. A file of the
    release is empty; such are left out with a warning. The baseline is the most frequent label.

    Args:
        side: Pixels of a side: 32 makes sequences of 1,024 tokens, 128 of 16,384.
        batch_size: Images in a batch, per process.
        path: Folder ``pathfinder32`` or the like; by default below ``lra_release/lra_release`` in ``data_dir``.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is out of range or a file is damaged.
        FileNotFoundError: The files are missing.

    Source: Linsley et al. 2018, https://arxiv.org/abs/1805.08315, in the version of Tay et al. 2021,
    https://arxiv.org/abs/2011.04006; https://github.com/google-research/long-range-arena.
    """

    output_size = 2

    def __init__(
        self,
        side: Literal[32, 64, 128, 256] = 32,
        batch_size: int = 64,
        path: str | None = None,
        num_workers: int = 0,
        data_dir: str | None = None,
    ) -> None:
        if side not in (32, 64, 128, 256):
            raise InputError(f"side must be 32, 64, 128 or 256, got {side}")
        super().__init__(batch_size, side * side, num_workers, data_dir)
        self.side = side
        folder = Path(path).expanduser() if path else self.data_dir / f"lra_release/lra_release/pathfinder{side}"
        self.path = folder / DIFFICULTY

    def source(self) -> list[Any]:
        """The size of the images, the images, and the files that list them."""
        files = self.lists()
        if not files:
            raise FileNotFoundError(
                f"{self.path}/metadata holds no *.npy file; unpack {URL} into {self.data_dir}, or give the folder of "
                f"its pathfinder{self.side} as path"
            )
        try:
            return [self.side, str(self.path.resolve()), digest([*files, *(image for image, _ in self.listed())])]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename} is missing, though {self.path}/metadata lists it; unpack {URL} again"
            ) from error

    def examples(self) -> dict[str, Iterable[Example]]:
        """The images of the three splits."""
        listed = list(self.listed())
        order = np.random.default_rng(0).permutation(len(listed))
        splits = np.split(order, [int(0.8 * len(order)), int(0.9 * len(order))])
        if min(map(len, splits)) < 1:
            raise InputError(f"{self.path} lists {len(listed)} images, too few for three splits; unpack {URL} again")
        names = ("train", "validation", "test")
        return {name: self.read([listed[index] for index in split]) for name, split in zip(names, splits, strict=True)}

    def lists(self) -> list[Path]:
        """The metadata, which list the images."""
        return visible_files(self.path / "metadata", ".npy")

    def listed(self) -> Iterator[tuple[Path, int]]:
        """Image and label of every line of the metadata, which are text despite their name.

        Raises:
            InputError: A line is damaged; the message names it.
        """
        for file in self.lists():
            for number, line in enumerate(file.read_bytes().decode("ascii", "replace").splitlines(), 1):
                columns = line.split()
                if len(columns) < 4 or columns[3] not in ("0", "1"):
                    raise InputError(
                        f"{file}, line {number} is not folder, image, number and label 0 or 1; unpack {URL} again"
                    )
                yield self.path / columns[0] / columns[1], int(columns[3])

    def read(self, listed: Iterable[tuple[Path, int]]) -> Iterator[Example]:
        """The images of a split.

        Raises:
            InputError: One is damaged or of another size.
        """
        for file, label in listed:
            if not file.stat().st_size:
                rank_zero_warn(f"{file} is empty and left out.")
                continue
            yield label, [read_png(file, self.side).tobytes()]


def read_png(file: Path, side: int) -> npt.NDArray[np.uint8]:
    """Pixels (side, side) of a square PNG image with 8 bits of grey, which all images of Pathfinder are.

    Raises:
        InputError: The file is damaged or holds another image.
    """
    content = file.read_bytes()
    # Pillow's mode L also stands for fewer bits of grey. The size is checked before anything is decoded.
    with suppress(*DAMAGED), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if content[BIT_DEPTH_AND_COLOUR] == EIGHT_BITS_OF_GREY and image.size == (side, side):
            return np.asarray(image)
    raise InputError(f"{file} is not a grey PNG image of {side} pixels a side; unpack {URL} again")
