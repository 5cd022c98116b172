"""``AtomicCheckpointIO``, the plugin with which the Trainer writes and reads checkpoints."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from minrnn_lightning.checkpoint import read_checkpoint

WORKER_WEIGHTS = ".temp.ckpt"  # Lightning's name for a file in a folder for temporary files


class AtomicCheckpointIO(TorchCheckpointIO):
    """Plugin of the Trainer that writes checkpoints atomically and reads them without unpickling code.

    A checkpoint is written to a file in the same folder and then renamed. Lightning moves it there from the folder for
    temporary files, which may be on another disk: if the disk is full, half a file would replace the previous
    checkpoint. Checkpoints that Lightning finds by itself, such as those of a requeued Slurm job, are read here too.
    """

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read plain tensors and values only, whatever ``weights_only`` says.

        Weights alone are read where Lightning passes them on from the processes of ``ddp_fork`` and ``ddp_spawn``.

        Raises:
            CheckpointError: The checkpoint is not a local file, or contains Python objects.
        """
        if Path(path).name == WORKER_WEIGHTS:
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint; after an error the previous one is still there."""
        if "://" in str(path) or storage_options is not None:  # a URL
            return super().save_checkpoint(checkpoint, path, storage_options)
        os.makedirs(Path(path).parent, exist_ok=True)
        partial = Path(f"{path}.partial")
        try:
            # Not with Lightning's writer, whose transactions do not nest: its handler of Slurm's signal writes another
            # checkpoint wherever it interrupts the program, which may be here.
            content = BytesIO()  # as an error of the disk while torch.save runs would be hidden by another one
            torch.save(checkpoint, content)
            partial.write_bytes(content.getbuffer())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
