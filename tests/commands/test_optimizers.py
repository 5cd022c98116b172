"""Optimizers and learning rate schedules chosen on the command line."""

import csv
import itertools
import re

import pytest
import torch
import yaml
from command_line import equal, read

from minrnn_lightning.commands.optimizers import check_choices, explain_steps
from minrnn_lightning.errors import InputError

PLATEAU = [  # val/loss never gets better in this sense
    *("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"),
    *("--lr_scheduler.mode=max", "--lr_scheduler.patience=0"),
]
CHOICES = {
    "muon": ["--model.muon_lr=0.02"],
    "sgd": ["--optimizer=SGD", "--optimizer.lr=0.1", "--optimizer.momentum=0.9"],
    "both": ["--optimizer=RMSprop", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2", "--lr_scheduler.gamma=0.5"],
    "schedule": ["--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.9"],
    "plateau": [*PLATEAU, "--trainer.check_val_every_n_epoch=null"],
}


def rates(run):
    """The logged learning rates of each step."""
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    column = next(name for name in rows[0] if name.startswith("lr-"))
    return [float(row[column]) for row in rows if row[column]]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_resumed_run_equals_the_uninterrupted_one(minrnn, small, tmp_path, choice):
    words = [*small, *CHOICES[choice], "--trainer.max_steps=6", "--trainer.val_check_interval=2"]
    words += ["--trainer.callbacks+=LearningRateMonitor"]
    assert minrnn("fit", *words)[0] == 0
    stop = ["--trainer.callbacks+=faulty_callbacks.PressCtrlC", "--trainer.callbacks.step=2"]
    assert minrnn("fit", *words, *stop)[0] == 130
    runs = [tmp_path / f"runs/version_{number}" for number in range(3)]
    assert minrnn("fit", *words, f"--ckpt_path={runs[1]}/checkpoints/last.ckpt")[0] == 0
    whole, resumed = (read(run / "checkpoints/last.ckpt") for run in (runs[0], runs[2]))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(whole[part], resumed[part]), part
    assert rates(runs[0]) == rates(runs[1])[:3] + rates(runs[2])


def test_a_chosen_optimizer_has_the_schedule_of_the_task(minrnn, small, tmp_path):
    words = [*small, "--optimizer=SGD", "--optimizer.lr=0.1", "--trainer.max_steps=6", "--model.warmup=1"]
    assert minrnn("fit", *words, "--trainer.callbacks+=LearningRateMonitor")[0] == 0
    run = tmp_path / "runs/version_0"
    logged = rates(run)
    assert logged[:2] == [0.05, 0.1]
    assert all(before > after for before, after in itertools.pairwise(logged[1:]))
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["class_path"] == "torch.optim.SGD"
    (group,) = read(run / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["momentum"] == 0


def test_a_chosen_schedule_counts_steps(minrnn, small, tmp_path):
    words = [*small, "--optimizer=SGD", "--optimizer.lr=1.0", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    code, _, _ = minrnn("fit", *words, "--trainer.max_steps=4", "--trainer.callbacks+=LearningRateMonitor")
    assert code == 0
    assert rates(tmp_path / "runs/version_0") == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_reducing_on_a_plateau_counts_validations(minrnn, small, tmp_path):
    words = [*small, *PLATEAU, "--trainer.max_steps=7", "--trainer.val_check_interval=2"]
    words += ["--trainer.check_val_every_n_epoch=null", "--trainer.callbacks+=LearningRateMonitor"]
    assert minrnn("fit", *words)[0] == 0
    assert rates(tmp_path / "runs/version_0") == pytest.approx([1e-3] * 4 + [1e-4] * 2 + [1e-5])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr_scheduler.monitor=val/nothing"], "one of those logged, .*val/loss.*, got val/nothing: give another"),
        (["--trainer.limit_val_batches=0"], "this run has none: set trainer.limit_val_batches above 0, or choose"),
    ],
)
def test_reducing_on_a_plateau_needs_validations_with_the_metric(minrnn, small, words, message):
    code, _, errors = minrnn("fit", *small, *PLATEAU, *words, "--trainer.max_steps=2", "--trainer.val_check_interval=1")
    assert code == 1
    assert re.search(message, errors.splitlines()[-1])
    assert "Traceback" not in errors


def test_another_optimizer_than_that_of_the_checkpoint(minrnn, small, checkpoint):
    words = ["--optimizer=SGD", "--optimizer.lr=0.1", "--trainer.max_steps=5", f"--ckpt_path={checkpoint}"]
    code, _, errors = minrnn("fit", *small, *words)
    assert code == 1
    assert "trained with AdamW, this run uses SGD" in errors
    assert errors.splitlines()[-1].startswith("minrnn: ")


def test_an_unknown_optimizer(minrnn, small):
    code, _, errors = minrnn("fit", *small, "--optimizer=Sdg", "--optimizer.lr=0.1")
    assert code in (1, 2)
    assert "Sdg" in errors
    assert "Traceback" not in errors


def test_rates_have_the_same_names_with_and_without_muon(minrnn, small, tmp_path):
    words = ["--model.muon_lr=0.02", "--model.lr=0.01", "--model.warmup=0", "--trainer.max_steps=1"]
    assert minrnn("fit", *small, *words, "--trainer.callbacks+=LearningRateMonitor")[0] == 0
    with (tmp_path / "runs/version_0/metrics.csv").open() as lines:
        (row,) = (row for row in csv.DictReader(lines) if row.get("lr-AdamW/pg1"))
    assert {name: float(rate) for name, rate in row.items() if name.startswith("lr-")} == {
        "lr-AdamW/muon": 0.02,
        "lr-AdamW/pg1": 0.01,
        "lr-AdamW/pg2": 0.01,
    }


CHOSEN = {"optimizer": {"class_path": "SGD"}, "lr_scheduler": {"class_path": "StepLR"}}


def parts(**options):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, **{"step_size": 1, **options})


def test_errors_of_steps_name_the_option():
    optimizer, schedule = parts(step_size=0)
    with (
        pytest.raises(InputError, match=r"^the options of --lr_scheduler StepLR .*zero$"),
        explain_steps(CHOSEN),
    ):
        schedule.step()
    optimizer.param_groups[0]["lr"] = 1e300
    with pytest.raises(InputError, match=r"^the options of --optimizer SGD .*overflow$"), explain_steps(CHOSEN):
        optimizer.step()
    own = {**CHOSEN, "optimizer": None}
    with pytest.raises(RuntimeError, match="overflow") as caught, explain_steps(own):  # of the task's own optimizer
        optimizer.step()
    assert not isinstance(caught.value, InputError)


def test_errors_of_the_model_are_not_those_of_the_optimizer():
    def closure():
        return torch.ones(2) @ torch.ones(3)

    optimizer, _ = parts()
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as caught, explain_steps(CHOSEN):
        optimizer.step(closure)
    assert not isinstance(caught.value, InputError)


def test_numbers_of_other_packages_are_their_own():
    check_choices({"optimizer": {"class_path": "my_package.Own", "init_args": {"lr": float("inf")}}})
    with pytest.raises(InputError, match=r"^optimizer[.]lr must be a finite number, got inf$"):
        check_choices({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": float("inf")}}})
