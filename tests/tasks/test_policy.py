"""PolicyTask: tokens made one by one by hand, parallel against stepwise, padding, resets, loss, checkpoints."""

import math
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.tasks import PolicyTask
from minrnn_lightning.tasks.load import load_task

SMALL = {"dim": 16, "depth": 2, "kernel_size": 3, "mlp_ratio": 2.0, "max_timestep": 12}
MIXERS = ["mingru", "minlstm", "attention", ["mingru", "attention"]]
LAYOUTS = ["decision_transformer", "compact"]
OBSERVATION, ACTION, BATCH, STEPS = 5, 3, 4, 9


class Batch(NamedTuple):
    """What a data module gives."""

    observations: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor
    reset: Tensor


def policy(**options):
    torch.manual_seed(0)
    task = PolicyTask(**{"input_size": OBSERVATION, "output_size": ACTION, **SMALL, **options}).eval()
    task.observation_mean.normal_()
    task.observation_std.uniform_(0.5, 2)
    for parameter in task.parameters():  # biases and norms too, so that none can be forgotten unnoticed
        parameter.data += 0.1 * torch.randn_like(parameter)
    return task


def batch(discrete=False, seed=1, steps=STEPS, lengths=None):
    draw = torch.Generator().manual_seed(seed)
    shape = BATCH, steps
    actions = torch.rand(*shape, ACTION, generator=draw) * 2 - 1
    mask = torch.arange(steps) < torch.tensor(lengths or [steps] * BATCH).unsqueeze(1)
    reset = torch.zeros(shape, dtype=torch.bool)
    reset[:, 0] = True
    return Batch(
        torch.randn(*shape, OBSERVATION, generator=draw) * 3,
        torch.randint(ACTION, shape, generator=draw) if discrete else actions,
        torch.rand(shape, generator=draw) * 3000,
        torch.arange(steps).expand(shape).clone(),
        mask,
        reset,
    )


def stepwise(task, rows):
    """The outputs of single steps."""
    state, before, outputs = task.initial_state(BATCH), None, []
    for t in range(rows.timesteps.shape[1]):
        given = rows.observations[:, t], before, rows.returns_to_go[:, t], rows.timesteps[:, t]
        output, state = task.step_outputs(*given, state)
        before = rows.actions[:, t]
        outputs.append(output)
    return torch.stack(outputs, 1)


def by_hand(task, rows, layout, discrete, returns):
    """The outputs from tokens made one by one, with one parallel pass of the backbone over each beginning."""
    encoder, outputs, tokens, before = task.encoder, [], [], 0
    for t in range(rows.timesteps.shape[1]):
        time = encoder.embed_timestep.weight[min(t, SMALL["max_timestep"] - 1)]
        scaled = (rows.returns_to_go[:, t] / task.return_scale).unsqueeze(1)
        wanted = F.linear(scaled, encoder.embed_return.weight, encoder.embed_return.bias) if returns else 0
        observation = (rows.observations[:, t] - task.observation_mean) / task.observation_std
        observed = F.linear(observation, encoder.embed_observation.weight, encoder.embed_observation.bias)
        action = rows.actions[:, t]
        if discrete:
            embedded = encoder.embed_action.weight[action]
        else:
            embedded = F.linear(action, encoder.embed_action.weight, encoder.embed_action.bias)
        if layout == "compact":
            tokens.append(encoder.norm(wanted + observed + before + time))
        else:
            tokens += [encoder.norm(wanted + time)] if returns else []
            tokens.append(encoder.norm(observed + time))
        output = task.head(task.backbone(torch.stack(tokens, 1))[0][:, -1])
        outputs.append(output)
        if layout == "decision_transformer":
            tokens.append(encoder.norm(embedded + time))
        before = embedded
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_definition(layout, returns, discrete):
    task = policy(layout=layout, condition_on_return=returns, discrete=discrete)
    rows = batch(discrete, steps=14)  # beyond max_timestep
    with torch.no_grad():
        expected = by_hand(task, rows, layout, discrete, returns)
        given = rows.observations, rows.actions, rows.returns_to_go, rows.timesteps
        torch.testing.assert_close(task(*given), expected)
        torch.testing.assert_close(task(*given, rows.reset), expected)
        tokens = task.encoder(*(each.float() if i != 1 else each for i, each in enumerate(given[:3])), rows.timesteps)
        assert tokens.shape[2] == task.tokens_per_step == (1 if layout == "compact" else 2 + returns)
    if not discrete:
        assert expected.abs().max() <= 1


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_parallel_equals_stepwise(mixer, layout, discrete):
    task, rows = policy(mixer=mixer, layout=layout, discrete=discrete), batch(discrete)
    with torch.no_grad():
        parallel = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps, rows.reset)
        torch.testing.assert_close(stepwise(task, rows), parallel, atol=1e-5, rtol=0)
        last = task.act_window(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    expected = parallel[:, -1].argmax(-1) if discrete else parallel[:, -1]
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_that_starts_again_is_as_if_new(layout, mixer):
    task, rows = policy(mixer=mixer, layout=layout), batch(steps=7)
    start = 3
    again = torch.tensor([False, True, False, True])
    rows.reset[again, start] = True
    rows.timesteps[again, start:] -= start
    alone = Batch(*(each[again, start:] for each in rows))
    with torch.no_grad():
        parallel = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps, rows.reset)
        fresh = task(alone.observations, alone.actions, alone.returns_to_go, alone.timesteps)
        torch.testing.assert_close(parallel[again, start:], fresh, atol=1e-5, rtol=0)
        state, before = task.initial_state(BATCH), None
        for t in range(7):
            given = rows.observations[:, t], before, rows.returns_to_go[:, t], rows.timesteps[:, t], state
            action, state = task.step(*given, rows.reset[:, t] if t in (0, start) else None)
            torch.testing.assert_close(action, parallel[:, t], atol=1e-5, rtol=0)
            before = rows.actions[:, t]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("discrete", [False, True])
