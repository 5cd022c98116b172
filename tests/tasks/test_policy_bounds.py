"""Bounds of a policy's actions: units of the environment, checkpoints, and data beyond them."""

import pytest
import torch
from policies import ACTION, LAYOUTS, OBSERVATION, SMALL, STEPS, Rows, batch, policy, stepwise, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.tasks import PolicyTask
from minrnn_lightning.tasks.load import load_task

LOW, HIGH = [-2.0, 0.0, -0.4], [2.0, 10.0, 0.2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bounds_of_actions(layout):
    """What the task does in the environment's units is what one from -1 to 1 does, computed here, in units of that."""
    rows = batch(seed=3, lengths=[9, 4, 1, 6])
    plain, bounded = policy(layout=layout), policy(layout=layout)
    bounded.bound_actions(LOW, HIGH)

    def units(actions):
        parts = zip(actions.unbind(-1), LOW, HIGH, strict=True)
        return torch.stack([low + (high - low) * (each + 1) / 2 for each, low, high in parts], -1)

    scaled = rows._replace(actions=units(rows.actions))
    with torch.no_grad():
        expected = plain(*rows[:4])
        torch.testing.assert_close(bounded(*scaled[:4]), units(expected), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(stepwise(bounded, scaled), units(stepwise(plain, rows)), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(bounded.act_window(*scaled[:4]), units(expected[:, -1]), atol=1e-5, rtol=1e-5)
        errors = (expected - rows.actions)[rows.mask] ** 2
        torch.testing.assert_close(bounded.batch_loss(scaled), errors.mean(), atol=1e-6, rtol=1e-5)
    extreme = policy(layout=layout)
    extreme.bound_actions(LOW, HIGH)
    extreme.head[0].bias.data = torch.tensor([50.0, 50.0, -50.0])
    torch.testing.assert_close(extreme(*rows[:4])[0, 0], torch.tensor([2.0, 10.0, -0.4]))


def test_bounds_of_minus_one_and_one_change_no_digit():
    rows, plain, bounded = batch(lengths=[9, 4, 1, 6]), policy(), policy()
    bounded.bound_actions([-1.0] * ACTION, torch.ones(ACTION))
    assert torch.equal(bounded(*rows[:4]), plain(*rows[:4]))
    loss = F.mse_loss(plain(*rows[:4])[rows.mask], rows.actions[rows.mask])
    assert torch.equal(bounded.batch_loss(rows), loss)
    assert torch.equal(plain.batch_loss(rows), loss)


def test_refuses_bounds():
    for low, high in (([0.0] * 2, [1.0] * 2), ([0.0] * 3, [1.0, 0.0, 1.0]), ([0.0] * 3, [1.0, float("inf"), 1.0])):
        with pytest.raises(
            ValueError, match=r"low and high must be 3 finite numbers each, low below high, got \[0.0, "
        ):
            policy().bound_actions(low, high)
    with pytest.raises(ValueError, match="discrete actions have no bounds"):
        policy(discrete=True).bound_actions([0.0] * 3, [1.0] * 3)


class Bounded(Rows):
    """The same with actions between other bounds."""

    action_low, action_high = torch.tensor(LOW), torch.tensor(HIGH)

    def setup(self, stage):
        super().setup(stage)
        half = (self.action_high - self.action_low) / 2
        self.batches = [one._replace(actions=self.action_low + half * (one.actions + 1)) for one in self.batches]


def warnings_of_reach(recorded):
    return [str(each.message) for each in recorded if "actions" in str(each.message)]


def test_bounds_are_those_of_the_data_and_of_the_checkpoint(tmp_path, recwarn):
    task, data = PolicyTask(OBSERVATION, ACTION, **SMALL, lr=1e-2, weight_decay=0), Bounded()
    run = trainer(tmp_path, 150)
    run.fit(task, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert task.eval().batch_loss(data.batches[0]) < 0.02
    assert not warnings_of_reach(recwarn)
    saved = read_checkpoint(tmp_path / "x.ckpt")
    assert saved["environment"]["action_low"] == pytest.approx(LOW)
    assert saved["environment"]["action_high"] == pytest.approx(HIGH)
    assert not any("action_scale" in name or "action_middle" in name for name in saved["state_dict"])
    loaded, rows = load_task(tmp_path / "x.ckpt", PolicyTask, "act")[0], data.batches[1]
    assert torch.equal(loaded(*rows[:4]), task(*rows[:4]))

    del saved["environment"]["action_low"], saved["environment"]["action_high"]
    torch.save(saved, tmp_path / "old.ckpt")  # of a version that knew no bounds
    old = load_task(tmp_path / "old.ckpt", PolicyTask, "act")[0]
    plain = rows._replace(actions=loaded.normalized_actions(rows.actions))
    torch.testing.assert_close(old(*plain[:4]), loaded.normalized_actions(loaded(*rows[:4])), atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="The data have actions outside the bounds of this policy, -1 to 1"):
        trainer(tmp_path, 151).fit(old, data, ckpt_path=tmp_path / "old.ckpt", weights_only=True)


@pytest.mark.parametrize("where", ["first", "later", "validation", "padding", "nowhere"])
def test_actions_beyond_the_bounds_are_warned_of_without_a_data_module(tmp_path, recwarn, where):
    task, rows = PolicyTask(OBSERVATION, ACTION, **SMALL), [batch(seed=s, lengths=[STEPS, 2, 5, 7]) for s in range(4)]
    rows[0].actions[2, 8] = 9.0 if where == "padding" else 0.0
    rows[1].actions[0, 0] = 1.0005  # rounding
    held_out = [batch(seed=4)]
    changed = {"first": rows[0], "later": rows[3], "validation": held_out[0]}
    if where in changed:
        changed[where].actions[1, 1, 2] = -2.5
    train, validate = (DataLoader(part, batch_size=None) for part in (rows, held_out))
    trainer(tmp_path, 4).fit(task, train, validate)
    expected = 0 if where in ("padding", "nowhere") else 1
    assert len(warnings_of_reach(recwarn)) == expected
    assert all(
        "actions outside the bounds of this policy, -1 to 1, up to 2.5 times as far from their middle" in each
        for each in warnings_of_reach(recwarn)
    )
    if expected:
        task.bound_actions([-3.0] * ACTION, [3.0] * ACTION)
        recwarn.clear()
        trainer(tmp_path, 4).fit(task, train, validate)
        assert not warnings_of_reach(recwarn)
