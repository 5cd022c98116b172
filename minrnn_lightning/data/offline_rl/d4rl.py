"""D4RL's MuJoCo data sets and files in their layout, and the scale of its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.data.download import download
from minrnn_lightning.data.module import writable
from minrnn_lightning.data.offline_rl.array_files import ARRAYS, read_hdf5
from minrnn_lightning.data.offline_rl.episodes import (
    EpisodeArrays,
    Source,
    concatenate,
    make_episodes,
)

URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/"
ENVIRONMENTS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
ACTIONS = (-1.0, 1.0)  # the lowest and the highest in all of these environments
SIZES = {"hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6)}  # of observations and actions
REFERENCES = {  # returns of a random policy and of D4RL's expert
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}
QUALITIES = ("medium", "medium-replay", "medium-expert", "expert")
NAMES = tuple(f"{env}-{quality}-v2" for env in ENVIRONMENTS for quality in QUALITIES)
FILES = {  # size in bytes and sha256, of TensorFlow Datasets; it has none of the two other expert files
    "hopper-medium-v2": (152_756_557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"),
    "hopper-medium-replay-v2": (75_854_457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "hopper-medium-expert-v2": (304_537_315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"),
    "hopper-expert-v2": (152_427_435, "01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b"),
    "halfcheetah-medium-v2": (237_727_262, "41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0"),
    "halfcheetah-medium-replay-v2": (59_448_533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "halfcheetah-medium-expert-v2": (474_567_252, "015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06"),
    "walker2d-medium-v2": (232_254_996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"),
    "walker2d-medium-replay-v2": (86_323_963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "walker2d-medium-expert-v2": (462_197_079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"),
}


def normalized_score(env_id: str, episode_return: float) -> float | None:
    """An undiscounted return on D4RL's scale: 0 is a random policy, 100 its expert; None for other environments.

    The two reference returns were measured in MuJoCo 2 with the environments -v2. Those of today, -v4 and -v5, run in
    another simulator and, -v5, with other rewards and frictions: a score in them is comparable with scores in the
    same environment and version of MuJoCo, not with published D4RL scores.

    Args:
        env_id: Gymnasium's name such as ``Hopper-v5``; the version does not matter.
        episode_return: Sum of the rewards.

    Source: https://github.com/Farama-Foundation/D4RL, ``d4rl/infos.py``.
    """
    lowest, highest = REFERENCES.get(env_id.partition("-")[0].lower(), (None, None))
    if lowest is None or highest is None:
        return None
    return 100 * (episode_return - lowest) / (highest - lowest)


class D4RLFile(Source):
    """A local HDF5 file in D4RL's layout, of any environment.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        name = file.stem.replace("_", "-")
        self.env_id = ENVIRONMENTS[name.partition("-")[0]] if name in NAMES else None

    @property
    def action_bounds(self) -> tuple[float, float] | None:
        """Those of D4RL's environments, if this is a file of one."""
        return ACTIONS if self.env_id else None

    def read(self) -> EpisodeArrays:
        """The episodes, each ended by a terminal state or a timeout; the steps after the last end are dropped.

        Raises:
            InputError: The file is damaged, or has other arrays.
        """
        arrays = read_hdf5(self.file, (*ARRAYS, "terminals", "timeouts"))
        over = arrays["terminals"].astype(bool)
        if over.shape == arrays["timeouts"].shape:  # else it is refused below
            over |= arrays["timeouts"].astype(bool)
        return make_episodes(str(self.file), np.flatnonzero(over) + 1, **arrays)


class D4RLSet(Source):
    """A data set of D4RL by its name, found in the data folder or downloaded there.

    ``medium-expert`` is concatenated from ``medium`` and ``expert`` where only those two exist.

    Args:
        name: One of ``NAMES``.
        data_dir: The folder; the file is in it or in ``d4rl`` below it.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        self.name = name
        self.env, _, self.quality = name.removesuffix("-v2").partition("-")
        self.env_id = ENVIRONMENTS[self.env]
        self.data_dir = data_dir
        self.target = writable(data_dir) / "d4rl" / file_name(name)

    @property
    def observation_size(self) -> int:
        """Size of an observation of the environment."""
        return SIZES[self.env][0]

    @property
    def action_size(self) -> int:
        """Size of an action of the environment."""
        return SIZES[self.env][1]

    @property
    def action_bounds(self) -> tuple[float, float]:
        """The lowest and the highest action of the environment."""
        return ACTIONS

    def files(self) -> list[Path]:
        """The file of the data set, the two that make it up, or none where they are missing."""
        names = [[self.name]]
        if self.quality == "medium-expert":
            names.append([f"{self.env}-medium-v2", f"{self.env}-expert-v2"])
        found = ([file for name in together if (file := self._find(name))] for together in names)
        return next((files for files, together in zip(found, names, strict=True) if len(files) == len(together)), [])

    def _find(self, name: str) -> Path | None:
        folders = (self.data_dir, self.data_dir / "d4rl", self.target.parent)
        return next((file for folder in folders if (file := folder / file_name(name)).is_file()), None)

    def prepare(self) -> None:
        """Download the file where it is missing.

        Raises:
            FileNotFoundError: It is missing and has no known checksum.
            ConnectionError: It is missing and cannot be fetched.
        """
        if self.files():
            return
        url = URL + self.target.name
        by_hand = (
            f"save {url} under that name, name the folder that holds {self.target.name} with --data.data_dir or "
            "MINRNN_DATA_DIR, or give its path as --data.dataset"
        )
        if self.name not in FILES:
            raise FileNotFoundError(
                f"The file {self.target} is missing, and not downloaded as its checksum is not known here; {by_hand}"
            )
        try:
            download(url, self.target, FILES[self.name][1])
        except ConnectionError as error:
            raise ConnectionError(f"The file {self.target} is missing and {error}; {by_hand}") from error

    def read(self) -> EpisodeArrays:
        """The episodes of the file or files.

        Raises:
            FileNotFoundError: There are none.
        """
        files = self.files()
        if not files:
            raise FileNotFoundError(f"{self.target} is missing; call prepare_data to download it")
        for file in files:
            size, official = file.stat().st_size, FILES.get(file.stem.replace("_", "-"), (None,))[0]
            if official and size != official:
                rank_zero_warn(f"{file} is not the file of D4RL: it has {size:,} bytes instead of {official:,}.")
        return concatenate((D4RLFile(file).episodes for file in files), self.name)


def file_name(name: str) -> str:
    """D4RL's file name of a data set: ``hopper_medium_replay-v2.hdf5`` for ``hopper-medium-replay-v2``."""
    return f"{name.removesuffix('-v2').replace('-', '_')}-v2.hdf5"
