"""PolicyTask in a Trainer: it learns, its loss is the mean over real steps, checkpoints have all it needs."""

import math

import pytest
import torch
from policies import ACTION, BATCH, OBSERVATION, SMALL, STEPS, Batch, Rows, batch, policy, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.tasks import PolicyTask


def test_fit_keeps_all_in_the_checkpoint(tmp_path):
    task, data = PolicyTask(OBSERVATION, ACTION, **SMALL), Rows()
    run = trainer(tmp_path)
    run.fit(task, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = read_checkpoint(tmp_path / "x.ckpt")
    assert saved["environment"] == {"env_id": "Nowhere-v0", "env_args": {}, "max_return": 123.0, "window": STEPS}
    torch.testing.assert_close(saved["state_dict"]["observation_mean"], data.observation_mean)
    loaded = PolicyTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).eval()
    assert loaded.environment["max_return"] == 123
    rows = batch(seed=7)
    torch.testing.assert_close(loaded.batch_loss(rows), task.eval().batch_loss(rows))

    (metrics,) = run.validate(task, data, verbose=False)
    with torch.no_grad():
        parts = [(task.batch_loss(one), one.mask.sum()) for one in data.batches]
        first = task(*data.batches[0][:4])
    expected = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
    assert metrics["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(run.predict(task, data)[0], first)

    other = Rows()
    other.setup("fit")
    other.observation_mean = other.observation_mean + 9
    other.setup = lambda stage: None
    tuned = PolicyTask(OBSERVATION, ACTION, **SMALL, init_from=str(tmp_path / "x.ckpt"))
    trainer(tmp_path, 1).fit(tuned, other)  # the weights know the normalisation that they were trained with
    torch.testing.assert_close(tuned.observation_mean, data.observation_mean)


def test_a_resumed_run_has_the_environment_of_its_data(tmp_path):
    run, data = trainer(tmp_path, 1), Rows()
    run.fit(PolicyTask(OBSERVATION, ACTION, **SMALL), data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    data.env_id, data.max_return, data.length, data.env_args = "Elsewhere-v0", 456.0, 7, {"g": 5.0}
    run, task = trainer(tmp_path, 2), PolicyTask(OBSERVATION, ACTION, **SMALL)
    run.fit(task, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    run.save_checkpoint(tmp_path / "two.ckpt")
    expected = {"env_id": "Elsewhere-v0", "env_args": {"g": 5.0}, "max_return": 456.0, "window": 7}
    assert read_checkpoint(tmp_path / "two.ckpt")["environment"] == expected


@pytest.mark.parametrize("discrete", [False, True])
def test_validation_loss_is_the_mean_over_real_steps(tmp_path, discrete):
    """Batches of unequal size, one of them without a real step; then one that is not a number."""
    task = policy(discrete=discrete)
    parts = [batch(discrete, seed=s, lengths=n) for s, n in enumerate([[9] * 4, [1, 0, 0, 0], [0] * 4, [3, 9, 2, 1]])]
    parts[1] = Batch(*(each[:1] for each in parts[1]))
    errors = []
    for one in parts:
        outputs = task(*one[:4])
        wrong = F.cross_entropy(outputs.mT, one.actions, reduction="none") if discrete else (outputs - one.actions) ** 2
        errors.append(wrong[one.mask].flatten())
    expected = torch.cat(errors).mean().item()

    def validated():
        return trainer(tmp_path).validate(task, DataLoader(parts, batch_size=None), verbose=False)[0]["val/loss"]

    assert validated() == pytest.approx(expected, rel=1e-5)
    parts[1].observations[0, 0] = float("nan")
    assert math.isnan(validated())


def test_a_training_batch_without_a_real_step_moves_nothing(tmp_path):
    task = PolicyTask(OBSERVATION, ACTION, **SMALL, weight_decay=0)
    before = [p.detach().clone() for p in task.parameters()]
    trainer(tmp_path, 2).fit(task, DataLoader([batch(lengths=[0] * BATCH)] * 2, batch_size=None))
    assert all(map(torch.equal, before, task.parameters()))


def test_it_learns(tmp_path):
    task, data = PolicyTask(OBSERVATION, ACTION, **SMALL, layout="compact", lr=1e-2, weight_decay=0), Rows()
    trainer(tmp_path, 150).fit(task, data)
    assert task.eval().batch_loss(data.batches[0]) < 0.02  # 0.7 for always nothing


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="layout must be decision_transformer or compact, got wide"):
        policy(layout="wide")
    with pytest.raises(
        ValueError, match="return_scale must be above 0 and finite, and max_timestep at least 0, got return_scale 0"
    ):
        policy(return_scale=0)
    with pytest.raises(ValueError, match=r"the actions of the data are continuous: give --model\.discrete false"):
        trainer(tmp_path, 1).fit(PolicyTask(OBSERVATION, ACTION, **SMALL, discrete=True), Rows())
