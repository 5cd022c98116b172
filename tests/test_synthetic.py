"""The synthetic tasks through the command: they learn, resume, draw, and answer bad input with one sentence."""

import csv
from pathlib import Path

import pytest
import torch
from forked import run_two
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minrnn_lightning.commands.benchmark import train

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
TINY = [*QUIET, "--trainer.precision=32-true", "--model=TaggingTask", "--model.dim=16", "--model.depth=1"]
LISTOPS = [
    *(*QUIET, "--model=ClassificationTask", "--model.dim=8", "--model.depth=1", "--data=ListOpsDataModule"),
    *("--data.shortest=5", "--data.length=30", "--data.sizes=[4,2,2]", "--data.batch_size=2"),
]
COPY = [
    *(*TINY, "--model.warmup=5", "--data=SelectiveCopyingDataModule", "--data.length=8", "--data.data_tokens=2"),
    *("--data.batch_size=16", "--data.vocab_size=6", "--data.eval_lengths=[8,16]", "--data.eval_batches=4"),
]


def last_scores(folder: Path) -> dict[str, float]:
    """The last value of every logged metric."""
    scores = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            scores |= {name: float(value) for name, value in row.items() if value}
    return scores


def test_learns_and_draws(minrnn, tmp_path):
    """Two data tokens among eight positions, and among twice as many."""
    args = [*COPY, "--model.lr=1e-2", "--model.mlp_ratio=2", "--trainer.callbacks+=AccuracyByLengthPlot"]
    args += [f"--trainer.default_root_dir={tmp_path}"]
    limits = ["--trainer.max_steps=300", "--trainer.val_check_interval=150", "--trainer.check_val_every_n_epoch=null"]
    code, _, errors = minrnn("fit", *args, *limits)
    assert code == 0, errors
    scores = last_scores(tmp_path / "version_0")
    assert scores["val/accuracy/8"] > 0.85
    assert scores["val/accuracy"] == pytest.approx((scores["val/accuracy/8"] + scores["val/accuracy/16"]) / 2)
    assert scores["val/scaled_accuracy"] == pytest.approx((scores["val/accuracy"] - 1 / 4) / (3 / 4))
    assert scores["val/baseline"] == pytest.approx(1 / 4, abs=0.05)
    events = EventAccumulator(str(tmp_path / "version_0"))
    events.Reload()
    pictures = events.Images("val/accuracy by length")
    assert [picture.step for picture in pictures] == [150, 300]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    checkpoint = f"--ckpt_path={tmp_path}/version_0/checkpoints/last.ckpt"
    code, out, errors = minrnn("test", *args, checkpoint)
    assert code == 0, errors
    assert all(name in out for name in ("test/accuracy", "test/scaled_accuracy", "test/baseline", "test/accuracy/16"))
    assert minrnn("predict", *args, checkpoint)[0] == 0


def test_no_picture_without_matplotlib(minrnn, tmp_path, monkeypatch):
    monkeypatch.setattr("minrnn_lightning.callbacks.accuracy_by_length.find_spec", lambda name: None)
    said = []
    monkeypatch.setattr("minrnn_lightning.callbacks.accuracy_by_length.rank_zero_info", said.append)
    args = [
        "--trainer.max_steps=2",
        "--trainer.callbacks+=AccuracyByLengthPlot",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    code, _, errors = minrnn("fit", *COPY, *args, "--trainer.val_check_interval=2")
    assert code == 0, errors
    assert said[0].startswith("No plot without matplotlib: pip install")
    events = EventAccumulator(str(tmp_path / "version_0"))
    events.Reload()
    assert events.Tags()["images"] == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_within_an_epoch_and_a_curriculum(minrnn, tmp_path, num_workers):
    args = [*COPY, "--data.steps_per_epoch=4", "--data.curriculum=[[3,4,8],[6,6,4]]", "--model.dropout=0.1"]
    args += [f"--data.num_workers={num_workers}", "--model.warmup=100"]  # one learning rate whatever max_steps
    full, half = tmp_path / "full", tmp_path / "half"
    assert minrnn("fit", *args, "--trainer.max_steps=12", f"--trainer.default_root_dir={full}")[0] == 0
    assert minrnn("fit", *args, "--trainer.max_steps=7", f"--trainer.default_root_dir={half}")[0] == 0
    checkpoint = f"--ckpt_path={half}/version_0/checkpoints/last.ckpt"
    assert minrnn("fit", *args, "--trainer.max_steps=12", f"--trainer.default_root_dir={half}", checkpoint)[0] == 0
    one = torch.load(full / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    two = torch.load(half / "version_1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_two_processes(minrnn, tmp_path):
    args = [*COPY, "--trainer.max_steps=3", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=5"]
    args += ["--trainer.val_check_interval=3", f"--trainer.default_root_dir={tmp_path}"]
    run_two(["minrnn", "fit", *args], tmp_path)
    shared = last_scores(tmp_path / "version_0")
    checkpoint = f"--ckpt_path={tmp_path}/version_0/checkpoints/last.ckpt"
    args = [*COPY, "--data.batch_size=5", f"--trainer.default_root_dir={tmp_path}", checkpoint]
    assert minrnn("validate", *args)[0] == 0
    alone = last_scores(tmp_path / "version_1")
    for name in ("val/accuracy", "val/accuracy/8", "val/accuracy/16"):
        assert shared[name] == pytest.approx(alone[name], abs=1e-6), name


@pytest.mark.parametrize("args", [COPY, LISTOPS], ids=["tagging", "classification"])
def test_training_step_is_timed(minrnn, tmp_path, monkeypatch, args):
    monkeypatch.setattr(train, "REPEATS", 1)
    folder = [f"--data.data_dir={tmp_path}"] if args is LISTOPS else []
    code, out, errors = minrnn("benchmark", "train", *args, *folder)
    assert code == 0, errors
    assert train.STEP in out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--data.length=1"], "2 data tokens do not fit into length 1; raise length or lower data_tokens"),
        (["--data.vocab_size=2"], "vocab_size must be at least 3: the query, the noise and a data symbol, got 2"),
        (["--data.curriculum=[[1,1,1]]"], "2 data tokens do not fit into length 1; raise length or lower data_tokens"),
    ],
)
def test_one_sentence_for_bad_input(minrnn, tmp_path, args, sentence):
    code, _, errors = minrnn("fit", *COPY, *args, f"--trainer.default_root_dir={tmp_path}")
    assert code == 1
    assert errors.strip().splitlines()[-1] == f"minrnn: {sentence}"
    assert "Traceback" not in errors


def test_one_sentence_for_missing_files(minrnn, tmp_path):
    args = [*QUIET, "--model=ClassificationTask", "--model.pairs=true", "--data=RetrievalDataModule"]
    code, _, errors = minrnn("fit", *args, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path}")
    assert code == 1
    missing = f"{tmp_path}/lra_release/lra_release/tsv_data/new_aan"
    assert errors.strip().splitlines()[-1].startswith(f"minrnn: data.data_dir: {missing}")
    assert "Traceback" not in errors
