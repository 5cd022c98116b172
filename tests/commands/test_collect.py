"""``minrnn collect``: the search improves, its trials repeat, the data sets say what they are, and are read again."""

import gymnasium
import minari
import numpy as np
import pytest

from minrnn_lightning import TrajectoryDataModule
from minrnn_lightning.rl.random_search import LinearPolicy, Settings, run_episode, search

SMALL = ["--episodes=3", "--iterations=3"]


class Target(gymnasium.Env):
    """The reward is the higher the closer the action is to a linear function of the observation; standing pays too."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-5, 5, (1,), np.float64)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._look(), {}

    def _look(self):
        self.seen = self.np_random.standard_normal(2) * [1, 100] + [3, 0]
        return self.seen

    def step(self, action):
        bonus = 1000.0 * (abs(action[0]) < 0.1)
        reward = -((action[0] - 2 * (self.seen[0] - 3)) ** 2)
        return self._look(), reward + bonus, False, False, {"reward_survive": bonus}


@pytest.fixture
def environment():
    return gymnasium.wrappers.TimeLimit(Target(), 20)


def test_search_finds_the_policy_without_the_bonus(environment):
    policies = [policy for policy, _ in search(environment, Settings(8, 4, 0.05, 0.1, 100), seed=0)]
    assert np.allclose(policies[-1].weights, [[2, 0]], atol=0.3)
    assert np.allclose(policies[-1].mean, [3, 0], atol=3)
    assert np.allclose(policies[-1].std, [1, 100], rtol=0.05)


def test_moments_are_those_of_all_observations(environment):
    trials = []
    for policy, tried in search(environment, Settings(3, 2, 0.1, 0.1, 4), seed=1):
        if trials:
            seen = np.concatenate([run_episode(environment, t.policy, t.seed).observations[:-1] for t in trials])
            assert np.allclose(policy.mean, seen.mean(0))
            assert np.allclose(policy.std, seen.std(0))
        trials += tried
    assert len(trials) == 24


def test_a_trial_repeats_and_noise_is_cut():
    environment = gymnasium.make("Hopper-v5")
    for _, trials in search(environment, Settings(2, 1, 0.01, 0.02, 2), seed=0):
        for trial in trials:
            assert run_episode(environment, trial.policy, trial.seed).rewards.sum() == trial.score
    policy = LinearPolicy(np.zeros((3, 11)), np.zeros(11), np.ones(11))
    first, again, other = (run_episode(environment, policy, seed, noise=0.7) for seed in (0, 0, 1))
    assert np.array_equal(first.observations, again.observations)
    assert not np.array_equal(first.actions[:5], other.actions[:5])
    assert first.actions.min() == -1
    assert first.actions.max() == 1
    assert first.observations.shape == (len(first.rewards) + 1, 11)
    assert first.survival == pytest.approx(len(first.rewards) - 1), "none for the step that falls"


def test_data_sets(minrnn, tmp_path, monkeypatch):
    storage = tmp_path / "storage"
    code, out, errors = minrnn("collect", "--env=Hopper-v5", f"--output={storage}", *SMALL)
    assert code == 0, errors
    assert f"gymnasium {gymnasium.__version__}, mujoco " in out
    assert "on D4RL's scale; not comparable" in out
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(storage))
    sets = {kind: minari.load_dataset(f"selfmade/hopper/{kind}-v0") for kind in ("medium", "replay", "medium-expert")}
    assert {kind: len(found) for kind, found in sets.items()} == {"medium": 3, "replay": 3, "medium-expert": 6}
    for kind, found in sets.items():
        assert found.env_spec.id == "Hopper-v5"
        assert found.storage.metadata["description"].startswith("self-generated, Hopper-v5, linear-policy data")
        assert "D4RL" not in str(found.storage.metadata)
        for episode in found:
            steps = len(episode.rewards)
            assert episode.observations.shape == (steps + 1, 11)
            assert episode.terminations.tolist() == [False] * (steps - 1) + [True]
            assert not episode.truncations.any()
        data = TrajectoryDataModule(f"selfmade/hopper/{kind}-v0")
        data.prepare_data()
        data.setup("fit")
        returns = [episode.rewards.sum() for episode in found]
        assert (data.env_id, data.input_size, data.output_size) == ("Hopper-v5", 11, 3)
        np.testing.assert_allclose(data.episode_returns, returns, rtol=1e-6)
        mean = f"{np.mean(returns):,.1f}"
        assert next(line for line in out.splitlines() if f"{kind}-v0 " in line).count(f" {mean} ") == 1
    assert all(
        np.array_equal(a.actions, b.actions) for a, b in zip(sets["medium"], sets["medium-expert"], strict=False)
    )
    code, _, errors = minrnn("collect", "--env=Hopper-v5", f"--output={storage}")
    assert code == 1
    assert errors.startswith(f"minrnn: {storage}/selfmade/hopper/medium-v0 is there already; remove it, or ")


def test_the_same_seed_gives_the_same_data(minrnn, tmp_path, monkeypatch):
    found = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = [f"--output={tmp_path / folder}", "--namespace=mine", f"--seed={seed}", "--noise=0.3"]
        assert minrnn("collect", "--env=Pendulum-v1", *SMALL, *options)[0] == 0
        data = TrajectoryDataModule(str(tmp_path / folder / "mine/pendulum/replay-v0"))
        found.append(data.source.episodes)
    assert np.array_equal(found[0].observations, found[1].observations)
    assert not np.array_equal(found[0].observations[1:9], found[2].observations[1:9])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--env=Nothing-v0"],
            "Gymnasium cannot make the environment 'Nothing-v0' (Environment `Nothing` doesn't exist",
        ),
        (["--env=Hopper-v2"], "Gymnasium cannot make the environment 'Hopper-v2' ("),
        (["--env=no_such_module:Thing-v0"], "Gymnasium cannot make the environment 'no_such_module:Thing-v0' ("),
        (["--env=CartPole-v1"], "CartPole-v1 has actions Discrete(2); the teacher needs a vector of real numbers, Box"),
        (["--env=CarRacing-v3"], "CarRacing-v3"),
        (["--episodes=0"], "episodes must be at least 1, got 0"),
        (["--iterations=0"], "iterations must be at least 1, got 0"),
        (["--noise=-1"], "noise and seed must be at least 0, got noise -1.0, seed 0"),
        (["--namespace=a b"], "namespace must be at least two letters, digits, -, _ and / between them, got 'a b'"),
        (["--namespace=/"], "namespace must be at least two letters"),
    ],
)
def test_bad_options_get_a_sentence(minrnn, tmp_path, options, message):
    code, _, errors = minrnn("collect", f"--output={tmp_path / 'new'}", *options)
    assert code == 1
    assert message in errors
    assert errors.startswith("minrnn: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("package", ["gymnasium", "minari"])
def test_without_the_extra(minrnn, tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    code, _, errors = minrnn("collect", f"--output={tmp_path / 'new'}", *SMALL)
    assert code == 1
    assert errors.endswith(f'minrnn: This needs the package {package}: pip install "minrnn-lightning[rl]"\n')
