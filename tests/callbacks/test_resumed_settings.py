"""A resumed run has the settings that are asked for; checkpoints hold plain values and are found by name."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import check_refused, equal, read
from lightning.pytorch import Trainer
from old_torch import averaging
from runs import QUIET, best, curve
from torch.utils.data import DataLoader

from minrnn_lightning import LanguageTask
from minrnn_lightning.checkpoint import CheckpointError, plain
from minrnn_lightning.checkpoint_io import AtomicCheckpointIO
from minrnn_lightning.commands.run_checkpoints import find_checkpoint
from minrnn_lightning.generate import load_language_task


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


@pytest.mark.parametrize("average", ["EMAWeightAveraging", pytest.param("StochasticWeightAveraging", marks=averaging)])
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
