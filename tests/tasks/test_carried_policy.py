"""A policy carries its state, and with one token for each step the previous action, over batches of a stream."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from policies import ACTION, LAYOUTS, OBSERVATION, SMALL, batch, policy

from minrnn_lightning.batches import TrajectoryStreamBatch
from minrnn_lightning.callbacks.batch_seeds import SeedEveryBatch
from minrnn_lightning.data import TrajectoryDataModule
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import PolicyTask

FLOATS = ("observations", "actions", "returns_to_go")
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming"),
    pytest.mark.filterwarnings("ignore:.*fit.ckpt_path="),
    pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set"),
]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_rows_equal_rows(layout, discrete):
    task, rows = policy(layout=layout, discrete=discrete, mixer=["minlstm", "attention"]), batch(discrete, steps=12)
    rows.reset[[0, 1, 2], [4, 8, 9]] = True  # within a part, at the start of one, right after it
    outputs = []
    for first, end in ((0, 4), (4, 8), (8, 9), (9, 12)):
        part = TrajectoryStreamBatch(*(each[:, first:end] for each in rows), continues=first > 0)
        outputs.append(task._outputs(part))
    expected = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps, rows.reset)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)


def test_times_reach_the_model():
    task, rows = policy(layout="compact", kernel_size=0), batch()
    times = torch.rand(rows.mask.shape)
    outputs = task._outputs(TrajectoryStreamBatch(*rows, delta_t=times))
    tokens = task.encoder(task.normalized(rows.observations), rows.actions, rows.returns_to_go / 1000, rows.timesteps)
    hidden = task.backbone(tokens.squeeze(2), delta_t=times)[0]
    torch.testing.assert_close(outputs, task.head(hidden))
    with pytest.raises(InputError, match="delta_t needs the layout compact"):
        policy()._outputs(TrajectoryStreamBatch(*rows, delta_t=times))


@pytest.fixture
def fit(tmp_path):
    """Trains a small policy on streams of 8 episodes; always with the same options."""
    random = np.random.default_rng(0)
    (tmp_path / "episodes").mkdir()
    for number, steps in enumerate(random.integers(5, 40, 8)):
        observations, rewards = random.normal(size=(steps, OBSERVATION)), random.random(steps)
        actions = np.tanh(observations[:, :ACTION])
        arrays = {"observations": observations.astype(np.float32), "actions": actions.astype(np.float32)}
        np.savez(tmp_path / "episodes" / f"{number}.npz", rewards=rewards.astype(np.float32), **arrays)

    def call(steps=12, resume_from=None, **options):
        seed_everything(1, verbose=False)
        task = PolicyTask(OBSERVATION, ACTION, layout="compact", lr=0.01, warmup=2, **SMALL)
        data = TrajectoryDataModule(
            str(tmp_path / "episodes"), batch_size=3, length=6, sampling="episodes", val_fraction=0.25, stream=True
        )
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = Trainer(max_steps=steps, callbacks=[SeedEveryBatch(), saving], **quiet, **options)
        trainer.fit(task, data, ckpt_path=resume_from)
        return task, trainer

    return call


def test_training_equals_a_loop(fit):
    """In float64, with the detached state carried by hand."""
    task, trainer = fit(precision="64-true")
    rows = trainer.datamodule.train_dataloader().dataset
    seed_everything(1, verbose=False)
    expected = PolicyTask(OBSERVATION, ACTION, layout="compact", lr=0.01, warmup=2, **SMALL).double()
    expected._trainer = trainer
    expected.setup("fit")  # for the statistics of the observations
    optimizer = expected.make_optimizer()
    schedule = expected.make_schedule(optimizer)
    states = None
    for position in range(12):
        each = rows[position]
        each = each._replace(**{name: x.double() for name, x in each._asdict().items() if name in FLOATS})
        states = states if position % len(rows) else None
        outputs, states = expected.forward_from(states, *each[:4], each.reset)
        states = torch.utils._pytree.tree_map(torch.Tensor.detach, states)
        optimizer.zero_grad()
        expected.loss(outputs[each.mask], each.actions[each.mask]).backward()
        optimizer.step()
        schedule.step()
    assert 3 < len(rows) < 12
    for one, other in zip(task.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_evaluation_equals_steps(fit):
    """The validation loss is that of single steps through every part of the held-out episodes."""
    task, trainer = fit(steps=3)
    (result,) = trainer.validate(task, datamodule=trainer.datamodule, verbose=False)
    task.eval()
    batches = list(trainer.datamodule.val_dataloader())
    rows = [torch.cat([each[field] for each in batches], 1) for field in range(6)]
    observations, actions, returns, timesteps, mask, reset = rows
    state, outputs = task.initial_state(3), []
    with torch.no_grad():
        for t in range(mask.shape[1]):
            before = actions[:, t - 1] if t else None
            output, state = task.step_outputs(
                observations[:, t], before, returns[:, t], timesteps[:, t], state, reset[:, t]
            )
            outputs.append(output)
    loss = task.loss(torch.stack(outputs, 1)[mask], actions[mask])
    assert len(batches) > 1
    assert result["val/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_resume(fit, tmp_path):
    whole, _ = fit()
    again, _ = fit(resume_from=tmp_path / "step=5.ckpt")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    saved = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["streams"]
    assert {len(leaf) for leaf in torch.utils._pytree.tree_leaves(saved)} == {3}
