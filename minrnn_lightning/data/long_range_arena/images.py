"""Images as sequences of grey pixels: CIFAR-10 of the Long Range Arena, or handwritten digits instead."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from minrnn_lightning.data.download import download
from minrnn_lightning.data.long_range_arena.module import Example, LabelledDataModule
from minrnn_lightning.data.module import writable
from minrnn_lightning.errors import InputError

SIDE = 32
ARCHIVE = "cifar-10-binary.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601
VALIDATION = 5000  # of the 50,000 training images, the last
DIGITS = (1437, 180, 180)  # of 1,797 for training, validation and test


class SequentialImageDataModule(LabelledDataModule):
    """Grey images of 32 × 32 pixels, read row by row as 1,024 tokens from 0 to 255; ten classes.

    ``cifar10`` is CIFAR-10 in greyscale: 45,000 training, 5,000 validation and 10,000 test images. ``digits`` are the
    1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn, each pixel enlarged to 4 × 4, shuffled and
    divided into 1,437, 180 and 180: a small substitute, whose results are not comparable with published ones. The
    baseline is the most frequent label.

    Args:
        dataset: ``cifar10`` or ``digits``.
        batch_size: Images in a batch, per process.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; CIFAR-10 is ``cifar-10/cifar-10-binary.tar.gz`` in it and downloaded there
            when missing; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is out of range, the archive is not the official one or scikit-learn is missing.
        ConnectionError: The archive is missing and cannot be fetched.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html; https://archive.ics.uci.edu/dataset/80; the task is that of Tay
    et al. 2021, https://arxiv.org/abs/2011.04006.
    """

    output_size = 10

    def __init__(
        self,
        dataset: Literal["cifar10", "digits"] = "cifar10",
        batch_size: int = 64,
        num_workers: int = 0,
        data_dir: str | None = None,
    ) -> None:
        if dataset not in ("cifar10", "digits"):
            raise InputError(f"dataset must be cifar10 or digits, got {dataset}")
        super().__init__(batch_size, SIDE * SIDE, num_workers, data_dir)
        self.dataset = dataset
        archives = [folder / "cifar-10" / ARCHIVE for folder in (self.data_dir, writable(self.data_dir))]
        self.archive = next((archive for archive in archives if archive.is_file()), archives[1])

    def source(self) -> list[Any]:
        """The name of the data set, and the checksum of the archive, which takes less than a second.

        A missing archive counts as the official one, so that what was read from that is found without it.
        """
        if self.dataset == "digits":
            return [self.dataset]
        return [self.dataset, checksum(self.archive) if self.archive.is_file() else SHA256]

    def prepare_data(self) -> None:
        """Download the archive if neither it nor what was read from it is there, and read it."""
        if self.dataset == "cifar10" and not self.folder.is_dir() and not self.archive.is_file():
            try:
                download(URL, self.archive, SHA256)
            except ConnectionError as error:
                raise ConnectionError(
                    f"The file {self.archive} is missing and {error}; save {URL} under that name, name the folder that "
                    f"holds cifar-10/{ARCHIVE} with --data.data_dir or MINRNN_DATA_DIR, or use dataset=digits"
                ) from error
        super().prepare_data()

    def examples(self) -> dict[str, Iterable[Example]]:
        """The images of the three splits."""
        return self.digits() if self.dataset == "digits" else self.cifar()

    def cifar(self) -> dict[str, Iterable[Example]]:
        """CIFAR-10 out of its archive.

        Raises:
            InputError: The archive is damaged or not the official one.
        """
        records: dict[str, npt.NDArray[np.uint8]] = {}
        try:
            with tarfile.open(self.archive) as archive:
                for member in archive:
                    # Contents are only read, so no link and no path in the archive can do harm.
                    if member.name.endswith(".bin") and (content := archive.extractfile(member)):
                        records[Path(member.name).stem] = np.frombuffer(content.read(), np.uint8)
        except (tarfile.TarError, zlib.error, OSError, EOFError):
            raise self._not_cifar() from None
        names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
        record = 1 + 3 * SIDE * SIDE  # bytes: the class, and the pixels in red, green and blue
        if any(len(records.get(name, ())) != 10_000 * record for name in names):
            raise self._not_cifar()
        *train_batches, test = (records[name].reshape(10_000, record) for name in names)
        train = np.concatenate(train_batches)
        if max(train[:, 0].max(), test[:, 0].max()) >= self.output_size:
            raise self._not_cifar()
        splits = {"train": train[:-VALIDATION], "validation": train[-VALIDATION:], "test": test}
        return {name: grey(split) for name, split in splits.items()}

    def _not_cifar(self) -> InputError:
        return InputError(
            f"{self.archive} is not the binary version of CIFAR-10; delete it, to have it fetched from {URL}"
        )

    def digits(self) -> dict[str, Iterable[Example]]:
        """The digits of scikit-learn, in an order that never changes.

        Raises:
            InputError: The package scikit-learn is missing.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError('The digits come with scikit-learn: pip install "minrnn-lightning[lra]"') from error
        digits = load_digits()
        pixels = np.kron(digits.images, np.ones((SIDE // 8, SIDE // 8))) * 15  # from 0 to 16 each
        examples = [
            (int(label), [image.astype(np.uint8).tobytes()]) for label, image in zip(digits.target, pixels, strict=True)
        ]
        order = np.random.default_rng(0).permutation(len(examples))
        splits = np.split(order, np.cumsum(DIGITS)[:-1])
        names = ("train", "validation", "test")
        return {name: [examples[index] for index in split] for name, split in zip(names, splits, strict=True)}


def checksum(file: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def grey(records: npt.NDArray[np.uint8]) -> Iterator[Example]:
    """Labels and grey pixels of CIFAR-10's records: a byte for the label, then 1,024 for each colour."""
    for record in records:
        colours = record[1:].reshape(3, -1)
        yield int(record[0]), [np.rint(GREY @ colours).astype(np.uint8).tobytes()]
