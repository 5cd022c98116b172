"""Training with every sequence on several processes equals training in one process."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_several
from lightning.pytorch import Trainer
from old_torch import fsdp2_on_cpus
from sharded_training import QUIET, RUNS, train

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MinGRU
from minrnn_lightning.nn.sequence_parallel import check_shardable
from minrnn_lightning.sharded_checkpoint import replace_folder
from minrnn_lightning.strategies import SequenceParallelStrategy
from minrnn_lightning.tasks import LanguageTask, TaggingTask

SCRIPT = Path(__file__).parent / "fixtures/sharded_training.py"
SIZES = {"input_size": 6, "output_size": 6, "dim": 8, "depth": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the same runs in one process and in four have written."""
    folder, draw = tmp_path_factory.mktemp("runs"), random.Random(0)
    lines = ["".join(draw.choices("abcde", k=draw.randrange(1, 30))) for _ in range(90)]
    (folder / "text.txt").write_text("\n".join(lines))
    for name, (_, _, *options) in RUNS.items():
        train(folder, f"one_{name}", "auto", 4, *options, devices=1)
    run_several([SCRIPT, folder], folder, 4)
    return folder


def same(one, other, tolerance=1e-9):
    expected, found = (
        {
            "state_dict": checkpoint["state_dict"],
            "streams": checkpoint.get("streams"),
            "optimizers": [each["state"] for each in checkpoint["optimizer_states"]],
        }
        for checkpoint in map(read_checkpoint, (one, other))
    )
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_four_processes(folder, name):
    """Weights, optimizer, carried states and losses after five steps."""
    same(folder / f"one_{name}.ckpt", folder / f"{name}.ckpt")
    expected, found = (torch.load(folder / f"{each}.losses", weights_only=True) for each in (f"one_{name}", name))
    if name != "documents":  # every share of the data has a training loss of its own, as with DDP
        del expected["train/loss"], found["train/loss"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_communication_is_printed(folder):
    assert "Sequences on 4 processes each: 9 messages of together" in (folder / "out0").read_text()


@fsdp2_on_cpus
@pytest.mark.parametrize("name", ["fsdp2", "files"])
def test_another_number_of_processes_resumes(folder, name):
    _, _, *options = RUNS[name]
    train(folder, f"complete_{name}", "auto", 4, *options, devices=1, steps=8)
    train(folder, f"resumed_one_{name}", "auto", 4, *options, devices=1, steps=8, resume=folder / f"{name}.ckpt")
    # Lightning loads the weights before it converts the model to float64.
    same(folder / f"complete_{name}.ckpt", folder / f"resumed_one_{name}.ckpt", tolerance=1e-5)
    if name == "fsdp2":
        same(folder / "complete_fsdp2.ckpt", folder / "resumed_fsdp2.ckpt")


@fsdp2_on_cpus
def test_a_folder_of_parts_is_a_checkpoint(folder, minrnn, tmp_path):
    parts = folder / "files.ckpt"
    assert sorted(file.name for file in parts.iterdir()) == [f"part_0000{rank}.pt" for rank in range(4)]
    texts = [minrnn("generate", f"--checkpoint={folder}/{name}.ckpt", "--max_new_tokens=9", "--seed=1")
             for name in ("files", "one_files")]  # fmt: skip
    assert texts[0] == texts[1]
    assert texts[0][0] == 0
    shutil.copytree(parts, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt/part_00002.pt").unlink()
    code, _, errors = minrnn("generate", f"--checkpoint={tmp_path}/x.ckpt")
    assert code != 0
    assert "x.ckpt is not a checkpoint of plain tensors and values, a file for each process: one is missing" in errors


def test_a_folder_replaces_what_was_there(tmp_path):
    path = tmp_path / "last.ckpt"
    for number, make in enumerate((None, path.touch, path.mkdir)):
        if make:
            shutil.rmtree(path)
            make()
        new = tmp_path / "new"
        new.mkdir()
        (new / f"part_{number}").touch()
        replace_folder(new, path)
        assert [file.name for file in tmp_path.rglob("*")] == ["last.ckpt", f"part_{number}"]


@pytest.mark.parametrize(("processes", "given"), [(3, 2), (2, 4)])
def test_a_number_of_processes_that_is_not_divisible(processes, given):
    strategy = SequenceParallelStrategy(given)
    with pytest.raises(InputError, match=f"must divide the number of processes, which is {processes} .*, got {given}"):
        Trainer(strategy=strategy, devices=processes, **QUIET)


def test_fsdp2_on_cpus_with_an_old_pytorch(monkeypatch):
    monkeypatch.setattr(torch.cpu, "Stream", type("Stream", (), {}))
    trainer = Trainer(strategy="fsdp2", devices=1, max_steps=1, **QUIET)
    with pytest.raises(InputError, match="fsdp2 on CPUs needs a newer torch than"):
        trainer.fit(LanguageTask(6, 6, dim=8, depth=1), [])


def test_a_group_of_no_processes():
    with pytest.raises(InputError, match="sequence_processes must be at least 1, or null for all, got 0"):
        SequenceParallelStrategy(0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (TaggingTask(**SIZES), "SequenceParallelStrategy needs a LanguageTask, got TaggingTask; use ddp"),
        (LanguageTask(**SIZES, compile=True), "compile must be false with SequenceParallelStrategy"),
        (LanguageTask(**SIZES, mixer=["mingru", "attention"]), "AttentionMixer needs all steps of a sequence"),
        (LanguageTask(**SIZES, chunk=16), "chunk must be null with sequence parallelism, got 16"),
    ],
    ids=["task", "compile", "attention", "chunk"],
)
def test_tasks_that_need_complete_sequences(task, message):
    with pytest.raises(InputError, match=message):
        SequenceParallelStrategy().check_task(task)


@pytest.mark.parametrize("layer", [MinGRU(8, 8), torch.nn.GRU(8, 8), torch.nn.Sequential(torch.nn.Conv1d(8, 8, 3))])
def test_layers_that_need_complete_sequences(layer):
    with pytest.raises(InputError, match=r"(MinGRU|GRU|Conv1d) needs all steps of a sequence"):
        check_shardable(layer)


def test_a_sequence_that_is_too_short():
    strategy = SequenceParallelStrategy(4)
    with pytest.raises(InputError, match="length must be at least 4, a step for each process of a sequence, got 3"):
        strategy.batch_to_device((torch.zeros(2, 3), torch.zeros(2, 3)))


def test_predictions_are_refused():
    with pytest.raises(InputError, match="predict needs complete sequences"):
        SequenceParallelStrategy().predict_step()


def test_the_command_refuses_before_it_starts_processes(minrnn, small):
    options = [*small, "--config=hardware/sequence_parallel", "--model.mixer=attention"]
    code, _, errors = minrnn("fit", *options)
    assert code != 0
    assert errors.count("AttentionMixer needs all steps of a sequence, which sequence parallelism divides") == 1
    code, _, errors = minrnn("fit", *small, "--trainer.strategy=sequence_parallel_2", "--trainer.devices=3")
    assert code != 0
    assert "sequence_processes must divide the number of processes, which is 3" in errors
