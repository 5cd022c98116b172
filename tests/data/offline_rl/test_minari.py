"""Minari's data sets: found by id or folder, downloaded whole, read, and a sentence where that is not possible."""

import json
import warnings

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hdf5_links import ELSEWHERE, put_elsewhere
from minari.data_collector.episode_buffer import EpisodeBuffer

from minrnn_lightning.data import TrajectoryDataModule
from minrnn_lightning.data.offline_rl.minari import new_sets, storages

LENGTHS = [5, 9, 4]
SEEN, DONE = Box(-np.inf, np.inf, (6,)), Box(-1, 1, (2,))


@pytest.fixture(autouse=True)
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "storage"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "storage"


def write_set(name, seen=SEEN, done=DONE, env=None, lengths=LENGTHS):
    for space in (seen, done):
        space.seed(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations={key: np.stack([sub.sample() for _ in range(steps + 1)]) for key, sub in seen.items()}
            if isinstance(seen, Dict)
            else np.stack([seen.sample() for _ in range(steps + 1)]),
            actions=np.stack([done.sample() for _ in range(steps)]),
            rewards=list(np.arange(steps, dtype=float)),
            terminations=[False] * steps,
            truncations=[False] * (steps - 1) + [True],
        )
        for number, steps in enumerate(lengths)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(name, buffers, env, observation_space=seen, action_space=done)


def ready(dataset, **options):
    data = TrajectoryDataModule(str(dataset), **options)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["local/thing/medium-v0", "medium-v3"])
def test_episodes_are_those_of_minari(name, storage):
    write_set(name)
    data = ready(name)
    assert (data.input_size, data.output_size, data.env_id, data.discrete) == (6, 2, None, False)
    assert data.episode_returns.tolist() == [10, 36, 6]
    stored = list(minari.load_dataset(name))
    episodes = data.source.episodes
    for episode, start, end in zip(stored, episodes.starts, episodes.ends, strict=True):
        assert np.array_equal(episodes.observations[start:end], episode.observations[:-1].astype(np.float32))
        assert np.array_equal(episodes.actions[start:end], episode.actions)
    assert np.array_equal(ready(storage / name).source.episodes.observations, episodes.observations), "by its folder"


def test_numbered_actions_and_environment():
    env = gymnasium.make("CartPole-v1")
    write_set("cartpole/some-v0", env.observation_space, env.action_space, env)
    data = ready("cartpole/some-v0")
    assert (data.input_size, data.output_size, data.env_id, data.discrete) == (4, 2, "CartPole-v1", True)
    assert next(iter(data.train_dataloader())).actions.dtype == torch.int64


@pytest.mark.parametrize("given", [{"g": 5.0, "max_episode_steps": 20}, {"render_mode": "rgb_array"}], ids=str)
def test_arguments_of_the_environment(given):
    env = gymnasium.make("Pendulum-v1", **given)
    write_set("our/pendulum-v0", env.observation_space, env.action_space, env)
    expected = {"max_episode_steps": 200} | {name: value for name, value in given.items() if name != "render_mode"}
    data = ready("our/pendulum-v0")
    assert (data.env_id, data.env_args) == ("Pendulum-v1", expected)


def test_bounds_of_actions(recwarn):
    space = Box(np.array([-0.4, 0, -np.inf, -np.inf]), np.array([0.4, 10, np.inf, 3]), dtype=np.float64)
    write_set("our/bounded-v0", done=space)
    data = ready("our/bounded-v0")
    recorded = data.source.episodes.actions
    least, greatest = recorded.min(0), recorded.max(0)
    assert least[2] < -1 < greatest[2] - 1, "what is not finite is taken from what was recorded"
    assert data.action_low.tolist() == pytest.approx([-0.4, 0, least[2], min(-1, least[3])])
    assert data.action_high.tolist() == pytest.approx([0.4, 10, greatest[2], max(1, greatest[3])])
    assert not [each for each in recwarn if "action" in str(each.message)]


