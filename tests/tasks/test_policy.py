"""PolicyTask: tokens made one by one by hand, parallel against stepwise, padding, resets, loss, checkpoints."""

from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.tasks import PolicyTask

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


def walked(task, rows):
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
        seen = F.linear(observation, encoder.embed_observation.weight, encoder.embed_observation.bias)
        action = rows.actions[:, t]
        if discrete:
            done = encoder.embed_action.weight[action]
        else:
            done = F.linear(action, encoder.embed_action.weight, encoder.embed_action.bias)
        if layout == "compact":
            tokens.append(encoder.norm(wanted + seen + before + time))
        else:
            tokens += [encoder.norm(wanted + time)] if returns else []
            tokens.append(encoder.norm(seen + time))
        output = task.head(task.backbone(torch.stack(tokens, 1))[0][:, -1])
        outputs.append(output)
        if layout == "decision_transformer":
            tokens.append(encoder.norm(done + time))
        before = done
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
        torch.testing.assert_close(walked(task, rows), parallel, atol=1e-5, rtol=0)
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
    told = policy()
    one = told(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    assert (told(rows.observations, rows.actions, rows.returns_to_go + 500, rows.timesteps) - one).abs().max() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixer", ["mingru", "attention", "mamba", "gru"])
def test_match_parameters_counts_what_there_is(mixer, layout):
    task = policy(mixer=mixer, layout=layout, match_parameters="60k", max_timestep=100)
    assert abs(sum(p.numel() for p in task.parameters()) - 60_000) < 3_000


class Rows(pl.LightningDataModule):
    """Five batches of a rule that a policy can learn: the action is a function of the observation."""

    discrete, env_id, max_return, length = False, "Nowhere-v0", 123.0, STEPS

    def setup(self, stage):
        self.batches = [batch(seed=seed, lengths=[STEPS, 2, 5, 7]) for seed in range(5)]
        self.batches = [one._replace(actions=torch.tanh(one.observations[..., :ACTION])) for one in self.batches]
        seen = torch.cat([one.observations[one.mask] for one in self.batches])
        self.observation_mean, self.observation_std = seen.mean(0), seen.std(0)

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
