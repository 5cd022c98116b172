"""The checkpoints in the folder of a recipe's runs."""

import os
from pathlib import Path

from minrnn_lightning.checkpoint import CheckpointError, read_checkpoint


def last_checkpoint(folder: str | Path) -> Path | None:
    """The most recent ``last.ckpt`` among the runs of a folder; None if there is none.

    Args:
        folder: The ``default_root_dir`` of the runs, with a folder ``version_N`` for each.
    """
    return max(Path(folder).glob("version_*/checkpoints/last.ckpt"), key=os.path.getmtime, default=None)


def find_checkpoint(name: str, folder: str | Path) -> Path:
    """The checkpoint ``last`` or ``best`` of the most recent run in a folder.

    Args:
        name: ``last`` is the end of the run, ``best`` the best one according to its ModelCheckpoint with a ``monitor``.
        folder: The ``default_root_dir`` of the runs.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    last = last_checkpoint(folder)
    if last is None:
        raise CheckpointError(f"--ckpt_path {name} finds no run with a last.ckpt in {folder}; give a file instead")
    if name == "last":
        return last
    for key, state in read_checkpoint(last).get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint") and isinstance(state, dict) and state.get("best_model_path"):
            if "'monitor': None" in key:
                continue
            best = last.parent / Path(state["best_model_path"]).name  # the folder may have been moved since
            if best.is_file():
                return best
    raise CheckpointError(
        f"--ckpt_path {name} finds none in {last.parent}: a run keeps it where a ModelCheckpoint with a monitor is "
        "among trainer.callbacks; give last or a file instead"
    )
