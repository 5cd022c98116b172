"""The memory environments: Gymnasium's own check, stated returns, and policies written by hand that reach the best."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from minrnn_lightning.rl.environments import make
from minrnn_lightning.rl.memory_envs.registration import ENVIRONMENTS
from minrnn_lightning.rl.memory_envs.tmaze import EAST, NORTH, SOUTH


def play(env, policy, episodes):
    """Mean return of a policy, a function of all observations of an episode so far."""
    returns = []
    for seed in range(episodes):
        observations, total, end = [env.reset(seed=seed)[0]], 0.0, False
        while not end:
            observation, reward, terminated, truncated, _ = env.step(policy(observations))
            observations.append(observation)
            total, end = total + reward, terminated or truncated
        returns.append(total)
    return np.mean(returns)


def random_policy(env):
    env.action_space.seed(0)
    return lambda observations: env.action_space.sample()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_gymnasium_accepts(name):
    env = make(f"minrnn/{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of wrappers, which these have, and of infinite bounds; faults are errors
        check_env(env, skip_render_check=True)
    env.close()


def tmaze_policy(observations):
    """Remembers the first observation, and goes east up to the junction."""
    if observations[-1].tolist() != [0, 1, 0]:
        return EAST
    return NORTH if observations[0].tolist() == [0, 1, 1] else SOUTH


@pytest.mark.parametrize("length", [1, 10, 50])
def test_tmaze(length):
    env = make("minrnn/TMaze-v0", length=length)
    assert play(env, tmaze_policy, 20) == 4
    forgetful = play(env, lambda seen: NORTH if seen[-1].tolist() == [0, 1, 0] else EAST, 400)
    assert forgetful == pytest.approx(1.95, abs=0.3)


def test_tmaze_at_random_and_its_limit():
    env = make("minrnn/TMaze-v0")
    assert play(env, random_policy(env), 300) == pytest.approx(-5.0, abs=0.5)
    assert play(env, lambda seen: NORTH, 2) == pytest.approx(-0.1 * 110)  # 110 steps against the wall
    with pytest.raises(ValueError, match="limit must be above the length of the T-maze, 10, got 10"):
        make("minrnn/TMaze-v0", limit=10)


@pytest.mark.parametrize(("level", "k", "cards"), [("Easy", 4, 52), ("Medium", 32, 104), ("Hard", 64, 156)])
def test_repeat_previous(level, k, cards):
    env = make(f"minrnn/RepeatPrevious{level}-v0")
    steps = []

    def policy(seen):
        steps.append(len(seen))
        return int(seen[max(0, len(seen) - 1 - k)].argmax())

    assert play(env, policy, 3) == pytest.approx(1)
    assert max(steps) == cards


def test_repeat_previous_without_memory():
    env = make("minrnn/RepeatPreviousEasy-v0")
    assert play(env, lambda seen: (int(seen[-1].argmax()) + 1) % 4, 400) == pytest.approx(-0.490, abs=0.02)
    assert play(env, random_policy(env), 300) == pytest.approx(-0.5, abs=0.03)
    with pytest.raises(ValueError, match="k must be at least 1 and at most 51, got 52"):
        make("minrnn/RepeatPreviousEasy-v0", k=52)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("level", "cards"), [("Easy", 52), ("Hard", 156)])
def test_autoencode(level, cards, reverse):
    env = make(f"minrnn/Autoencode{level}-v0", reverse=reverse)

    def policy(seen):
        answer = len(seen) - cards
        shown = answer if not reverse else cards - 1 - answer
        return int(seen[shown][:4].argmax()) if answer >= 0 else 0

    assert play(env, policy, 2) == pytest.approx(1)
    assert play(env, lambda seen: 2, 5) == pytest.approx(-0.5)
    observation, _ = env.reset(seed=0)
    watching = [observation[4]]
    for _ in range(2 * cards - 2):
        observation, _, terminated, _, _ = env.step(0)
        assert not terminated
        watching.append(observation[4])
    assert env.step(0)[2]
    assert watching == [1] * (cards - 1) + [0] * cards


@pytest.mark.parametrize(
    ("name", "original", "kept"), [("CartPole", "CartPole-v1", [0, 2]), ("Pendulum", "Pendulum-v1", [0, 1])]
)
def test_positions_are_those_of_gymnasium(name, original, kept):
    env, whole = make(f"minrnn/{name}Position-v0"), gymnasium.make(original)
    assert env.spec.max_episode_steps == whole.spec.max_episode_steps
    observation, full = env.reset(seed=3)[0], whole.reset(seed=3)[0]
    for _ in range(9):
        np.testing.assert_array_equal(observation, full[kept])
        action = whole.action_space.sample()
        observation, reward, *_ = env.step(action)
        full, expected, *_ = whole.step(action)
        assert reward == expected


@pytest.mark.parametrize(("name", "mean", "error"), [("CartPole", 22, 3), ("Pendulum", -1240, 150)])
def test_random_actions_have_the_stated_return(name, mean, error):
    env = make(f"minrnn/{name}Position-v0")
    assert play(env, random_policy(env), 60) == pytest.approx(mean, abs=error)


def test_minigrid_at_random():
    env = make("minrnn/MiniGridMemory-v0")
    assert play(env, random_policy(env), 25) == pytest.approx(0.18, abs=0.12)


def test_minigrid_view_is_that_of_minigrid():
    env = make("minrnn/MiniGridMemory-v0", size=7)
    original = gymnasium.make("MiniGrid-MemoryS7-v0")
    observation, seen = env.reset(seed=1)[0], original.reset(seed=1)[0]
    cells = observation[:-4].reshape(7, 7, -1)
    assert (cells.sum(-1) == 3).all()
    np.testing.assert_array_equal(cells[..., :11].argmax(-1), seen["image"][..., 0])
    np.testing.assert_array_equal(cells[..., 11:17].argmax(-1), seen["image"][..., 1])
    np.testing.assert_array_equal(cells[..., 17:].argmax(-1), seen["image"][..., 2])
    assert observation[-4:].argmax() == seen["direction"]
    with pytest.raises(ValueError, match="size must be one of 7, 9, 11, 13, got 8"):
        make("minrnn/MiniGridMemory-v0", size=8)
