"""Playing episodes: against a loop written here, an environment whose returns are known, and through the command."""

import json
import sys
from typing import ClassVar

import gymnasium
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.utils.data import DataLoader

from minrnn_lightning.callbacks import EnvironmentReturn
from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.rl import environments
from minrnn_lightning.rl.rollout import rollout
from minrnn_lightning.tasks import LanguageTask, PolicyTask

SMALL = {"dim": 16, "depth": 2, "kernel_size": 3, "mlp_ratio": 2.0, "max_timestep": 50}
SIZES = {"Hopper-v5": (11, 3, False), "CartPole-v1": (4, 2, True), "Ladder-v0": (2, 1, False)}


class Ladder(gymnasium.Env):
    """Ends after 2 + seed % 5 steps; the reward of step n, from 1 on, is n; shows n and what was done."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 120}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n, self.length = 0, 2 + seed % 5
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        assert self.n < self.length, "nothing may happen after the end"
        assert self.action_space.contains(action)
        self.n += 1
        end = self.n == self.length
        return np.array([self.n, action[0]], dtype=np.float32), float(self.n), end and self.length % 2, end, {}

    def render(self):
        return np.full((8, 8, 3), 20 * self.n, dtype=np.uint8)


gymnasium.register("Ladder-v0", Ladder)


def policy(env_id, **options):
    torch.manual_seed(0)
    inputs, outputs, discrete = SIZES[env_id]
    task = PolicyTask(inputs, outputs, discrete=discrete, **{**SMALL, **options}).eval()
    for parameter in task.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return task


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


class Nothing(pl.LightningDataModule):
    """Random steps, with what a data module of trajectories knows."""

    def __init__(self, env_id):
        super().__init__()
        inputs, outputs, self.discrete = SIZES[env_id]
        self.env_id, self.max_return, self.length = env_id, 25.0, 4
        self.observation_mean, self.observation_std = torch.zeros(inputs), torch.ones(inputs)
        action = torch.zeros(2, 4).long() if self.discrete else torch.zeros(2, 4, outputs)
        times, true = torch.arange(4).expand(2, 4), torch.ones(2, 4, dtype=torch.bool)
        names = ("observations", "actions", "returns_to_go", "timesteps", "mask", "reset")
        parts = torch.randn(2, 4, inputs), action, torch.zeros(2, 4), times, true, true & (times == 0)
        self.batch = type("Batch", (), dict(zip(names, parts, strict=True)))

    def train_dataloader(self):
        return DataLoader([self.batch] * 6, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def fitted(folder, env_id, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        default_root_dir=folder, max_steps=6, val_check_interval=2, num_sanity_val_steps=1, **quiet, **options
    )
    task = policy(env_id).train()
    trainer.fit(task, Nothing(env_id))
    return trainer, task


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoint of a policy for Hopper after 6 steps."""
    folder = tmp_path_factory.mktemp("policy")
    trainer, _ = fitted(folder, "Hopper-v5", enable_checkpointing=False)
    trainer.save_checkpoint(folder / "hopper.ckpt")
    return folder / "hopper.ckpt"


def test_callback_logs_what_a_rollout_gives(tmp_path):
    seen = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append("val/return" in trainer.callback_metrics)
            trainer.callback_metrics.pop("val/return", None)

    play = EnvironmentReturn(episodes=2, targets=[20.0, 3600.0], every_n_validations=2, seed=5)
    trainer, task = fitted(tmp_path, "Hopper-v5", callbacks=[play, Note()], enable_checkpointing=False)
    assert seen == [False, False, True, True]  # sanity check, steps 2, 4 and 6, the last
    (metrics,) = trainer.test(task, Nothing("Hopper-v5"), verbose=False)
    played = rollout(task, "Hopper-v5", 2, [20.0, 3600.0], seed=5)
    for target, part in zip(("20", "3600"), played, strict=True):
        mean = sum(part.returns) / 2
        assert metrics[f"test/return/{target}"] == pytest.approx(mean, rel=1e-5)
        assert metrics[f"test/score/{target}"] == pytest.approx(normalized_score("Hopper-v5", mean), rel=1e-5)
    assert metrics["test/return"] == metrics["test/return/20"]


def test_callback_without_references_asks_for_the_best_return(tmp_path):
    trainer, task = fitted(
        tmp_path, "CartPole-v1", callbacks=[EnvironmentReturn(episodes=1)], enable_checkpointing=False
    )
    (metrics,) = trainer.validate(task, Nothing("CartPole-v1"), verbose=False)
    assert set(metrics) == {"val/loss", "val/return", "val/return/25"}


@pytest.mark.parametrize(
    "words", [["--target_return", "-20,-3.5e2"], ["--target_return=-20,-3.5e2"]], ids=["apart", "="]
)
def test_negative_targets(minrnn, trained, tmp_path, words):
    words = [f"--checkpoint={trained}", *words, "--episodes=1", f"--output={tmp_path}/x.json"]
    code, _, errors = minrnn("rollout", *words)
    assert code == 0, errors
    assert [part["target"] for part in json.loads((tmp_path / "x.json").read_bytes())["targets"]] == [-20, -350]