def test_recorded_actions_outside_the_space(storage):
    write_set("our/set-v0")
    with h5py.File(storage / "our/set-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/actions"][2] = [0.5, 1.0005]  # rounding
        assert ready("our/set-v0").action_high.tolist() == [1, 1]
        file["episode_1/actions"][2] = [0.5, 3.5]
    with pytest.warns(
        UserWarning, match=r"our/set-v0 has actions up to 2.5 outside its action space, in component 1, "
    ):
        data = ready("our/set-v0")
    assert data.action_high.tolist() == [1, 1]


def test_numbered_actions_outside_the_space(storage):
    write_set("our/set-v0", done=Discrete(3))
    with h5py.File(storage / "our/set-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/actions"][2] = 3
    with pytest.raises(ValueError, match="our/set-v0 has the action 3, its environment 3 actions from 0 on"):
        ready("our/set-v0")


def test_where_it_is_looked_for(tmp_path, monkeypatch, cache):
    folders = storages(tmp_path / "data")
    assert folders == [tmp_path / "storage", tmp_path / "data/minari", tmp_path / "home/.minari/datasets"]
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    assert storages(tmp_path / "data") == folders[1:]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folders[1]))
    write_set("our/set-v0")
    (tmp_path / "data").chmod(0o555)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    assert storages(tmp_path / "data") == [cache / "minari", *folders[1:]], "a read-only folder stays as it is"
    assert ready("our/set-v0", data_dir=str(tmp_path / "data")).input_size == 6


@pytest.mark.parametrize("name", ["mujoco/hopper/medium-v0", "mujoco/halfcheetah/expert-v0"])
def test_missing_set_of_minari(name, monkeypatch, storage):
    data = TrajectoryDataModule(name)
    assert (data.input_size, data.output_size) == ((11, 3) if "hopper" in name else (17, 6))

    def offline(dataset):
        write_set(dataset)
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(minari, "download_dataset", offline)
    message = rf"^The Minari data set {name} is in none of {storage}, .*home/.minari/datasets, and .* \(no network\);"
    with pytest.raises(FileNotFoundError, match=message):
        data.prepare_data()
    assert not storage.exists()


def test_download(monkeypatch, storage):
    monkeypatch.setattr(minari, "download_dataset", write_set)
    assert ready("mujoco/thing/medium-v0").input_size == 6
    assert sorted(str(file.relative_to(storage)) for file in storage.rglob("*.json")) == [
        "mujoco/namespace_metadata.json",
        "mujoco/thing/medium-v0/data/metadata.json",
        "mujoco/thing/namespace_metadata.json",
    ]
    assert minari.load_dataset("mujoco/thing/medium-v0").total_episodes == 3


