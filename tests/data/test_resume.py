"""A resumed run goes on with the batches that the uninterrupted run sees, wherever its checkpoint was made."""

import random

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from minrnn_lightning.data import TextDataModule

BATCHES = 8  # in an epoch: 1,800 tokens are 45 windows of 40, one is given to the offset, five are a batch
STEPS = 20


class Bigram(LightningModule):
    """The smallest model whose weights tell which batches it saw, and in what order."""

    def __init__(self, interrupted_at=None):
        super().__init__()
        self.logits = torch.nn.Embedding(10, 10)
        self.interrupted_at = interrupted_at
        self.seen = []

    def training_step(self, batch):
        if len(self.seen) == self.interrupted_at:
            raise KeyboardInterrupt
        inputs, targets = batch
        self.seen.append(inputs)
        return torch.nn.functional.cross_entropy(self.logits(inputs).flatten(0, 1), targets.flatten())

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Run:
    """Trains bigrams on one text in one folder, always with the same options."""

    def __init__(self, folder, **options):
        self.folder = folder
        silence = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        self.options = {"accelerator": "cpu", "default_root_dir": folder, **silence, **options}
        (folder / "text.txt").write_text("".join(random.Random(0).choices("abcdefgh \n", k=2000)))

    def __call__(self, callback=None, num_workers=0, resume_from=None, interrupted_at=None, **options):
        seed_everything(1, verbose=False)
        model = Bigram(interrupted_at)
        path, data_dir = str(self.folder / "text.txt"), str(self.folder / "data")
        data = TextDataModule(path, batch_size=5, length=40, num_workers=num_workers, data_dir=data_dir)
        callbacks = {"callbacks": callback, "enable_checkpointing": callback is not None}
        trainer = Trainer(**self.options, **callbacks, **options)
        try:
            trainer.fit(model, data, ckpt_path=resume_from)
        except SystemExit:  # how Lightning leaves after an interruption
            assert interrupted_at is not None
        return trainer, model


def at_step(run, checkpoint, steps, **options):
    callback = ModelCheckpoint(checkpoint.parent, filename=checkpoint.stem, every_n_train_steps=steps, save_top_k=-1)
    return run(callback, max_steps=steps + 1, **options)[1]


def at_end_of_run(run, checkpoint, steps, **options):
    trainer, model = run(max_steps=steps, **options)
    trainer.save_checkpoint(checkpoint)
    return model


def at_end_of_epoch(run, checkpoint, steps, **options):
    callback = ModelCheckpoint(checkpoint.parent, filename=checkpoint.stem, save_on_train_epoch_end=True)
    return run(callback, max_steps=steps, **options)[1]


def at_end_of_epochs(run, checkpoint, steps, **options):
    trainer, model = run(max_epochs=steps * trainer_accumulates(run) // BATCHES, **options)
    trainer.save_checkpoint(checkpoint)
    return model


def at_validation(run, checkpoint, steps, **options):
    callback = ModelCheckpoint(checkpoint.parent, filename=checkpoint.stem, save_on_train_epoch_end=False)
    return run(callback, max_steps=steps, val_check_interval=2, **options)[1]


def at_interruption(run, checkpoint, steps, **options):
    interrupted_at = steps * trainer_accumulates(run)
    return run(OnExceptionCheckpoint(checkpoint.parent, checkpoint.stem), interrupted_at=interrupted_at, **options)[1]


def trainer_accumulates(run):
    return run.options["accumulate_grad_batches"]


@pytest.fixture(scope="module", params=[1, 2], ids=["accumulate1", "accumulate2"])
def whole(request, tmp_path_factory):
    """A run of 20 steps without a break, and the way to make such runs."""
    run = Run(tmp_path_factory.mktemp("whole"), accumulate_grad_batches=request.param)
    return run, run(max_steps=STEPS)[1]


@pytest.mark.filterwarnings("error:You're resuming", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set", "ignore:.*fit.ckpt_path=")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("save", "steps"),
    [
        (at_step, 3),  # in the first epoch
        (at_step, 10),  # in a later one
        (at_step, 8),  # after the last batch of an epoch
        (at_end_of_run, 10),
        (at_end_of_epoch, 8),
        (at_end_of_epoch, 10),  # Lightning ends an epoch wherever max_steps is reached
        (at_end_of_epochs, 16),
        (at_validation, 8),
        (at_validation, 10),
        (at_interruption, 11),
    ],
)
def test_resume(whole, tmp_path, save, steps, num_workers):
    run, expected = whole
    first = save(run, tmp_path / "x.ckpt", steps, num_workers=num_workers)
    _, second = run(num_workers=num_workers, resume_from=tmp_path / "x.ckpt", max_steps=STEPS)
    assert len(second.seen) == (STEPS - steps) * trainer_accumulates(run)
    joined = first.seen[: steps * trainer_accumulates(run)] + second.seen
    assert all(map(torch.equal, joined, expected.seen))
    assert torch.equal(second.logits.weight, expected.logits.weight)


def test_epochs_differ(whole):
    _, model = whole
    assert not torch.equal(model.seen[0], model.seen[BATCHES])