def test_command(minrnn, trained, tmp_path):
    files = [f"--output={tmp_path}/x.json", f"--histogram={tmp_path}/x.png"]
    code, out, errors = minrnn("rollout", f"--checkpoint={trained}", "--episodes=3", "--target_return=20,3600", *files)
    assert code == 0, errors
    assert "Hopper-v5, gymnasium" in out
    assert "mujoco" in out
    assert "do not compare with published D4RL scores" in " ".join(out.split())
    result = json.loads((tmp_path / "x.json").read_bytes())
    assert [part["target"] for part in result["targets"]] == [20, 3600]
    for part in result["targets"]:
        assert len(part["returns"]) == len(part["lengths"]) == 3
        assert part["return"] == pytest.approx(np.mean(part["returns"]))
        assert part["return_std"] == pytest.approx(np.std(part["returns"], ddof=1))
        assert part["score"] == pytest.approx(np.mean([normalized_score("Hopper-v5", r) for r in part["returns"]]))
        assert part["steps_per_second"] > 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    code, _, errors = minrnn("rollout", f"--checkpoint={trained}", "--episodes=1", "--mode=window", files[0])
    assert code == 0, errors
    result = json.loads((tmp_path / "x.json").read_bytes())
    assert (result["mode"], result["window"], result["targets"][0]["target"]) == ("window", 4, 25)


def test_command_films(minrnn, tmp_path):
    trainer, _ = fitted(tmp_path, "Ladder-v0", enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    code, _, errors = minrnn("rollout", f"--checkpoint={tmp_path}/x.ckpt", "--episodes=1", f"--video={tmp_path}/x.gif")
    assert code == 0, errors
    assert (tmp_path / "x.gif").read_bytes().startswith(b"GIF89a")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target_return=high"], "target_return must be numbers separated by commas, such as 3600,1800, got 'high'"),
        (["--episodes=0"], "episodes must be at least 1, got 0"),
        (["--env=Hoper-v5"], "Gymnasium cannot make the environment 'Hoper-v5'"),
        (["--env=HalfCheetah-v5"], "HalfCheetah-v5 has 17 numbers in an observation"),
        (["--mode=fast"], "mode"),
        (["--output=x.csv"], "output must be a file that ends in .json, got 'x.csv'"),
        (["--video=nowhere/x.gif"], "video is 'nowhere/x.gif', but there is no folder 'nowhere'"),
        (["--video=x.avi"], "video must be a file that ends in .gif or .mp4"),
        (["--checkpoint=nowhere.ckpt"], "nowhere.ckpt: there is no such file"),
    ],
)
def test_command_refuses(minrnn, trained, words, message):
    code, out, errors = minrnn("rollout", f"--checkpoint={trained}", *words)
    assert (code, out) == (1 if "mode" not in words[0] else 2, "")
    assert errors.startswith("minrnn: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_command_refuses_other_files(minrnn, trained, tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(trained.read_bytes()[:5000])
    assert (
        "torn.ckpt is not a checkpoint of plain tensors" in minrnn("rollout", f"--checkpoint={tmp_path}/torn.ckpt")[2]
    )
    whole = torch.load(trained, weights_only=True)
    language = LanguageTask(5, 5, dim=8, depth=1)
    other = {
        **whole,
        "task": "LanguageTask",
        "state_dict": language.state_dict(),
        "hyper_parameters": dict(language.hparams),
    }
    torch.save(other, tmp_path / "words.ckpt")
    code, _, errors = minrnn("rollout", f"--checkpoint={tmp_path}/words.ckpt")
    assert (code, errors.count("\n")) == (1, 1)
    assert "words.ckpt holds a LanguageTask; only a PolicyTask can act in an environment" in errors
    torch.save({**whole, "environment": {"env_id": "antigravity:Hopper-v5"}}, tmp_path / "imports.ckpt")
    errors = minrnn("rollout", f"--checkpoint={tmp_path}/imports.ckpt", "--target_return=1")[2]
    assert "'antigravity:Hopper-v5', which the checkpoint or its data set names, would import a module" in errors
    assert "antigravity" not in sys.modules
    torch.save({**whole, "environment": {}}, tmp_path / "homeless.ckpt")
    assert "does not say which environment it is for" in minrnn("rollout", f"--checkpoint={tmp_path}/homeless.ckpt")[2]


def test_what_is_missing_is_named(minrnn, trained, monkeypatch, tmp_path):
    monkeypatch.setattr("minrnn_lightning.commands.rollout.find_spec", lambda name: None)
    words = ["rollout", f"--checkpoint={trained}", "--episodes=1"]
    assert "an .mp4 needs an encoder: pip install imageio-ffmpeg" in minrnn(*words, f"--video={tmp_path}/x.mp4")[2]
    assert "a histogram needs matplotlib: pip install" in minrnn(*words, f"--histogram={tmp_path}/x.png")[2]
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    code, _, errors = minrnn(*words)
    assert (code, errors.count("\n")) == (1, 1)
    assert 'needs the package gymnasium: pip install "minrnn-lightning[rl]"' in errors
