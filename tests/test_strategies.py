"""Training with every sequence on several processes equals training in one process."""

import random
from pathlib import Path

import pytest
import torch
from forked import run_several
from lightning.pytorch import Trainer
from sharded_training import QUIET, RUNS, train

from minrnn_lightning.errors import InputError
from minrnn_lightning.strategies import SequenceParallelStrategy
from minrnn_lightning.tasks import LanguageTask, TaggingTask

SCRIPT = Path(__file__).parent / "fixtures/sharded_training.py"
SIZES = {"input_size": 6, "output_size": 6, "dim": 8, "depth": 2}


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)
    lines = ["".join(draw.choices("abcde", k=draw.randrange(1, 30))) for _ in range(90)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return tmp_path


def test_four_processes(folder):
    """One group of four processes, over documents, and two groups of two, with streams whose state is carried."""
    for name, (_, _, options) in RUNS.items():
        train(folder, f"one_{name}", "auto", 4, options, devices=1)
    run_several([SCRIPT, folder], folder, 4)
    for name, (strategy, *_) in RUNS.items():
        one, several = (torch.load(folder / f"{each}.ckpt", weights_only=True) for each in (f"one_{name}", name))
        for part in ("state_dict", "streams"):
            torch.testing.assert_close(several[part], one[part], rtol=1e-9, atol=1e-9)
        expected, found = (torch.load(folder / f"{each}.losses", weights_only=True) for each in (f"one_{name}", name))
        if strategy == "sequence_parallel_2":  # each group logs the loss of its own batch, as with DDP
            del expected["train/loss"], found["train/loss"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert "Sequences on 4 processes each: 9 messages of together" in (folder / "out0").read_text()


@pytest.mark.parametrize(("processes", "given"), [(3, 2), (2, 4)])
def test_a_number_of_processes_that_is_not_divisible(processes, given):
    strategy = SequenceParallelStrategy(given)
    with pytest.raises(InputError, match=f"must divide the number of processes, which is {processes} .*, got {given}"):
        Trainer(strategy=strategy, devices=processes, **QUIET)


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
