"""Episodes in HDF5 and .npz files: folders of them, links, and one sentence for files with faults."""

import h5py
import numpy as np
import pytest
import torch
from hdf5_links import ELSEWHERE, put_elsewhere
from mistakes import make
from rl_files import make_steps, write_d4rl

from minrnn_lightning.data import TrajectoryDataModule
from minrnn_lightning.data.offline_rl import array_files

LENGTHS = [7, 30, 12, 25, 3, 18, 21, 40, 9, 15]


def ready(dataset, **options):
    data = TrajectoryDataModule(str(dataset), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def write_folder(folder, lengths, discrete=False, suffix=".npz"):
    folder.mkdir()
    arrays, end = make_steps(lengths, discrete=discrete, action_size=4), 0
    for number, length in enumerate(lengths):
        episode = {name: array[end : end + length] for name, array in arrays.items()}
        end += length
        if number % 2:
            episode["terminals"] = np.arange(length) == length - 1
        if suffix == ".npz":
            np.savez(folder / f"{number:03}.npz", **episode)
        else:
            with h5py.File(folder / f"{number:03}{suffix}", "w") as group:
                for name, array in episode.items():
                    group[name] = array
    return arrays


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_folder(tmp_path, discrete, suffix):
    arrays = write_folder(tmp_path / "set", LENGTHS, discrete, suffix)
    data = ready(tmp_path / "set")
    assert (data.input_size, data.output_size, data.env_id, data.discrete) == (11, 4, None, discrete)
    episodes = data.source.episodes
    assert episodes.ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert np.array_equal(episodes.actions, arrays["actions"])
    assert next(iter(data.train_dataloader())).actions.dtype == (torch.int64 if discrete else torch.float32)


def test_folder_with_faults(tmp_path):
    folder = tmp_path / "set"
    write_folder(folder, [4, 4])
    good = dict(np.load(folder / "000.npz"))

    def refuse(match, **changes):
        arrays = {name: array for name, array in (good | changes).items() if array is not None}
        np.savez(folder / "000.npz", **arrays)
        with pytest.raises(ValueError, match=match):
            ready(folder)

    refuse(r"000.npz has no array 'rewards'; it has 'observations', 'actions'", rewards=None)
    refuse(r"000.npz has arrays of different lengths: observations \(4, 11\), actions \(4, 4\)", rewards=np.ones(3))
    refuse(r"different lengths.*terminals \(5,\)", terminals=np.zeros(5, bool))
    refuse(r"more than one episode, as its step 1 is terminal", terminals=np.arange(4) == 1)
    refuse(r"actions \(steps, action_size\) of real numbers or \(steps,\) of integers", actions=np.ones(4))
    refuse(r"of integers, got \(4, 2\) of int64", actions=np.ones((4, 2), int))
    refuse(r"must have observations \(steps, observation_size\)", observations=np.ones((4, 2, 2)))
    refuse(r"observations that are not finite numbers, first at step 2", observations=np.diag([1, 1, np.inf, 1]))
    refuse(r"has an action -1; discrete actions must begin with 0", actions=np.array([0, 1, -1, 0]))
    refuse(r"set has episodes with different actions: int64 of \[\] and float32 of \[4\]", actions=np.arange(4))
    refuse(r"no complete episode of one step or more", **{name: array[:0] for name, array in good.items()})
    refuse(r"000.npz is damaged or no .npz file of plain arrays .*allow_pickle", rewards=np.array([None] * 4))
    (folder / "000.npz").write_bytes((folder / "001.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"000.npz is damaged or no .npz file"):
        ready(folder)


@pytest.mark.parametrize("junk", ["._0.npz", ".hidden.h5", ".1.hdf5"])
def test_hidden_files_are_no_episodes(tmp_path, junk):
    np.savez(tmp_path / "0.npz", **make_steps([4]))
    (tmp_path / junk).write_bytes(b"Mac OS X")
    assert ready(tmp_path, val_fraction=0).episode_length == 4


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_parts_in_other_files_are_refused(tmp_path, kind, folder):
    file = tmp_path / "episodes" / "0.hdf5"
    write_d4rl(file, [5])
    put_elsewhere(file, kind)
    with h5py.File(file) as group:
        assert {"observations", "actions", "rewards"} <= {name for name in group if name in group}, "HDF5 would read it"
    with pytest.raises(ValueError, match=rf"0.hdf5 has {ELSEWHERE[kind]}, which is not read; copy it into the file"):
        ready(file.parent if folder else file)


def test_links_inside_a_file_are_read(tmp_path):
    arrays = write_d4rl(tmp_path / "set.hdf5", [4, 5])
    with h5py.File(tmp_path / "set.hdf5", "a") as group:
        group["kept/actions"] = group["actions"]
        del group["actions"]
        group["actions"] = h5py.SoftLink("/kept/actions")
        group["kept/round"] = group["/"]
        layout = h5py.VirtualLayout(arrays["rewards"].shape, arrays["rewards"].dtype)
        group["kept/rewards"] = arrays["rewards"]
        layout[:] = h5py.VirtualSource(group["kept/rewards"])
        del group["rewards"]
        group.create_virtual_dataset("rewards", layout)
    episodes = ready(tmp_path / "set.hdf5").source.episodes
    assert np.array_equal(episodes.actions, arrays["actions"])
    assert np.array_equal(episodes.rewards, arrays["rewards"])


def test_damaged_files(tmp_path):
    def refuse(match, lengths=(4, 5), **changes):
        write_d4rl(tmp_path / "set.hdf5", lengths, **changes)
        with pytest.raises(ValueError, match=match):
            ready(tmp_path / "set.hdf5")

    refuse(r"set.hdf5 has no array 'timeouts'; it has 'actions', ", timeouts=None)
    refuse(r"set.hdf5 has no array 'observations'", observations=None)
    refuse(r"set.hdf5 has arrays of different lengths: .*rewards \(3,\)", rewards=np.ones(3))
    refuse(r"set.hdf5 has arrays of different lengths: .*timeouts \(3,\)", timeouts=np.ones(3, bool))
    refuse(r"set.hdf5 has rewards of \|S1; only real numbers are read", rewards=np.full(9, b"x"))
    refuse(r"set.hdf5 has arrays of different lengths: .*actions \(\)", actions=h5py.Empty("f"))
    refuse(r"set.hdf5 has observations of complex64; only real", observations=np.ones((9, 11), np.complex64))
    refuse(r"set.hdf5 has no complete episode of one step or more", lengths=(), partial=8)
    refuse(r"set.hdf5 has no complete episode of one step or more", lengths=())
    refuse(r"set.hdf5 has rewards that are not finite numbers, first at step 0", rewards=np.full(9, np.nan))
    write_d4rl(tmp_path / "set.hdf5", LENGTHS)
    whole = (tmp_path / "set.hdf5").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no HDF5 at all", whole[:3000] + bytes(8000) + whole[11000:]):
        (tmp_path / "set.hdf5").write_bytes(content)
        with pytest.raises(ValueError, match=r"set.hdf5 (is damaged or no HDF5 file \(|has no array)"):
            ready(tmp_path / "set.hdf5")


def test_mistakes_of_the_reader_keep_their_traceback(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.hdf5", "w") as group:
        group["rewards"] = np.zeros(3)
    monkeypatch.setattr(array_files, "refuse_other_files", make("key"))
    with pytest.raises(KeyError, match="missing"):
        array_files.read_hdf5(tmp_path / "x.hdf5", ["rewards"])
