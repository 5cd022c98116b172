"""Minari's data sets: found in its local storage, downloaded from its server, read with its package."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minrnn_lightning.data.extra import rl_module
from minrnn_lightning.data.module import writable
from minrnn_lightning.data.offline_rl.array_files import refuse_other_files
from minrnn_lightning.data.offline_rl.d4rl import SIZES
from minrnn_lightning.data.offline_rl.episodes import (
    EpisodeArrays,
    Source,
    concatenate,
    make_episodes,
)
from minrnn_lightning.errors import InputError, first_line, packages_passed

STORAGE = "MINARI_DATASETS_PATH"  # the environment variable that Minari reads
ID = re.compile(r"([-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")  # as Minari has it: a namespace of two characters or more
METADATA = Path("data", "metadata.json")


def new_storage(data_dir: Path) -> Path:
    """The storage for new data sets: ``$MINARI_DATASETS_PATH``, else ``minari`` in the folder of the data sets."""
    named = os.environ.get(STORAGE)
    return Path(named).expanduser() if named else writable(data_dir) / "minari"


def storages(data_dir: Path) -> list[Path]:
    """The storages to search: that for new data sets, ``minari`` in the folder of the data sets, Minari's own."""
    own = Path.home() / ".minari" / "datasets"
    return list(dict.fromkeys([new_storage(data_dir), data_dir / "minari", own]))


class MinariSet(Source):
    """A data set of Minari, whose episodes are all complete.

    Args:
        dataset: Its id, such as ``mujoco/hopper/medium-v0``, or its folder.
        data_dir: Folder of the data sets.
    """

    def __init__(self, dataset: str | Path, data_dir: Path) -> None:
        self.dataset = dataset
        self.storages = storages(data_dir)

    @property
    def folder(self) -> Path | None:
        """Folder of the data set; None where it is missing."""
        folders = [self.dataset] if isinstance(self.dataset, Path) else [root / self.dataset for root in self.storages]
        return next((folder for folder in folders if (folder / METADATA).is_file()), None)

    def prepare(self) -> None:
        """Download the data set where it is missing.

        Raises:
            FileNotFoundError: It is missing and cannot be fetched.
        """
        if self.folder:
            return
        minari = rl_module("minari")
        try:
            with new_sets(self.storages[0]):
                minari.download_dataset(self.dataset)
        except Exception as error:  # whatever server, network and package may raise
            reason = first_line(error)
            raise FileNotFoundError(
                f"The Minari data set {self.dataset} is in none of {', '.join(map(str, self.storages))}, and Minari's "
                f"server does not give it ({reason}); put it there, or name its storage with {STORAGE}"
            ) from error

    @cached_property
    def minari(self) -> Any:
        """The data set as opened by Minari.

        Raises:
            FileNotFoundError: It is missing.
            InputError: It is damaged, would run code or read other files, or has observations or actions that this
                package does not support.
        """
        if self.folder is None:
            raise FileNotFoundError(
                f"The Minari data set {self.dataset} is in none of {', '.join(map(str, self.storages))}, so its sizes "
                f"are not known; fetch it with "
                f"`minari download {self.dataset}`, or name its storage with {STORAGE}"
            )
        spaces = rl_module("gymnasium").spaces
        minari = rl_module("minari")
        check(self.folder)
        try:
            found = minari.MinariDataset(self.folder / "data")
        except Exception as error:  # whatever Minari raises for the metadata
            raise InputError(f"{self.folder} is damaged or no data set of Minari ({error!r})") from error
        observation_space, action_space = found.observation_space, found.action_space
        if not (isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1):
            raise InputError(
                f"{self.folder} has observations {observation_space}; only vectors, Box of one dimension, are read"
            )
        if not (isinstance(action_space, spaces.Box) and len(action_space.shape) == 1) and not (
            isinstance(action_space, spaces.Discrete) and action_space.start == 0
        ):
            raise InputError(f"{self.folder} has actions {action_space}; only vectors and Discrete from 0 are read")
        return found

    @property
    def env_id(self) -> str | None:  # type: ignore[override]
        """The environment, where the data set names it."""
        spec = self.minari.env_spec
        return spec.id if spec else None

    @property
    def env_args(self) -> dict[str, Any] | None:  # type: ignore[override]
        """Its arguments and its time limit if it has one, without how it was drawn."""
        spec = self.minari.env_spec
        if spec is None:
            return None
        limit = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
        return {name: value for name, value in spec.kwargs.items() if name != "render_mode"} | limit

    @property
    def observation_size(self) -> int:
        """Size of an observation."""
        return self._sizes()[0]

    @property
    def action_size(self) -> int:
        """Size of an action, or the number of actions."""
        return self._sizes()[1]

    @property
    def action_bounds(self) -> tuple[npt.ArrayLike, npt.ArrayLike] | None:
        """Those of the data set's action space."""
        space = self.minari.action_space
        return None if hasattr(space, "n") else (space.low, space.high)

    def _sizes(self) -> tuple[int, int]:
        known = re.match(r"mujoco/(\w+)/", str(self.dataset))
        if self.folder is None and known and known[1] in SIZES:
            return SIZES[known[1]]
        action_space = self.minari.action_space
        action_size = int(action_space.n) if hasattr(action_space, "n") else action_space.shape[0]
        return self.minari.observation_space.shape[0], action_size

    def read(self) -> EpisodeArrays:
        """The episodes, without the observation that follows the last step of each.

        Raises:
            InputError: The data set is damaged.
        """
        return concatenate(self._episodes(), str(self.folder))

    def _episodes(self) -> Iterator[EpisodeArrays]:
        for number, *arrays in self._arrays():
            yield make_episodes(f"Episode {number} of {self.folder}", [len(arrays[-1])], *arrays)

    def _arrays(self) -> Iterator[tuple[Any, ...]]:
        """Number, observations, actions and rewards of each episode."""
        try:
            for episode in self.minari.iterate_episodes():
                observations, actions, rewards = map(
                    np.asarray, (episode.observations, episode.actions, episode.rewards)
                )
                yield episode.id, observations[: len(rewards)], actions, rewards
        except Exception as error:  # whatever Minari raises for damaged files
            raise InputError(f"{self.folder} is damaged ({error!r}); fetch or make it again") from error


