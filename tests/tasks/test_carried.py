"""The state of streams goes from batch to batch, through validations, checkpoints and several processes."""

import random

import pytest
import torch
from forked import run_two
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from torch.nn import functional as F

from minrnn_lightning.batches import IGNORED, AnswerStreamBatch, StreamBatch
from minrnn_lightning.callbacks.batch_seeds import SeedEveryBatch
from minrnn_lightning.data import TextDataModule
from minrnn_lightning.tasks import LanguageTask, TaggingTask

SIZES = {"input_size": 6, "output_size": 6, "dim": 8, "depth": 2}


class InterruptAt(Callback):
    """Interrupts training within the optimizer's step of a batch, when its loss has been computed."""

    def __init__(self, batch):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, *args):
        if trainer.global_step == self.batch:
            raise KeyboardInterrupt


@pytest.fixture
def fit(tmp_path):
    """Trains a small task on streams; always with the same options."""
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices("abcde\n", k=800)))

    def call(
        callbacks=(), resume_from=None, steps=30, batch_size=4, num_workers=0, dropout=0.2, mixer="mingru", **args
    ):
        seed_everything(1, verbose=False)
        task = LanguageTask(**SIZES, dropout=dropout, lr=0.02, warmup=2, mixer=mixer)
        data = TextDataModule(
            str(tmp_path / "text.txt"), batch_size=batch_size, length=15, stream=True, num_workers=num_workers,
            data_dir=str(tmp_path / "data"),
        )  # fmt: skip
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options |= {"enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks), **args}
        trainer = Trainer(
            max_steps=steps, callbacks=[SeedEveryBatch(), *callbacks], default_root_dir=tmp_path, **options
        )
        try:
            trainer.fit(task, data, ckpt_path=resume_from)
        except SystemExit:  # how Lightning leaves after an interruption
            assert any(isinstance(each, InterruptAt) for each in callbacks)
        return task, trainer

    return call


def weights(task):
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming"),
    pytest.mark.filterwarnings("ignore:.*fit.ckpt_path="),
    pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set"),
]


@pytest.mark.parametrize("mixer", ["mingru", "lstm", "attention"])
def test_training_equals_a_loop(fit, mixer):
    """In float64, with the detached state carried by hand."""
    task, trainer = fit(steps=15, dropout=0.0, mixer=mixer, limit_val_batches=0, precision="64-true")
    seed_everything(1, verbose=False)
    expected = LanguageTask(**SIZES, lr=0.02, warmup=2, mixer=mixer).double()
    expected._trainer = trainer  # for the number of steps of the schedule
    optimizer = expected.make_optimizer()
    schedule = expected.make_schedule(optimizer)
    expected._trainer = None
    stream = trainer.datamodule.train_dataloader().dataset
    state = None
    for position in range(15):
        batch = stream[position]
        state = state if position % len(stream) else None
        logits, state = expected(batch.inputs, state)
        loss = expected.loss(logits, batch.targets)
        state = torch.utils._pytree.tree_map(torch.Tensor.detach, state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert 4 < len(stream) < 15
    torch.testing.assert_close(weights(task), weights(expected), rtol=1e-7, atol=1e-10)


def test_evaluation_equals_whole_rows(fit):
    task, trainer = fit(steps=3)
    (result,) = trainer.validate(task, datamodule=trainer.datamodule, verbose=False)
    batches = list(trainer.datamodule.val_dataloader())
    inputs, targets = (torch.cat([batch[i] for batch in batches], 1) for i in range(2))
    loss = F.cross_entropy(task.eval()(inputs)[0].flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert result["val/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 4},
        {"limit_val_batches": 0},
        {"limit_train_batches": 7, "num_sanity_val_steps": 0},
        {"num_workers": 1},
    ],
)
def test_unaffected(fit, options):
    """Validations, the length of an epoch and workers change nothing in training."""
    assert torch.equal(weights(fit(steps=16)[0]), weights(fit(steps=16, **options)[0]))


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 4), (1, 11), (2, 7)])  # before a validation, after a pass
def test_resume(fit, tmp_path, accumulate, steps):
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 4, "steps": 14}
    whole = fit([ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)], **options)[0]
    checkpoint = tmp_path / f"step={steps}.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["streams"]
    assert {len(leaf) for leaf in torch.utils._pytree.tree_leaves(saved)} == {4}
    assert torch.equal(weights(whole), weights(fit(resume_from=checkpoint, **options)[0]))


