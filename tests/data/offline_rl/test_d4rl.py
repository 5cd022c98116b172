"""D4RL's data sets: found, downloaded whole and checked, put together; and the scale of scores."""

import hashlib

import numpy as np
import pytest
from rl_files import write_d4rl

from minrnn_lightning.data import TrajectoryDataModule
from minrnn_lightning.data.offline_rl import d4rl
from minrnn_lightning.data.offline_rl.d4rl import FILES, NAMES, normalized_score


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in place of the server; the file that it gives has the checksum that is known for it."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(d4rl, "URL", folder.as_uri() + "/")
    return folder


def publish(monkeypatch, file, name):
    content = file.read_bytes()
    monkeypatch.setitem(FILES, name, (len(content), hashlib.sha256(content).hexdigest()))


def test_names_and_files():
    assert len(NAMES) == 12
    assert d4rl.file_name("halfcheetah-medium-replay-v2") == "halfcheetah_medium_replay-v2.hdf5"
    assert set(NAMES) - set(FILES) == {"halfcheetah-expert-v2", "walker2d-expert-v2"}
    assert all(len(sha256) == 64 and size > 5e7 for size, sha256 in FILES.values())


@pytest.mark.parametrize(
    ("name", "sizes", "env"),
    [
        ("hopper-medium-v2", (11, 3), "Hopper-v5"),
        ("halfcheetah-medium-replay-v2", (17, 6), "HalfCheetah-v5"),
        ("walker2d-medium-expert-v2", (17, 6), "Walker2d-v5"),
    ],
)
def test_sizes_are_known_before(name, sizes, env):
    data = TrajectoryDataModule(name)
    assert (data.input_size, data.output_size) == sizes
    assert data.source.env_id == env


def test_is_downloaded_and_found_again(tmp_path, server, monkeypatch):
    write_d4rl(server / "hopper_medium_replay-v2.hdf5", [5, 6, 7], partial=2)
    publish(monkeypatch, server / "hopper_medium_replay-v2.hdf5", "hopper-medium-replay-v2")
    for _ in range(2):
        data = TrajectoryDataModule("hopper-medium-replay-v2", data_dir=str(tmp_path / "data"))
        data.prepare_data()
        data.setup("fit")
        assert (data.env_id, data.episode_length, len(data.episode_returns)) == ("Hopper-v5", 7, 3)
        (server / "hopper_medium_replay-v2.hdf5").unlink(missing_ok=True)
    assert [file.name for file in (tmp_path / "data/d4rl").iterdir()] == ["hopper_medium_replay-v2.hdf5"]


def test_another_file_on_the_server_is_refused(tmp_path, server):
    write_d4rl(server / "hopper_medium-v2.hdf5", [5])
    data = TrajectoryDataModule("hopper-medium-v2", data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=rf"instead of {FILES['hopper-medium-v2'][1]}; the file was removed"):
        data.prepare_data()
    assert not (tmp_path / "data").exists() or not [*(tmp_path / "data").rglob("*")]


def test_unreachable(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl, "URL", "http://127.0.0.1:9/")
    data = TrajectoryDataModule("walker2d-medium-v2", data_dir=str(tmp_path))
    message = (
        rf"^The file {tmp_path}/d4rl/walker2d_medium-v2.hdf5 is missing and http://127.0.0.1:9/walker2d_medium-v2.hdf5 "
        r"cannot be reached \(.*\); save .* under that name, .* --data.data_dir or MINRNN_DATA_DIR, .* --data.dataset"
    )
    with pytest.raises(ConnectionError, match=message):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"walker2d_medium-v2.hdf5 is missing; call prepare_data"):
        data.setup("fit")


@pytest.mark.parametrize("env", ["halfcheetah", "walker2d"])
def test_what_has_no_checksum_is_placed_by_hand(tmp_path, env):
    data = TrajectoryDataModule(f"{env}-expert-v2", data_dir=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"{env}_expert-v2.hdf5 is missing, and not downloaded as its checksum"
    ):
        data.prepare_data()
    write_d4rl(tmp_path / f"{env}_expert-v2.hdf5", [4, 4], observation_size=17, action_size=6)
    data.prepare_data()
    data.setup("fit")
    assert data.env_id == d4rl.ENVIRONMENTS[env]


@pytest.mark.filterwarnings("ignore:.*is not the file of D4RL")
def test_medium_expert_of_its_halves(tmp_path):
    medium = write_d4rl(tmp_path / "d4rl/hopper_medium-v2.hdf5", [5, 6], partial=3)
    expert = write_d4rl(tmp_path / "hopper_expert-v2.hdf5", [7, 8], partial=1, seed=1)
    data = TrajectoryDataModule("hopper-medium-expert-v2", data_dir=str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    episodes = data.source.episodes
    assert episodes.ends.tolist() == [5, 11, 18, 26]
    assert np.array_equal(episodes.actions, np.concatenate([medium["actions"][:11], expert["actions"][:15]]))
    write_d4rl(tmp_path / "d4rl/hopper_medium_expert-v2.hdf5", [9])
    data = TrajectoryDataModule("hopper-medium-expert-v2", data_dir=str(tmp_path))
    data.setup("fit")
    assert data.episode_length == 9, "the official file comes first"


def test_another_file_under_the_name_is_said(tmp_path):
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", [5, 6])
    with pytest.warns(UserWarning, match=r"is not the file of D4RL: it has .* bytes instead of 152,756,557"):
        TrajectoryDataModule("hopper-medium-v2", data_dir=str(tmp_path)).setup("fit")


@pytest.mark.filterwarnings("ignore:.*is not the file of D4RL")
def test_another_environment_is_refused(tmp_path):
    write_d4rl(tmp_path / "walker2d_medium-v2.hdf5", [5, 6])
    message = r"walker2d-medium-v2 has observations and actions of 11 and 3 numbers, its environment of 17 and 6"
    with pytest.raises(ValueError, match=message):
        TrajectoryDataModule("walker2d-medium-v2", data_dir=str(tmp_path)).setup("fit")


def test_a_path_with_an_official_name_has_its_environment(tmp_path):
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", [5, 6])
    data = TrajectoryDataModule(str(tmp_path / "hopper_medium-v2.hdf5"))
    data.setup("fit")
    assert data.env_id == "Hopper-v5"


def test_normalized_score():
    assert normalized_score("Hopper-v5", -20.272305) == 0
    assert normalized_score("HalfCheetah-v4", 12135.0) == 100
    assert normalized_score("Walker2d-v5", 4592.3 / 2 + 1.629008 / 2) == pytest.approx(50)
    assert normalized_score("CartPole-v1", 500.0) is None
