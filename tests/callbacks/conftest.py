"""A small model to train with the command."""

import os

import pytest


@pytest.fixture
def run(minrnn, small, tmp_path):
    """Train the small model with validations every 4 steps; returns the exit code, errors and the folder of the run."""

    def fit(*args: object):
        best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
        every = ["--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"]
        code, _, errors = minrnn("fit", *small, *best, "--trainer.callbacks.filename={step}", *every, *args)
        return code, errors, max((tmp_path / "runs").glob("version_*"), key=os.path.getmtime, default=None)

    return fit