def check(folder: Path) -> None:
    """Refuse a data set with which Minari would run code or read other files of this machine.

    Raises:
        InputError: It is such a data set, or its metadata are damaged.
    """
    try:
        about = json.loads((folder / METADATA).read_bytes())
        has_spaces = all(isinstance(about.get(name), str) for name in ("observation_space", "action_space"))
        data_format = about.get("data_format")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{folder} is damaged or no data set of Minari ({error!r})") from error
    if not has_spaces:
        raise InputError(
            f"{folder} is damaged or no data set of Minari: {METADATA} holds no observation_space and action_space as "
            "text, and to find them Minari would run the code that it names as the environment"
        )
    file = folder / "data" / "main_data.hdf5"
    if data_format == "hdf5" and file.is_file():
        try:
            with rl_module("h5py").File(file, "r") as group:
                refuse_other_files(file, group)
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            if packages_passed(error)[-1] != "h5py":
                raise
            raise InputError(f"{folder} is damaged ({error!r}); fetch or make it again") from error


@contextmanager
def new_sets(storage: Path) -> Iterator[None]:
    """Let Minari write into a temporary storage, whose data sets are moved to ``storage`` on success."""
    storage = storage.absolute()  # Minari joins a relative one to itself
    storage.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".new-", dir=storage))
    before = os.environ.get(STORAGE)
    os.environ[STORAGE] = str(partial)
    try:
        yield
        for file in [file.parents[1] for file in partial.rglob(str(METADATA))] + [*partial.rglob("*_metadata.json")]:
            target = storage / file.relative_to(partial)
            if not target.exists():  # else it is a namespace that was there before
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
    finally:
        if before is None:
            del os.environ[STORAGE]
        else:
            os.environ[STORAGE] = before
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            storage.rmdir()  # possible only if it is empty