def test_padding_changes_nothing(layout, discrete):
    task, lengths = policy(layout=layout, discrete=discrete), [9, 4, 1, 6]
    rows = batch(discrete, lengths=lengths)
    loss = task.batch_loss(rows)
    for each in (rows.observations, rows.returns_to_go):
        each[~rows.mask] = 1e4
    rows.timesteps[~rows.mask] = 0
    rows.actions[~rows.mask] = 0
    assert torch.equal(task.batch_loss(rows), loss)
    total, count = 0.0, 0
    for row, length in enumerate(lengths):
        one = [each[row : row + 1, :length] for each in rows[:4]]
        outputs = task(*one)[0]
        choices = one[1][0]
        errors = -outputs.log_softmax(-1)[torch.arange(length), choices] if discrete else (outputs - choices) ** 2
        total, count = total + errors.sum(), count + errors.numel()
    torch.testing.assert_close(loss, total / count)


def test_without_the_return_it_changes_nothing():
    task, rows = policy(condition_on_return=False), batch()
    one = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    assert torch.equal(task(rows.observations, rows.actions, rows.returns_to_go + 500, rows.timesteps), one)
    conditioned = policy()
    one = conditioned(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    assert (
        conditioned(rows.observations, rows.actions, rows.returns_to_go + 500, rows.timesteps) - one
    ).abs().max() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixer", ["mingru", "attention", "mamba", "gru"])
def test_match_parameters_counts_what_there_is(mixer, layout):
    task = policy(mixer=mixer, layout=layout, match_parameters="60k", max_timestep=100)
    assert abs(sum(p.numel() for p in task.parameters()) - 60_000) < 3_000


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


class Rows(pl.LightningDataModule):
    """Five batches of a rule that a policy can learn: the action is a function of the observation."""

    discrete, env_id, max_return, length = False, "Nowhere-v0", 123.0, STEPS

    def setup(self, stage):
        self.batches = [batch(seed=seed, lengths=[STEPS, 2, 5, 7]) for seed in range(5)]
        self.batches = [one._replace(actions=torch.tanh(one.observations[..., :ACTION])) for one in self.batches]
        observed = torch.cat([one.observations[one.mask] for one in self.batches])
        self.observation_mean, self.observation_std = observed.mean(0), observed.std(0)

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def trainer(folder, steps=6):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_steps=steps, enable_checkpointing=False, **quiet)


def test_fit_keeps_all_in_the_checkpoint(tmp_path):
    task, data = PolicyTask(OBSERVATION, ACTION, **SMALL), Rows()
    run = trainer(tmp_path)
    run.fit(task, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = read_checkpoint(tmp_path / "x.ckpt")
    assert saved["environment"] == {"env_id": "Nowhere-v0", "max_return": 123.0, "window": STEPS}
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
        ValueError, match="return_scale must be above 0 and max_timestep at least 0, got return_scale 0"
    ):
        policy(return_scale=0)
    with pytest.raises(ValueError, match=r"the actions of the data are continuous: give --model\.discrete false"):
        trainer(tmp_path, 1).fit(PolicyTask(OBSERVATION, ACTION, **SMALL, discrete=True), Rows())
