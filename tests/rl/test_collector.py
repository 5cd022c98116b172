"""Rollouts: probabilities equal those of the parallel pass, truncated episodes are continued, statistics."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from online import Signal, agent, rollouts

from minrnn_lightning.rl.collector import Collector

MINIMAL = [
    "mingru",
    "minlstm",
    "gated_mingru",
    "matrix_mingru",
    ["mingru", "attention"],
]


def collector(task, kind="discrete", **options):
    envs = SyncVectorEnv([lambda: Signal(kind, **options)] * 6, autoreset_mode=AutoresetMode.SAME_STEP)
    return Collector(envs, task, torch.Generator().manual_seed(0), range(6))


def parallel(task, batch):
    """Log-probabilities and values of one pass over the rows."""
    with torch.no_grad():
        outputs, values, _ = task(batch.observations, batch.state, batch.reset, batch.previous_actions)
        return task.distribution.log_prob(outputs, batch.actions), values


@pytest.mark.parametrize("mixer", MINIMAL, ids=str)
def test_probabilities_of_steps_equal_those_of_the_parallel_pass(mixer):
    mixer_args = {"attention": {"window": 7}}
    task = agent(rollouts(), mixer=mixer, mixer_args=mixer_args, previous_action=True)
    steps = collector(task)
    for number in range(2):  # the second rollout starts within episodes
        batch = steps.collect(24)
        assert batch.reset[:, 1:].any(1).all()
        assert batch.reset[:, 0].all() == (number == 0 and not task.normalize_observations)
        log_probs, values = parallel(task, batch)
        torch.testing.assert_close(log_probs, batch.log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(values, batch.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "several", "one of several", "continuous"])
@pytest.mark.parametrize("previous_action", [False, True])
def test_every_type_of_actions(kind, previous_action):
    """Also where the states before the first step are learned."""
    learned = {"mixer": "minlstm", "mixer_args": {"minlstm": {"learn_initial_state": True}}}
    task = agent(rollouts(kind), previous_action=previous_action, **learned)
    if kind == "continuous":
        task.distribution.bounds.set([-2.0, 0.0], [2.0, 10.0])
    steps = collector(task, kind)
    steps.collect(24)
    batch = steps.collect(24)
    log_probs, values = parallel(task, batch)
    torch.testing.assert_close(log_probs, batch.log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(values, batch.values, rtol=0, atol=1e-5)
    assert batch.actions.dtype == (torch.float32 if kind == "continuous" else torch.int64)
    torch.testing.assert_close(batch.previous_actions[:, 1:], batch.actions[:, :-1])


def test_the_state_before_an_episode_has_no_effect():
    task = agent(rollouts())
    batch = collector(task).collect(24)
    other = batch._replace(state=[tuple(x + 1 for x in block) for block in task.initial_state(6)])
    same = parallel(task, batch._replace(reset=batch.reset | True))[0]
    torch.testing.assert_close(parallel(task, other._replace(reset=batch.reset | True))[0], same)
    assert not torch.equal(parallel(task, batch)[0], same)


def test_advantages_equal_a_loop_with_truncation():
    """Truncated episodes are continued with the value of their last observation, terminated ones with nothing."""
    task = agent(rollouts(), normalize_rewards=False, normalize_observations=False, gamma=0.9, gae_lambda=0.8)
    batch = collector(task).collect(24)
    env_rows = [Signal() for _ in range(6)]
    for row, env in enumerate(env_rows):  # the same episodes again, one environment after the other
        observation, _ = env.reset(seed=row)
        state, start, previous = task.initial_state(1), True, None
        values, rewards, following, ends = [], [], [], []

        def value(observation, state, start, previous):
            reset = torch.tensor([start])
            with torch.no_grad():
                _, v, state = task.step(torch.from_numpy(observation).unsqueeze(0), state, reset, previous)
            return v.item(), state

        for t in range(24):
            np.testing.assert_array_equal(batch.observations[row, t].numpy(), observation)
            assert batch.reset[row, t] == start
            v, state = value(observation, state, start, previous)
            previous = batch.actions[row, t : t + 1]
            observation, reward, terminated, truncated, _ = env.step(batch.actions[row, t].item() + 2)
            after = 0.0 if terminated else value(observation, state, False, previous)[0]
            start = terminated or truncated
            if start:
                observation, _ = env.reset()
            for column, each in zip((values, rewards, following, ends), (v, reward, after, start), strict=True):
                column.append(each)
        advantage = 0.0
        for t in reversed(range(24)):
            error = rewards[t] + 0.9 * following[t] - values[t]
            advantage = error + 0.9 * 0.8 * (not ends[t]) * advantage
            assert batch.advantages[row, t].item() == pytest.approx(advantage, abs=1e-4)


def test_statistics_are_those_of_the_rollouts_before():
    task = agent(rollouts())
    steps = collector(task)
    first = steps.collect(24)
    assert task.observation_count == 6 * 24  # of the rollout that is collected for them alone
    assert steps.steps == 2 * 6 * 24
    before = task.observation_mean.clone()
    steps.collect(24)
    assert task.observation_count == 2 * 6 * 24
    mean = (before + first.observations.flatten(0, 1).mean(0)) / 2
    torch.testing.assert_close(task.observation_mean, mean)
    assert (task.observation_mean - 2).abs().max() < 1
    assert (task.observation_std - 3).abs().max() < 1
    assert task.return_count == 3 * 6 * 24


def test_scaled_rewards_have_the_deviation_of_their_sums():
    task = agent(rollouts(), gamma=0.0)  # the sums are then the rewards
    rewards = 100 * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.scaled_rewards(rewards, rewards).std().item(), 1.0, rtol=0.01, atol=0)


def test_returns_and_lengths_of_finished_episodes():
    task = agent(rollouts())
    steps = collector(task, probability=0.0)  # every episode has 5 steps
    steps.collect(24)
    assert {length for _, length in steps.finished} == {5}
    assert len(steps.finished) == 6 * 5  # 24 steps before, so that the fifth episode ends with the first step


def test_the_same_seed_gives_the_same_rollout():
    batches = [collector(agent(rollouts())).collect(24) for _ in range(2)]
    assert torch.equal(batches[0].actions, batches[1].actions)
    torch.manual_seed(3)  # the global generator has no part in it
    other = agent(rollouts())
    torch.rand(5)
    assert torch.equal(collector(other).collect(24).actions, batches[0].actions)


def test_actions_follow_their_probabilities():
    task = agent(rollouts())
    with torch.no_grad():
        task.head.weight.zero_()
        task.head.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    actions = collector(task).collect(200).actions
    expected = torch.tensor([0.0, 1.0, -1.0]).softmax(-1)
    torch.testing.assert_close(actions.flatten().bincount() / actions.numel(), expected, rtol=0, atol=0.05)


def test_gymnasium_resets_in_the_same_step():
    """What the collector relies on."""
    envs = SyncVectorEnv([lambda: Signal(probability=0.0, limit=1)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=[0, 1])
    observation, _, _, truncated, info = envs.step(np.array([2, 3]))
    assert truncated.all()
    assert (np.stack(info["final_obs"]) != observation).all()
    assert isinstance(envs, gymnasium.vector.VectorEnv)
