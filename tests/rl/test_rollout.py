"""Playing episodes: against a loop written here, and an environment whose returns are known."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from acting import Ladder, policy
from gymnasium.spaces import Box, Discrete

from minrnn_lightning.rl import environments
from minrnn_lightning.rl.rollout import rollout


@torch.no_grad()
def by_hand(task, env_id, seed, target, window):
    """Return and length of one episode; the policy sees the last ``window`` steps as one sequence."""
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=seed)
    seen, done, wanted, rewards, over = [], [], [target], [], False
    while not over:
        seen.append(torch.tensor(observation, dtype=torch.float32))
        done.append(torch.zeros(()).long() if task.discrete else torch.zeros(task.output_size))
        first = max(0, len(seen) - window)
        times = torch.arange(first, len(seen)).unsqueeze(0)
        given = (
            torch.stack(seen[first:])[None],
            torch.stack(done[first:])[None],
            torch.tensor(wanted[first:]).float()[None],
            times,
        )
        output = task(*given)[0, -1]
        done[-1] = output.argmax() if task.discrete else output
        action = int(done[-1]) if task.discrete else np.clip(output.numpy(), -1, 1)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        wanted.append(target - sum(rewards))
        over = terminated or truncated
    return sum(rewards), len(rewards)


@pytest.mark.parametrize("layout", ["decision_transformer", "compact"])
@pytest.mark.parametrize("mixer", ["mingru", "attention", ["minlstm", "attention"], "mamba"], ids=str)
@pytest.mark.parametrize("mode", ["carry", "window"])
@pytest.mark.parametrize("env_id", ["Hopper-v5", "CartPole-v1"])
def test_equals_a_loop_over_one_environment(env_id, mode, mixer, layout):
    task = policy(env_id, mixer=mixer, layout=layout)
    (played,) = rollout(task, env_id, 3, [30.0], mode=mode, window=5, seed=7)
    expected = [by_hand(task, env_id, 7 + i, 30.0, 5 if mode == "window" else 10**6) for i in range(3)]
    assert played.lengths == [length for _, length in expected]
    assert played.returns == pytest.approx([value for value, _ in expected], rel=1e-3)  # rounding grows in MuJoCo


@pytest.mark.parametrize("num_envs", [1, 3, 32])
@pytest.mark.parametrize("mode", ["carry", "window"])
def test_returns_of_a_known_environment(num_envs, mode):
    task, asked = policy("Ladder-v0"), []
    original = task.forward if mode == "window" else task.step

    def spy(observation, before, wanted, timestep, *rest):
        asked.append(
            (wanted if wanted.ndim == 1 else wanted[:, -1], timestep if timestep.ndim == 1 else timestep[:, -1])
        )
        return original(observation, before, wanted, timestep, *rest)

    setattr(task, "forward" if mode == "window" else "step", spy)
    low, high = rollout(task, "Ladder-v0", 7, [10.0, 100.0], mode=mode, seed=3, num_envs=num_envs, window=2)
    lengths = [2 + seed % 5 for seed in range(3, 10)]
    for played, target in ((low, 10.0), (high, 100.0)):
        assert (played.target, played.lengths) == (target, lengths)
        assert played.returns == [n * (n + 1) / 2 for n in lengths]
    triples = {(float(w), int(t)) for wanted, times in asked for w, t in zip(wanted, times, strict=True)}
    assert triples == {(target - t * (t + 1) / 2, t) for target in (10.0, 100.0) for t in range(max(lengths))}


def test_same_seed_same_episodes_and_no_trace():
    task = policy("Hopper-v5", dropout=0.5).train()
    before = torch.get_rng_state()
    one, two = rollout(task, "Hopper-v5", 2, [50.0, 50.0])
    assert one.returns == two.returns
    assert task.training
    assert torch.equal(before, torch.get_rng_state())
    assert rollout(task, "Hopper-v5", 2, [50.0], seed=1)[0].returns != one.returns


class Wide(Ladder):
    """The same with actions from -2 to 6, which are noted."""

    action_space = Box(-2, 6, (1,))
    taken: ClassVar[list[float]] = []

    def step(self, action):
        self.taken.append(float(action[0]))
        return super().step(action)


gymnasium.register("Wide-v0", Wide)


@pytest.mark.parametrize("mode", ["carry", "window"])
def test_actions_are_those_of_the_environment(mode, recwarn):
    task = policy("Ladder-v0")
    task.bound_actions([-2.0], [6.0])
    task.head[0].weight.data.zero_()
    task.head[0].bias.data.fill_(0.5)
    Wide.taken.clear()
    rollout(task, "Wide-v0", 2, [5.0], mode=mode)
    assert Wide.taken == pytest.approx([2 + 4 * np.tanh(0.5)] * 5)
    assert not [each for each in recwarn if "go from" in str(each.message)]


def test_other_bounds_than_the_environment_warn():
    message = r"component 0 the actions of Wide-v0 go from -2 to 6, those of this policy from -1 to 1: it was trained"
    with pytest.warns(UserWarning, match=message):
        rollout(policy("Ladder-v0"), "Wide-v0", 1, [5.0])


@pytest.mark.parametrize("known", ["attack:Ladder-v0", 5])
def test_an_environment_in_a_file_imports_nothing(known, monkeypatch, tmp_path):
    (tmp_path / "attack.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    task = policy("Ladder-v0")
    assert environments.environment_of(task) is None
    task.environment["env_id"] = known
    with pytest.raises(ValueError, match=rf"the environment '?{known}'?, which .* --env or env_id"):
        environments.environment_of(task)
    assert environments.environment_of(task, "ours:Ladder-v0") == "ours:Ladder-v0"
    task.environment["env_id"] = "Ladder-v0"
    assert environments.environment_of(task) == "Ladder-v0"


def test_cloning_needs_no_target():
    (played,) = rollout(policy("Ladder-v0", condition_on_return=False), "Ladder-v0", 2)
    assert (played.target, played.lengths) == (None, [2, 3])


def test_records_one_episode_at_its_own_speed():
    (played,) = rollout(policy("Ladder-v0"), "Ladder-v0", 1, [5.0], seed=4, record=True)
    assert [frame[0, 0, 0] for frame in played.frames] == [0, 80]  # of 6 steps at 120 a second, every fourth
    assert played.frames_per_second == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"mode": "window", "window": 0}, "window must be at least 1, got 0"),
        ({"mode": "fast"}, "mode must be carry or window, got fast"),
        ({"targets": [None]}, "give a target_return"),
        ({"targets": [float("nan")]}, "give a target_return"),
        ({"targets": []}, "give a target_return"),
        ({"env_id": "Hoper-v5"}, r"Gymnasium cannot make the environment 'Hoper-v5' \(.*\): give one like Hopper-v5"),
        ({"env_id": "Hopper-v3"}, "Gymnasium cannot make the environment 'Hopper-v3'"),
        (
            {"env_id": "HalfCheetah-v5"},
            "HalfCheetah-v5 has 17 numbers in an observation and 6 numbers in an action, the policy 11 and 3 numbers",
        ),
        ({"env_id": "CartPole-v1"}, "4 numbers in an observation and 2 discrete actions, the policy 11 and 3 numbers"),
        ({"env_id": "FrozenLake-v1"}, r"FrozenLake-v1 has the observations Discrete\(16\)"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        rollout(policy("Hopper-v5"), **{"env_id": "Hopper-v5", "episodes": 1, "targets": [1.0], **options})


def test_an_environment_with_other_choices_starts_where_it_does(monkeypatch):
    task, taken = policy("CartPole-v1"), []

    class Shifted(Ladder):
        observation_space, action_space = Box(-1, 1, (4,)), Discrete(2, start=5)

        def step(self, action):
            taken.append(action)
            return np.zeros(4), 0.0, len(taken) == 3, False, {}

        def reset(self, **options):
            return np.zeros(4), {}

    monkeypatch.setattr(environments, "make", lambda *_, **__: Shifted())
    monkeypatch.setattr("minrnn_lightning.rl.rollout.make", lambda *_, **__: Shifted())
    rollout(task, "x", 1, [1.0])
    assert len(taken) == 3
    assert set(taken) <= {5, 6}
