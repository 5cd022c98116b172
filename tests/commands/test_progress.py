"""How a training goes is shown: lines in a file, a bar in a terminal, and the size of the model."""

import os
import pty
import re
import sys
import time
from types import SimpleNamespace

from forked import finish, start
from lightning.pytorch.callbacks import RichProgressBar

from minrnn_lightning.commands import fit
from minrnn_lightning.commands.progress import Pace, ProgressLines, TrainingProgressBar

LINE = re.compile(r"step ([\d,]+), train/loss [\d.]+(, val/loss [\d.]+)?, [\d.e+]+ steps/s, \d+:\d\d:\d\d left")


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("step ")]


def without_display(small: list[str]) -> list[str]:
    return [arg for arg in small if not arg.startswith(("--trainer.enable_progress_bar", "--trainer.enable_model"))]


def test_lines_at_validations_where_there_is_no_terminal(minrnn, small):
    code, out, errors = minrnn(
        "fit", *without_display(small), "--trainer.max_steps=9", "--trainer.val_check_interval=4"
    )
    assert code == 0, errors
    assert all(LINE.fullmatch(line) for line in lines(out)), out
    assert [line.split(",")[0] for line in lines(out)] == ["step 4", "step 8"]
    assert "val/loss" in out
    assert "Epoch" not in out
    assert "parameters" in out
    assert "FLOPs" not in out
    assert "not supported by the model summary" not in errors


def test_lines_every_few_minutes(minrnn, small, monkeypatch):
    monkeypatch.setattr(fit, "ProgressLines", lambda: ProgressLines(minutes=0))
    code, out, _ = minrnn("fit", *small, "--trainer.max_steps=3")
    assert code == 0
    assert [line.split(",")[0] for line in lines(out)] == ["step 1", "step 2", "step 3"]


def test_no_lines_beside_a_bar_of_the_recipe(minrnn, small):
    args = [*without_display(small), "--trainer.callbacks+=RichProgressBar", "--trainer.max_steps=4"]
    code, out, errors = minrnn("fit", *args, "--trainer.val_check_interval=2")
    assert code == 0, errors
    assert not lines(out)


def test_a_bar_with_the_time_left_in_a_terminal(small):
    ours, its = pty.openpty()
    args = [
        *without_display(small),
        "--trainer.max_steps=20",
        "--trainer.max_epochs=-1",
        "--trainer.precision=bf16-mixed",
    ]
    with start(["minrnn", "fit", *args], os.ttyname(its), {"COLUMNS": "150", "TERM": "xterm"}) as process:
        out = os.read(ours, 65536)
        os.close(its)
        try:
            while piece := os.read(ours, 65536):
                out += piece
        except OSError:  # how a terminal ends on Linux
            pass
        assert finish(process) == 0, out
    os.close(ours)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.decode())
    assert re.search(r"Epoch 0 .*left: \d+:\d\d:\d\d", text), text
    assert "/-2" not in text
    assert "FLOPs" not in text
    assert "not supported by the model summary" not in text
    assert not lines(text)


def test_pace():
    trainer = SimpleNamespace(global_step=100, estimated_stepping_batches=300)
    pace = Pace(trainer)
    assert pace.time_left(trainer) == ""
    pace.started = time.monotonic() - 50
    trainer.global_step = 200
    assert 1.9 < pace.steps_per_second(trainer) <= 2
    assert pace.time_left(trainer) == "0:00:50"
    for unlimited in (float("inf"), -1):
        pace.steps = unlimited
        assert pace.time_left(trainer) == ""


def test_a_bar_only_where_it_moves(monkeypatch):
    assert issubclass(TrainingProgressBar, RichProgressBar)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert fit.shows_bar()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: False))
    assert not fit.shows_bar()
