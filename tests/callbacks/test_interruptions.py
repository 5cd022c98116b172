"""Runs that are stopped and resumed: nothing is lost or left out."""

import os
import signal
import time
from pathlib import Path

import faulty_callbacks
import numpy as np
import pytest
import torch
from command_line import read
from forked import finish, start
from lightning.pytorch import Callback, Trainer
from runs import QUIET, best, curve, same_state
from torch.utils.data import DataLoader

from minrnn_lightning import LanguageTask
from minrnn_lightning.callbacks import InterruptibleCheckpoint, interruptible_checkpoint

# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("step", [6, 8], ids=["between validations", "before a validation"])
def test_a_signal_loses_nothing(run, number, step):
    code, errors, full = run("--trainer.max_steps=12")
    assert code == 0, errors
    stop = ["--trainer.callbacks+=faulty_callbacks.Send", f"--trainer.callbacks.step={step - 1}"]
    code, errors, half = run("--trainer.max_steps=12", *stop, f"--trainer.callbacks.number={int(number)}")
    assert code == 128 + number
    assert "Traceback" not in errors
    assert read(half / "checkpoints/last.ckpt")["global_step"] == step
    code, errors, rest = run("--trainer.max_steps=12", f"--ckpt_path={half}/checkpoints/last.ckpt")
    assert code == 0, errors
    assert same_state(full, rest)
    assert curve(half, rest) == curve(full)
    assert best(rest)[1] == best(full)[1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_a_validation_waits_for_its_end(run):
    code, errors, full = run("--trainer.max_steps=12")
    assert code == 0, errors
    code, _, half = run(
        "--trainer.max_steps=12",
        "--trainer.callbacks+=faulty_callbacks.SendInValidation",
        "--trainer.callbacks.step=8",
    )
    assert code == 143
    code, errors, rest = run("--trainer.max_steps=12", f"--ckpt_path={half}/checkpoints/last.ckpt")
    assert code == 0, errors
    assert same_state(full, rest)
    assert curve(half, rest) == curve(full)


@pytest.mark.parametrize("stop", [["Send", 3], ["SendInValidation", 2]], ids=["training", "validation"])
def test_accumulated_gradients_are_used_before_a_run_ends(run, stop):
    args = [
        "--trainer.max_steps=7",
        "--trainer.accumulate_grad_batches=3",
    ]  # every second step is validated halfway
    code, errors, full = run(*args)
    assert code == 0, errors
    name, step = stop
    code, _, half = run(*args, f"--trainer.callbacks+=faulty_callbacks.{name}", f"--trainer.callbacks.step={step}")
    assert code in (130, 143)
    code, errors, rest = run(*args, f"--ckpt_path={half}/checkpoints/last.ckpt")
    assert code == 0, errors
    assert same_state(full, rest)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_from_outside(small, tmp_path, number):
    args = ["--trainer.max_steps=1000000", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    with start(["minrnn", "fit", *small, *args], tmp_path / "out") as process:
        end = time.monotonic() + 300
        while not last.exists() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(process.pid, number)
        code, errors = finish(process), (tmp_path / "out").read_text()
    assert code == 128 + number, errors
    assert "Traceback" not in errors
    assert "Saved" in errors
    assert read(last)["global_step"] > 0


@pytest.mark.slow
def test_a_requeue_of_slurm_is_left_to_lightning(small, tmp_path):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm |= {
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS_PER_NODE": "1",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    args = ["--trainer.max_steps=1000000", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    with start(["minrnn", "fit", *small, *args], tmp_path / "out", slurm) as process:
        end = time.monotonic() + 300
        while not last.exists() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGUSR1)
        while not (tmp_path / "requeued").exists() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        code, errors = finish(process), (tmp_path / "out").read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", errors
    assert list((tmp_path / "runs").glob("hpc_ckpt_*.ckpt"))
    assert code == 143, errors


# When last.ckpt is written


def test_last_checkpoint_is_written_by_time_too(run, monkeypatch):
    monkeypatch.setattr(interruptible_checkpoint, "SLOW_DISK", 1e15)  # else five short steps are too few to pay for it
    existed = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *args):
            existed.append(Path(trainer.log_dir, "checkpoints/last.ckpt").exists())

    faulty_callbacks.Look = Look
    code, errors, folder = run(
        *("--trainer.max_steps=5", "--trainer.limit_val_batches=0", "--checkpoint_minutes=1e-6"),
        "--trainer.callbacks+=faulty_callbacks.Look",
    )
    assert code == 0, errors
    assert not existed[0]
    assert existed[-1]
    assert read(folder / "checkpoints/last.ckpt")["global_step"] == 5


def test_saving_by_time_takes_one_percent_at_most(monkeypatch, tmp_path):
    clock = [0.0]
    saves = []
    monkeypatch.setattr(interruptible_checkpoint.time, "monotonic", lambda: clock[0])

    def save(trainer, path, weights_only):
        saves.append(clock[0])
        clock[0] += 2.0  # seconds

    class Second(Callback):
        def on_train_batch_start(self, trainer, *args):
            clock[0] += 1.0

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    last = InterruptibleCheckpoint(minutes=1)
    task = LanguageTask(65, 65, dim=16, depth=1)
    x = torch.randint(65, (500, 1, 8))
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": 1, "default_root_dir": tmp_path}
    Trainer(callbacks=[Second(), last], **options).fit(task, DataLoader(list(zip(x, x, strict=True)), batch_size=None))
    assert saves[0] == 60
    between = np.diff(saves[:-1])  # the last one is that of the end
    assert len(between) >= 2
    assert (between >= 100 * 2.0).all()


@pytest.mark.parametrize("minutes", ["-1", "x"])
def test_odd_minutes_are_refused(minrnn, small, minutes):
    code, _, errors = minrnn("fit", *small, f"--checkpoint_minutes={minutes}")
    assert code in (1, 2)
    assert "checkpoint_minutes" in errors.strip().splitlines()[-1]
