"""Reading the arrays of HDF5 and NumPy files, without running code or following links to other files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minrnn_lightning.data.extra import rl_module
from minrnn_lightning.errors import InputError, packages_passed

Array = npt.NDArray[Any]

ARRAYS = ("observations", "actions", "rewards")


def read_hdf5(file: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Arrays of an HDF5 file by name; of the optional ones those that are there.

    Raises:
        InputError: The package h5py is missing, the file is damaged, a required array is missing, or a part of it is
            stored in another file.
    """
    h5py = rl_module("h5py")
    try:
        with h5py.File(file, "r") as group:
            refuse_other_files(file, group)
            names = [name for name in (*required, *optional) if isinstance(group.get(name), h5py.Dataset)]
            if missing := [name for name in required if name not in names]:
                raise InputError(missing_array(file, missing[0], group))
            return {name: np.asarray(group[name][()]) for name in names}
    except (OSError, RuntimeError, KeyError, TypeError) as error:  # h5py has no error of its own for damage
        if packages_passed(error)[-1] != "h5py":
            raise
        reason = str(error).replace("\n", " ")
        raise InputError(f"{file} is damaged or no HDF5 file ({reason}); fetch or make it again") from error


def refuse_other_files(file: Path, group: Any) -> None:
    """Refuse an open HDF5 file of which any part is stored in another file, before that file is opened.

    HDF5 would follow external links, virtual data sets and external storage to any file that the user may read, and
    return it as data. A soft link to one of these is refused with it, as it only names another link of the file.

    Args:
        file: Its path, for the message.
        group: The file as h5py has opened it.

    Raises:
        InputError: A part is stored elsewhere; the message names it.
    """
    h5d, h5l, h5o = (rl_module(f"h5py.{name}") for name in ("h5d", "h5l", "h5o"))  # several times as fast as h5py.Group

    def is_external_link(name: bytes, about: Any) -> tuple[bytes, str] | None:
        return None if about.type in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else (name, "an external link")

    def is_stored_elsewhere(name: bytes, about: Any) -> tuple[bytes, str] | None:
        if about.type != h5o.TYPE_DATASET:
            return None
        made = h5d.open(group.id, name).get_create_plist()
        if made.get_external_count():
            return name, "external storage"
        virtual = made.get_virtual_count() if made.get_layout() == h5d.VIRTUAL else 0
        return (
            (name, "a virtual data set") if any(made.get_virtual_filename(n) != "." for n in range(virtual)) else None
        )

    if found := group.id.links.visit(is_external_link, info=True) or h5o.visit(
        group.id, is_stored_elsewhere, info=True
    ):
        raise InputError(
            f"{file} has {found[0].decode(errors='replace')!r} not in itself but in another file ({found[1]}), which "
            "is not read; copy it into the file"
        )


def read_npz(file: Path) -> dict[str, Array]:
    """The arrays of an episode in a NumPy file by name; pickled objects are refused, so that no code is run.

    Raises:
        InputError: The file is damaged or holds Python objects.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (*ARRAYS, "terminals") if name in arrays}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged or no .npz file of plain arrays ({error})") from error


def missing_array(file: Path, name: str, found: Iterable[str]) -> str:
    """The error message about an array that a file does not have."""
    return f"{file} has no array {name!r}; it has {', '.join(map(repr, found)) or 'none'}"
