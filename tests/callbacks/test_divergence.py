"""Runs that diverge: NaN is seen, the run stops, and its checkpoints are kept."""

import math
from pathlib import Path

import pytest
import torch
from command_line import check_refused, read
from faulty_callbacks import Spoil
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import QUIET
from torch.utils.data import DataLoader

from minrnn_lightning import LanguageTask, TaggingTask
from minrnn_lightning.generate import DivergedError, sample


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
