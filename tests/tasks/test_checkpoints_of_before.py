"""Checkpoints of an earlier version: they load, give the same outputs, and training goes on with the same numbers.

tests/fixtures/checkpoints holds one for each task, written after two steps of a run of four, with one more entry:
``expected``, the batch, the outputs and loss after two steps, and all weights before the first and after the last step.
"""

import gzip

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from minrnn_lightning import tasks
from minrnn_lightning.batches import TrajectoryBatch
from minrnn_lightning.callbacks import SeedEveryBatch
from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.tasks.load import load_task

NAMES = ["LanguageTask", "TaggingTask", "ClassificationTask", "PolicyTask"]


@pytest.fixture
def path(request, tmp_path):
    """The checkpoint of the task that the test is about."""
    packed = request.path.parents[1] / "fixtures/checkpoints" / f"{request.node.callspec.params['name']}.ckpt.gz"
    path = tmp_path / "before.ckpt"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def weights(task):
    return torch.cat([tensor.flatten() for tensor in task.state_dict().values()])


@pytest.mark.parametrize("name", NAMES)
def test_outputs(path, name):
    task, checkpoint = load_task(path, getattr(tasks, name), "be tested")
    assert list(task.state_dict()) == list(checkpoint["state_dict"]), "the order is that of the optimizer's states"
    expected = checkpoint["expected"]
    batch = TrajectoryBatch(*expected["batch"]) if name == "PolicyTask" else expected["batch"]
    inputs = {"PolicyTask": batch[:4], "ClassificationTask": batch[::2]}.get(name, batch[:1])
    with torch.no_grad():
        outputs = task(*inputs)
        loss = task.batch_loss(batch)
    torch.testing.assert_close(outputs[0] if isinstance(outputs, tuple) else outputs, expected["outputs"])
    torch.testing.assert_close(loss, expected["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_follow_the_seed(path, name):
    checkpoint = read_checkpoint(path)
    torch.manual_seed(checkpoint["seed"])
    task = getattr(tasks, name)(**checkpoint["hyper_parameters"])
    torch.testing.assert_close(weights(task), checkpoint["expected"]["initial"])


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_with_the_same_random_numbers(path, name, tmp_path):
    checkpoint = read_checkpoint(path)
    batch = checkpoint["expected"]["batch"]
    batch = TrajectoryBatch(*batch) if name == "PolicyTask" else batch
    task = getattr(tasks, name)(**checkpoint["hyper_parameters"])
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    silent |= {"enable_checkpointing": False, "default_root_dir": tmp_path}
    run = pl.Trainer(max_steps=4, max_epochs=-1, callbacks=[SeedEveryBatch()], **silent)
    run.fit(task, DataLoader([batch] * 2, batch_size=None), ckpt_path=path, weights_only=True)
    torch.testing.assert_close(weights(task), checkpoint["expected"]["resumed"])
    run.save_checkpoint(tmp_path / "now.ckpt")
    assert read_checkpoint(tmp_path / "now.ckpt")["seed"] == checkpoint["seed"]