def test_sizes_of_a_missing_set():
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing-v0 is in none of .*; fetch it with `minari download"):
        _ = TrajectoryDataModule("nobody/nothing-v0").input_size


@pytest.mark.parametrize(
    ("seen", "done", "message"),
    [
        (Dict(a=SEEN), DONE, "has observations Dict"),
        (Box(0, 1, (3, 3)), DONE, "has observations Box"),
        (SEEN, Discrete(3, start=1), r"has actions Discrete\(3, start=1\); only vectors and Discrete from 0 are read"),
    ],
)
def test_other_spaces(seen, done, message):
    write_set("our/set-v0", seen, done)
    with pytest.raises(ValueError, match=message):
        ready("our/set-v0")


def test_damaged_sets(storage):
    write_set("our/set-v0")
    file, metadata = storage / "our/set-v0/data/main_data.hdf5", storage / "our/set-v0/data/metadata.json"
    content = file.read_bytes()
    file.write_bytes(content[:2000])
    with pytest.raises(ValueError, match=r"our/set-v0 is damaged \("):
        ready("our/set-v0")
    file.write_bytes(content)
    about = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(about | {"total_episodes": 7}))
    with pytest.raises(ValueError, match=r"our/set-v0 is damaged \(KeyError"):
        ready("our/set-v0")
    for text in ("{", "{}", json.dumps({**about, "minari_version": "9.9"})):
        metadata.write_text(text)
        with pytest.raises(ValueError, match="our/set-v0 is damaged or no data set of Minari"):
            ready("our/set-v0")


@pytest.mark.parametrize(
    "change",
    [
        {"observation_space": None},
        {"action_space": {"type": "Box"}},
        {"observation_space": '{"type": "Sphere"}'},
        {"observation_space": "Box"},
        {"action_space": '{"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0]}'},
        {"env_spec": "{}"},
        {"env_spec": 5},
        {"env_spec": '{"id": 7, "additional_wrappers": []}'},
        {"data_format": "csv"},
        {"data_format": None},
        {"total_episodes": "three"},
        {"total_episodes": None},
        {"dataset_id": 5},
        {"minari_version": None},
    ],
    ids=str,
)
def test_broken_metadata(storage, change):
    write_set("our/set-v0")
    metadata = storage / "our/set-v0/data/metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | change))
    with pytest.raises(ValueError, match="our/set-v0 is damaged or no data set of Minari"):
        ready("our/set-v0")


@pytest.mark.parametrize("content", ["[]", "5", "null", "\xff", "[" * 100_000, "", "{'a': 1}"], ids=range(7))
def test_metadata_that_are_none(storage, content):
    write_set("our/set-v0")
    (storage / "our/set-v0/data/metadata.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="our/set-v0 is damaged or no data set of Minari"):
        ready("our/set-v0")


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_metadata_run_no_code(storage, missing, tmp_path, monkeypatch):
    """Without the spaces, Minari would make the environment, from an entry point that the metadata name."""
    (tmp_path / "attack.py").write_text("import gymnasium\ndef make(**_):\n    raise SystemExit('code has run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    write_set("our/set-v0")
    metadata = storage / "our/set-v0/data/metadata.json"
    about = json.loads(metadata.read_text())
    about["env_spec"] = json.dumps({"id": "Our-v0", "entry_point": "attack:make", "additional_wrappers": []})
    metadata.write_text(json.dumps(about))
    assert ready("our/set-v0").env_id == "Our-v0"
    del about[missing]
    metadata.write_text(json.dumps(about))
    with pytest.raises(SystemExit, match="code has run"):
        minari.load_dataset("our/set-v0")
    with pytest.raises(
        ValueError, match="holds no observation_space and action_space as text, and to find them Minari"
    ):
        ready("our/set-v0")


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_parts_in_other_files_are_refused(storage, kind):
    write_set("our/set-v0")
    file = storage / "our/set-v0/data/main_data.hdf5"
    put_elsewhere(file, kind, inside="episode_1/")
    assert len(list(minari.load_dataset("our/set-v0"))) == 3, "Minari would read it"
    where = (
        ELSEWHERE[kind].replace("'", "'episode_1/", 1) if kind in ("link", "virtual", "external") else ELSEWHERE[kind]
    )
    with pytest.raises(ValueError, match=rf"main_data.hdf5 has {where}, which is not read"):
        ready("our/set-v0")


@pytest.mark.parametrize("array", ["rewards", "actions", "observations"])
@pytest.mark.parametrize("value", [np.float32(3), b"word", np.ones((4, 4, 4)), np.full(9, b"x")], ids=range(4))
def test_damaged_episodes(storage, array, value):
    write_set("our/set-v0")
    with h5py.File(storage / "our/set-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1"][array]
        file["episode_1"][array] = value
    with pytest.raises(ValueError, match=r"^(Episode 1 of )?.*our/set-v0 (is damaged|has|must have) "):
        ready("our/set-v0")


def test_an_empty_set():
    write_set("our/none-v0", lengths=[])
    with pytest.raises(ValueError, match=r"our/none-v0 has no complete episode"):
        ready("our/none-v0")


def test_nothing_is_left_when_writing_fails(storage):
    def write_half():
        write_set("our/set-v0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_sets(storage):
        write_half()
    assert not storage.exists()
    with new_sets(storage):
        write_set("our/set-v0")
    assert minari.load_dataset("our/set-v0").total_episodes == 3
