"""The base of all data modules: common arguments, the data folder and the training stream."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from minrnn_lightning.checkpoint import plain_values
from minrnn_lightning.errors import InputError
from minrnn_lightning.lightning_internals import batches_used
from minrnn_lightning.memory import check_memory


def cache_dir() -> Path:
    """The user's cache folder for this package: ``$XDG_CACHE_HOME/minrnn_lightning``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minrnn_lightning"


def data_folder(data_dir: str | None = None) -> Path:
    """The folder of the data sets: the one that is given, else ``$MINRNN_DATA_DIR``, else the user's cache folder."""
    return Path(data_dir or os.environ.get("MINRNN_DATA_DIR") or cache_dir()).expanduser()


def writable(folder: Path) -> Path:
    """The folder itself, or the user's cache folder if that one is read-only."""
    # The mode counts too: a folder without write permission is meant to stay unchanged, even where root could write.
    read_only = folder.is_dir() and not (os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222)
    return cache_dir() if read_only else folder


class BaseDataModule(LightningDataModule, ABC):
    """Batches for a task; subclasses define the data.

    The training batches form one endless stream; the batch at each position in it depends on the global seed and the
    position alone. The Trainer counts the batches used and keeps the count in its checkpoints, so a resumed run
    continues with the very next batch, wherever the checkpoint was made, given the same batch size and number of
    processes.

    Args:
        batch_size: Examples in a batch, per process.
        length: Steps in an example.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets, searched and downloaded there; by default ``$MINRNN_DATA_DIR``, else
            the user's cache folder ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is not positive or ``num_workers`` is negative.

    Attributes:
        batch_type: Class of the training batches, if a task may refuse others; None for any.
    """

    batch_type: type[Any] | None = None

    def __init__(self, batch_size: int, length: int, num_workers: int = 0, data_dir: str | None = None) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("length", length, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        check_memory(8 * batch_size * length, f"a batch of batch_size {batch_size} × length {length}")
        self.save_hyperparameters()
        self.save_hyperparameters(plain_values(self.hparams))
        self.batch_size = batch_size
        self.length = length
        self.num_workers = num_workers
        self.data_dir = data_folder(data_dir)

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Number of input symbols, known before any data are read or downloaded."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Number of output symbols, known before any data are read or downloaded."""

    @property
    def position(self) -> int:
        """Number of training batches used so far, over all epochs and resumed runs: where the stream continues."""
        return batches_used(self.trainer) if self.trainer else 0

    @property
    def global_seed(self) -> int:
        """The seed of the training stream, that of ``seed_everything``; 0 if it was not called."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    @property
    def processes(self) -> tuple[int, int]:
        """Rank of this process and number of the processes that share the data."""
        shared = self.trainer and self.trainer.distributed_sampler_kwargs
        return (shared["rank"], shared["num_replicas"]) if shared else (0, 1)

    def predict_dataloader(self) -> Any:
        """The same as for the test."""
        return self.test_dataloader()

    def samples_per_second(self, seconds: float = 1.0) -> float:
        """Training examples (rows of batches) that one process prepares in a second, from the stream's start on."""
        stream = self.train_dataloader().dataset
        made, position, start = 0, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            made += len(stream[position][0])
            position += 1
        return made / elapsed

    def loader(self, dataset: Dataset[Any], stream: bool = False) -> DataLoader[Any]:
        """A loader for a data set whose items are complete batches, this process's share of them.

        Args:
            dataset: Maps a number to a batch; ``len`` is the number of batches in an epoch.
            stream: Whether an epoch starts at ``position`` (training) or at 0 (evaluation).
        """
        return _Loader(
            dataset,
            batch_size=None,
            sampler=_Stream(self, dataset) if stream else DistributedSampler(dataset, 1, 0, shuffle=False),
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            persistent_workers=self.num_workers > 0,
        )


def _start_worker(worker: int) -> None:
    """Seed as Lightning does, and ignore Ctrl-C, which the terminal sends to workers too: the main process handles it.

    A worker ends with the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pl_worker_init_function(worker)


def _unchanged(batch: Any) -> Any:
    """The batch as it is; PyTorch's default would turn named tuples into lists."""
    return batch


class _Stream(DistributedSampler[Any]):
    """Positions of one epoch's batches in the training stream.

    It is a DistributedSampler so that Lightning does not replace it: the data set already holds only the share of its
    process. Lightning creates the first iterator after a resume before it sets the epoch, hence ``position``.
    """

    def __init__(self, data: BaseDataModule, dataset: Dataset[Any]) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.data = data

    def __iter__(self) -> Any:
        start = self.data.position
        return iter(range(start, start + len(self)))


class _Loader(DataLoader[Any]):
    """A DataLoader that Lightning treats as resumable; its state is the Trainer's own count of batches."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
