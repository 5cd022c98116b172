"""Runs that are stopped, resumed or diverge: nothing is lost or left out, and the settings are those asked for."""

import csv
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import faulty_callbacks
import numpy as np
import pytest
import torch
from command_line import check_refused, command, equal, read
from faulty_callbacks import Spoil
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from minrnn_lightning import LanguageTask, TaggingTask
from minrnn_lightning.callbacks import InterruptibleCheckpoint, interruptible_checkpoint
from minrnn_lightning.checkpoint import AtomicCheckpointIO, CheckpointError, find_checkpoint, plain
from minrnn_lightning.generate import DivergedError, load_language_task, sample

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def curve(*runs: Path, metric: str = "val/loss") -> dict[int, str]:
    """What was logged at each step, over the parts of a run."""
    points = {}
    for run in runs:
        with (run / "metrics.csv").open() as lines:
            points |= {int(row["step"]): row[metric] for row in csv.DictReader(lines) if row.get(metric)}
    return points


@pytest.fixture
def run(minrnn, small, tmp_path):
    """Train the small model with validations every 4 steps; returns the exit code, errors and the folder of the run."""

    def fit(*args: object):
        best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
        every = ["--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"]
        code, _, errors = minrnn("fit", *small, *best, "--trainer.callbacks.filename={step}", *every, *args)
        return code, errors, max((tmp_path / "runs").glob("version_*"), key=os.path.getmtime, default=None)

    return fit


def same_state(one: Path, other: Path) -> bool:
    one, other = (read(folder / "checkpoints/last.ckpt") for folder in (one, other))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "seed", "global_step")
    return all(equal(one[part], other[part]) for part in parts)