def test_interrupted_within_steps(fit, tmp_path):
    """Twice: the batch of such a step is counted once in the run that is resumed, and its dropout is the same."""
    whole = fit(steps=9)[0]
    fit([InterruptAt(5), OnExceptionCheckpoint(tmp_path, "x")], steps=9)
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["global_step"] == 5
    fit([InterruptAt(7), OnExceptionCheckpoint(tmp_path, "y")], resume_from=tmp_path / "x.ckpt", steps=9)
    assert torch.load(tmp_path / "y.ckpt", weights_only=True)["global_step"] == 7
    assert torch.equal(weights(whole), weights(fit(resume_from=tmp_path / "y.ckpt", steps=9)[0]))


def test_other_batch_size(fit, tmp_path):
    _, trainer = fit(steps=4)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match="states of 4 streams, and this run has 2"):
        fit(resume_from=tmp_path / "x.ckpt", batch_size=2, steps=6)


def test_windows_have_no_state(fit, tmp_path):
    task, trainer = fit(steps=2)
    data = TextDataModule(str(tmp_path / "text.txt"), batch_size=4, length=15, data_dir=str(tmp_path / "data"))
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", **options)
    task = LanguageTask(**SIZES)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert "streams" not in torch.load(tmp_path / "x.ckpt", weights_only=True)


@pytest.mark.parametrize("task", [LanguageTask(**SIZES, kernel_size=0), TaggingTask(**SIZES, kernel_size=0)])
def test_reset_and_times_reach_the_model(task):
    torch.manual_seed(0)
    inputs = torch.randint(6, (3, 10))
    reset, delta_t = torch.rand(3, 10) < 0.2, torch.rand(3, 10)

    def outputs(part, continues):
        fields = inputs[:, part], inputs[:, part]
        lengths = () if isinstance(task, LanguageTask) else (torch.full((3,), 10),)
        batch_class = StreamBatch if isinstance(task, LanguageTask) else AnswerStreamBatch
        batch = batch_class(*fields, *lengths, continues, reset[:, part], delta_t[:, part])
        if isinstance(task, LanguageTask):
            return task.logits(batch)
        return task.logits_and_targets(batch)[0].unflatten(0, fields[0].shape)

    joined = torch.cat([outputs(slice(4), False), outputs(slice(4, 10), True)], 1)
    torch.testing.assert_close(joined, task(inputs, None, reset, delta_t=delta_t)[0])
    assert not torch.allclose(joined, task(inputs)[0])


SCRIPT = """
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from minrnn_lightning.data import TextDataModule
from minrnn_lightning.tasks import LanguageTask

if __name__ == "__main__":
    seed_everything(1)
    task = LanguageTask(6, 6, dim=8, depth=2, lr=0.02, warmup=2)
    data = TextDataModule({text!r}, batch_size=2, length=15, stream=True, data_dir={data!r})
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=14, logger=False,
                      callbacks=ModelCheckpoint({folder!r}, "{{step}}", every_n_train_steps=5, save_top_k=-1),
                      enable_progress_bar=False)
    trainer.fit(task, data, ckpt_path={resume_from!r})
    trainer.save_checkpoint({checkpoint!r})
    (result,) = trainer.validate(task, data)
    torch.save(result["val/loss"], {checkpoint!r} + str(trainer.global_rank))
"""


@pytest.mark.slow
def test_two_processes(fit, tmp_path):
    task, trainer = fit(steps=14, dropout=0.0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (result,) = trainer.validate(task, datamodule=trainer.datamodule, verbose=False)
    names = {"text": str(tmp_path / "text.txt"), "data": str(tmp_path / "data"), "folder": str(tmp_path)}

    def run(checkpoint, **options):
        (tmp_path / "script.py").write_text(SCRIPT.format(**{**names, "checkpoint": str(checkpoint), **options}))
        run_two([tmp_path / "script.py"], tmp_path)
        return torch.load(checkpoint, weights_only=True)

    two = run(tmp_path / "two.ckpt", resume_from=None)
    one = torch.load(tmp_path / "one.ckpt", weights_only=True)
    torch.testing.assert_close(two["streams"], one["streams"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-4)
    assert torch.load(tmp_path / "two.ckpt0", weights_only=True) == pytest.approx(result["val/loss"], rel=1e-4)
    resumed = run(tmp_path / "resumed.ckpt", resume_from=str(tmp_path / "step=5.ckpt"))
    assert resumed["global_step"] == 14
    torch.testing.assert_close(resumed["streams"], two["streams"], rtol=0, atol=0)
    torch.testing.assert_close(resumed["state_dict"], two["state_dict"], rtol=0, atol=0)
