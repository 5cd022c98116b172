"""Data modules whose batches are for another task are refused; what a subclass computes from them is its own choice."""

import pytest
from lightning.pytorch import LightningDataModule, Trainer

from minrnn_lightning import LanguageTask, TaggingTask
from minrnn_lightning.batches import AnswerBatch, LabelledBatch, RolloutBatch, TextBatch, TrajectoryBatch
from minrnn_lightning.data import MQARDataModule
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import ClassificationTask, PolicyTask, PPOTask

TAKEN = {
    LanguageTask: TextBatch,
    TaggingTask: AnswerBatch,
    ClassificationTask: LabelledBatch,
    PolicyTask: TrajectoryBatch,
    PPOTask: RolloutBatch,
}


def small(task):
    return task(8, 8, dim=8, depth=1)


@pytest.mark.parametrize("task", TAKEN, ids=lambda task: task.__name__)
def test_each_task_takes_its_own_batches_only(task):
    assert task.batch_type is TAKEN[task]
    for other, batch_type in TAKEN.items():
        data = type("Data", (LightningDataModule,), {"batch_type": batch_type})()
        if other is task:
            small(task).check_data(data)
        else:
            with pytest.raises(
                InputError, match=f"^{task.__name__} takes .* Data gives .* or {other.__name__} for this$"
            ):
                small(task).check_data(data)


@pytest.mark.parametrize("data", [None, LightningDataModule()], ids=["none", "unknown"])
def test_other_data_are_not_refused(data):
    small(LanguageTask).check_data(data)


def test_a_trainer_refuses_them_too(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="MQARDataModule gives AnswerBatch"):
        trainer.fit(LanguageTask(64, 64, dim=8), datamodule=MQARDataModule(length=32, vocab_size=64))


def test_subclasses():
    class OtherLoss(LanguageTask):
        def loss(self, logits, targets):
            return super().loss(logits, targets)

    class OtherBatches(LanguageTask):
        def batch_loss(self, batch):
            return super().batch_loss(batch[:2])

    assert OtherLoss.batch_type is TextBatch
    assert OtherBatches.batch_type is None
    small(OtherBatches).check_data(MQARDataModule(length=32, vocab_size=64))