def best(folder: Path) -> tuple[str, float]:
    """Name and score of what the ModelCheckpoint of a run holds for the best."""
    states = read(folder / "checkpoints/last.ckpt")["callbacks"]
    state = next(state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    return Path(state["best_model_path"]).name, float(state["best_model_score"])


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
    process = subprocess.Popen(command("fit", *small, *args), stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while not last.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
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
    process = subprocess.Popen(
        command("fit", *small, *args), stderr=subprocess.PIPE, text=True, env={**os.environ, **slurm}
    )
    try:
        end = time.monotonic() + 300
        while not last.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        while not (tmp_path / "requeued").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", errors
    assert list((tmp_path / "runs").glob("hpc_ckpt_*.ckpt"))
    assert process.returncode == 143, errors


# When last.ckpt is written


def test_last_checkpoint_is_written_by_time_too(run):
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


# A checkpoint and the settings of the run that goes on from it


def test_resumed_run_has_the_settings_that_are_given(run, caplog):
    code, errors, first = run("--trainer.max_steps=6", "--model.lr=1e-2")
    assert code == 0, errors
    args = ["--trainer.max_steps=16", "--model.lr=1e-4", "--model.weight_decay=0.3", "--model.warmup=9"]
    code, errors, second = run(
        *args, "--trainer.callbacks+=LearningRateMonitor", f"--ckpt_path={first}/checkpoints/last.ckpt"
    )
    assert code == 0, errors
    line = next(message for message in caplog.messages if "differ from those of the checkpoint" in message)
    assert all(
        part in line for part in ("lr 0.0001 (checkpoint: 0.01)", "weight_decay 0.3 (", "max_steps 16 (checkpoint: 6)")
    )
    assert "dim" not in line
    rates = curve(second, metric="lr-AdamW/pg1")
    rise = {step: 1e-4 * (step + 1) / 10 for step in (6, 7, 8)}
    assert {step: pytest.approx(rate) for step, rate in rise.items()} == {step: float(rates[step]) for step in rise}
    assert float(rates[12]) == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi * 3 / 7)))
    groups = read(second / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_no_line_where_nothing_differs(run, caplog):
    code, errors, first = run(
        "--trainer.max_steps=6", "--trainer.callbacks+=faulty_callbacks.Send", "--trainer.callbacks.step=2"
    )
    assert code == 130, errors
    assert run("--trainer.max_steps=6", f"--ckpt_path={first}/checkpoints/last.ckpt")[0] == 0
    assert not any("differ from" in message for message in caplog.messages)


def test_names_of_checkpoints(run, minrnn, small, tmp_path, caplog):
    check_refused(minrnn("fit", *small, "--ckpt_path=last"), "--ckpt_path last finds no run", "runs")
    check_refused(minrnn("validate", *small, "--ckpt_path=best"), "--ckpt_path best finds no run", "runs")
    code, errors, first = run("--trainer.max_steps=8")
    assert code == 0, errors
    first = first.rename(tmp_path / "runs/version_7")  # where it was written does not matter
    for name, file in (("last", "last.ckpt"), ("best", best(first)[0])):
        caplog.clear()
        code, _, errors = minrnn("validate", *small, f"--ckpt_path={name}")
        assert code == 0, errors
        assert f"Checkpoint: {first}/checkpoints/{file}" in caplog.messages
    code, errors, second = run("--trainer.max_steps=12", "--ckpt_path=last")
    assert code == 0, errors
    assert read(second / "checkpoints/last.ckpt")["global_step"] == 12
    assert find_checkpoint("last", tmp_path / "runs") == second / "checkpoints/last.ckpt"
    for file in second.glob("checkpoints/step=*.ckpt"):
        file.unlink()
    with pytest.raises(CheckpointError, match="best finds none in"):
        find_checkpoint("best", tmp_path / "runs")


def test_foreign_code_never_runs(minrnn, small, checkpoint, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    evil = tmp_path / "evil"
    torch.save({**read(checkpoint), "x": Evil()}, evil)
    for command_ in (["fit", "--trainer.max_steps=5"], ["validate"], ["test"], ["predict"]):
        for path in (
            "http://127.0.0.1:9/evil",
            "file://" + str(evil),
            "s3://bucket/x.ckpt",
            str(evil),
            "registry:x",
            "hpc",
        ):
            check_refused(minrnn(*command_, *small, f"--ckpt_path={path}"), path)
        check_refused(minrnn(*command_, *small, f"--ckpt_path={checkpoint}", "--weights_only=false"), "weights_only")
    runs = tmp_path / "runs"  # what Lightning takes by itself in a job of Slurm
    runs.mkdir(exist_ok=True)
    torch.save({**read(checkpoint), "x": Evil()}, runs / "hpc_ckpt_1.ckpt")
    for name in ("SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    code, _, _ = minrnn("fit", *small, "--trainer.max_steps=5")
    assert code == 1
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(evil, weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_plain_values():
    given = {"lr": np.float64(0.5), "sizes": (np.int64(1), torch.tensor(2)), "at": Path("a"), "on": np.bool_(True)}
    assert plain(given, "x") == {"lr": 0.5, "sizes": (1, 2), "at": "a", "on": True}
    assert {type(value) for value in plain(given, "x").values()} == {float, tuple, str, bool}
    assert plain(np.arange(3), "x") == [0, 1, 2]
    with pytest.raises(ValueError, match=r"options\.net is a Linear, which a checkpoint cannot hold"):
        plain({"net": torch.nn.Linear(1, 1)}, "options")


def test_numbers_of_numpy_as_hyper_parameters(text, tmp_path):
    from minrnn_lightning import TextDataModule

    data = TextDataModule(
        str(text), batch_size=np.int64(4), length=np.int32(16), data_dir=tmp_path, held_out=np.float32(0.2)
    )
    task = LanguageTask(
        data.input_size,
        data.output_size,
        dim=np.int64(16),
        depth=1,
        lr=np.logspace(-3, -2, 1)[0],
        dropout=np.float32(0.1),
    )
    trainer = Trainer(max_steps=2, limit_val_batches=1, **QUIET)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    read(tmp_path / "a.ckpt")
    loaded, _ = load_language_task(tmp_path / "a.ckpt")
    assert loaded.lr == task.lr == 1e-3
    Trainer(max_steps=3, limit_val_batches=1, **QUIET).fit(task, data, ckpt_path=tmp_path / "a.ckpt")


def test_other_hyper_parameters_are_refused_before_training():
    class Mine(LanguageTask):
        def __init__(self, net, **options):
            super().__init__(65, 65, dim=16, depth=1, **options)
            self.net = net

    x = torch.randint(65, (2, 2, 8))
    loader = DataLoader(list(zip(x, x, strict=True)), batch_size=None)
    with pytest.raises(ValueError, match="net is a Linear, which a checkpoint cannot hold"):
        Trainer(max_steps=1, **QUIET).fit(Mine(torch.nn.Linear(1, 1)), loader)
    task = Mine(torch.nn.Linear(1, 1))
    del task.hparams["net"]
    Trainer(max_steps=1, **QUIET).fit(task, loader)


@pytest.mark.parametrize("average", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_last_checkpoint_keeps_the_trained_weights_next_to_an_average(run, average):
    args = [f"--trainer.callbacks+={average}"]
    args += ["--trainer.callbacks.swa_lrs=1e-3", "--trainer.callbacks.swa_epoch_start=1"] * average.startswith("Sto")
    ends = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.val_check_interval=3"]
    code, errors, full = run(*ends, *args)
    assert code == 0, errors
    saved = read(full / "checkpoints/last.ckpt")
    if average.startswith("EMA"):
        assert not all(
            torch.equal(tensor, saved["state_dict"][name]) for name, tensor in saved["current_model_state"].items()
        )
        code, errors, plain_run = run(*ends)
        assert code == 0, errors
        assert equal(saved["current_model_state"], read(plain_run / "checkpoints/last.ckpt")["state_dict"])


# Runs that diverge


def nan_task(task_class, **options):
    torch.manual_seed(0)
    task = task_class(65, 65, dim=16, depth=1, **options)
    with torch.no_grad():
        task.encoder.weight[7] = math.nan  # the embedding of one rare token
    return task


@pytest.mark.parametrize("position", [0, 1, 3])
def test_nan_in_one_batch_is_the_loss(position):
    x = torch.randint(8, 65, (4, 8, 32))
    loader = lambda x: DataLoader(list(zip(x, x, torch.full((4, 8), 32), strict=True)), batch_size=None)  # noqa: E731
    assert math.isfinite(Trainer(**QUIET).validate(nan_task(TaggingTask), loader(x), verbose=False)[0]["val/loss"])
    x[position, 0, 0] = 7
    assert math.isnan(Trainer(**QUIET).validate(nan_task(TaggingTask), loader(x), verbose=False)[0]["val/loss"])


def test_a_diverged_run_stops_and_keeps_its_checkpoints(run, tmp_path):
    samples = ["--trainer.callbacks+=TextSamples", "--trainer.callbacks.max_new_tokens=5"]
    stop = ["--trainer.callbacks+=faulty_callbacks.Spoil", "--trainer.callbacks.step=6"]
    result = run("--trainer.max_steps=20", *samples, *stop)
    code, errors, folder = result
    check_refused((code, "", errors), "the training has diverged: val/loss is nan after step 8", "model.lr")
    assert read(folder / "checkpoints/last.ckpt")["global_step"] == 4
    assert [file.name for file in folder.glob("checkpoints/step=*.ckpt")] == ["step=4.ckpt"]


def test_model_checkpoint_never_calls_nan_the_best(tmp_path):
    task = LanguageTask(65, 65, dim=16, depth=1)
    x = torch.randint(65, (6, 2, 8))
    loader = DataLoader(list(zip(x, x, strict=True)), batch_size=None)
    keep = ModelCheckpoint(tmp_path, monitor="val/loss", filename="{step}")
    options = {**QUIET, "enable_checkpointing": True, "max_steps": 6, "val_check_interval": 2}
    Trainer(callbacks=[Spoil(3), keep], **options).fit(task, loader, loader)
    assert Path(keep.best_model_path).name == "step=2.ckpt"
    assert math.isfinite(keep.best_model_score)


@pytest.mark.parametrize("logits", [[math.nan] * 5, [0.0, math.nan, 1.0], [0.0, math.inf], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_drawn_from_what_is_no_number(logits, temperature):
    with pytest.raises(DivergedError, match="its training has diverged"):
        sample(torch.tensor([logits]), temperature)
    assert sample(torch.tensor([[-math.inf, 0.0]]), temperature).item() == 1


# Encodings


@pytest.mark.slow
def test_other_encodings_than_utf8(small, tmp_path):
    (tmp_path / "über.txt").write_text("na\u00efve \u2192 \u201cquoted\u201d \u4e2d\u6587 \n" * 200, encoding="utf-8")
    recipe = """\ufeff# Über Größe
trainer:
  max_steps: 1
  val_check_interval: 1
  limit_val_batches: 1
  callbacks: [{class_path: TextSamples, init_args: {prompt: \u4e2d, max_new_tokens: 5}}]
"""
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    args = [*small, f"--data.path={tmp_path}/über.txt", "--config", tmp_path / "recipe.yaml"]
    plain_c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as a Windows that is not set to UTF-8
    for environment in (plain_c, {"PYTHONIOENCODING": "cp1252"}):
        run = subprocess.run(command("fit", *args), capture_output=True, env={**os.environ, **environment})
        assert run.returncode == 0, run.stderr
        assert b"A sample after 1 steps" in run.stdout
    run = subprocess.run(command("recipes"), capture_output=True, env={**os.environ, **plain_c})
    assert run.returncode == 0, run.stderr
