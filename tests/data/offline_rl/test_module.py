"""Recorded episodes as batches: sources, sizes, statistics, held-out part, streams, and a sentence for bad input."""

import sys

import h5py
import numpy as np
import pytest
import torch
from hdf5_links import ELSEWHERE, put_elsewhere
from rl_files import make_steps, write_d4rl

from minrnn_lightning.data import TrajectoryDataModule

LENGTHS = [7, 30, 12, 25, 3, 18, 21, 40, 9, 15]


def ready(dataset, **options):
    data = TrajectoryDataModule(str(dataset), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def seen(loader):
    """Numbers of all steps of a loader's batches, in order."""
    return torch.cat([batch.observations[..., 0][batch.mask] for batch in loader]).long().tolist()


@pytest.fixture
def file(tmp_path):
    write_d4rl(tmp_path / "set.hdf5", LENGTHS, partial=6)
    return tmp_path / "set.hdf5"


def test_a_file_in_the_layout_of_d4rl(tmp_path):
    arrays = write_d4rl(tmp_path / "set.hdf5", LENGTHS, partial=6)
    data = ready(tmp_path / "set.hdf5", batch_size=4, length=5)
    assert (data.input_size, data.output_size, data.env_id, data.discrete) == (11, 3, None, False)
    ends = np.cumsum(LENGTHS)
    returns = [arrays["rewards"][end - n : end].astype(float).sum() for n, end in zip(LENGTHS, ends, strict=True)]
    np.testing.assert_allclose(data.episode_returns, returns)
    assert data.max_return == pytest.approx(max(returns))
    assert data.mean_return == pytest.approx(np.mean(returns))
    assert data.episode_length == 40
    held_out = seen(data.val_dataloader())
    train = sorted(set(range(sum(LENGTHS))) - set(held_out))
    observations = arrays["observations"][train].astype(np.float64)
    assert data.observation_mean.dtype == data.observation_std.dtype == torch.float32
    np.testing.assert_allclose(data.observation_mean, observations.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(data.observation_std, observations.std(0) + 1e-6, rtol=1e-6)
    batch = next(iter(data.train_dataloader()))
    assert batch.observations.shape == (4, 5, 11)
    assert batch.actions.shape == (4, 5, 3)
    assert batch.mask.shape == (4, 5)
    assert batch.returns_to_go.shape == batch.timesteps.shape == batch.reset.shape == (4, 5)
    assert data.samples_per_second(0.05) > 100


def with_actions(file, least, greatest):
    """An episode of 20 steps; what each component of its actions reaches is given."""
    arrays = make_steps([20], action_size=len(least))
    arrays["actions"] *= 0.1
    arrays["actions"][3], arrays["actions"][7] = least, greatest
    np.savez(file, **arrays)


def test_bounds_of_actions_that_nobody_tells(tmp_path, recwarn):
    with_actions(tmp_path / "0.npz", [-0.5, -2, -1], [0.5, 0.5, 7])
    data = ready(tmp_path)
    assert data.action_low.tolist() == [-1, -2, -1]
    assert data.action_high.tolist() == [1, 1, 7]
    assert data.action_low.dtype == data.action_high.dtype == torch.float32
    assert not recwarn
    np.savez(tmp_path / "0.npz", **make_steps([20], discrete=True))
    data = ready(tmp_path)
    assert (data.action_low, data.action_high) == (None, None)


def test_bounds_of_known_environments(tmp_path):
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", [5, 6])
    data = ready(tmp_path / "hopper_medium-v2.hdf5")
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-1] * 3, [1] * 3)
    actions = make_steps([5, 6])["actions"]
    actions[4, 1] = -1.75
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", [5, 6], actions=actions)
    message = (
        r"hopper_medium-v2.hdf5 has actions up to 0.75 outside its action space, in component 1, which goes from -1"
    )
    with pytest.warns(UserWarning, match=message):
        data = ready(tmp_path / "hopper_medium-v2.hdf5")
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-1] * 3, [1] * 3)


@pytest.mark.parametrize("sampling", ["windows", "episodes"])
@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.05, 1), (0.31, 3), (0.99, 9)])
def test_held_out_episodes(file, monkeypatch, sampling, fraction, count):
    data = ready(file, sampling=sampling, val_fraction=fraction, length=8)
    train, held_out = data.splits
    assert sorted([*train, *held_out]) == list(range(10))
    assert len(held_out) == count
    spans = list(zip(np.cumsum(LENGTHS) - LENGTHS, np.cumsum(LENGTHS), strict=True))
    expected = [step for episode in held_out for step in range(*spans[episode])]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert (seen(loader) if count else loader) == expected
    drawn = (
        set(seen(data.train_dataloader()))
        if sampling == "episodes"
        else set(seen([data.train_dataloader().dataset[0]]))
    )
    assert not drawn & set(expected)
    if sampling == "episodes":
        assert sorted(seen(data.train_dataloader())) == [step for episode in train for step in range(*spans[episode])]
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert np.array_equal(ready(file, val_fraction=fraction).splits[1], held_out), "whatever the seed"


def test_one_episode_is_trained_on(tmp_path, recorder, trainer):
    write_d4rl(tmp_path / "set.hdf5", [9])
    data = ready(tmp_path / "set.hdf5")
    assert data.val_dataloader() == []
    trainer(max_steps=2).fit(recorder, data)
    assert [len(rows) for rows in recorder.inputs["train"]] == [64, 64]
    assert not recorder.inputs["validation"]


@pytest.mark.parametrize("sampling", ["windows", "episodes"])
def test_workers_change_nothing(file, sampling):
    options = {"sampling": sampling, "length": 7, "batch_size": 3, "steps_per_epoch": 9}
    alone, helped = (ready(file, num_workers=workers, **options) for workers in (0, 2))
    for name in ("train_dataloader", "val_dataloader"):
        for one, other in zip(getattr(alone, name)(), getattr(helped, name)(), strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("sampling", ["windows", "episodes"])
def test_seeds_differ(file, monkeypatch, sampling):
    first = next(iter(ready(file, sampling=sampling).train_dataloader()))
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not torch.equal(first[0], next(iter(ready(file, sampling=sampling).train_dataloader()))[0])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:.*`max_epochs` was not set")
@pytest.mark.filterwarnings("error:You're resuming", "ignore:.*fit.ckpt_path=")
@pytest.mark.parametrize("sampling", ["windows", "episodes"])
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_resume(file, tmp_path, recorder, trainer, sampling, steps):
    options = {"sampling": sampling, "length": 9, "batch_size": 4, "steps_per_epoch": 5}
    assert len(ready(file, **options).train_dataloader()) == 5
    trainer(max_steps=12).fit(recorder, TrajectoryDataModule(str(file), **options))
    whole = recorder.inputs["train"]
    recorder.inputs["train"] = []
    first = trainer(max_steps=steps)
    first.fit(recorder, TrajectoryDataModule(str(file), **options))
    first.save_checkpoint(tmp_path / "x.ckpt")
    second = trainer(max_steps=12)
    second.fit(recorder, TrajectoryDataModule(str(file), **options), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert len(whole) == len(recorder.inputs["train"]) == 12
    assert all(map(torch.equal, whole, recorder.inputs["train"]))


# A folder of episodes


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


# Bad input


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"sampling": "steps"}, "sampling must be windows or episodes, got steps"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, got 1.0"),
        ({"val_fraction": -0.1}, "val_fraction must be at least 0"),
    ],
)
def test_options_out_of_range(file, options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDataModule(str(file), **options)


@pytest.mark.parametrize(
    ("dataset", "error"),
    [
        ("hopper-best-v2", ValueError),
        ("hopper-medium-v0", ValueError),
        ("hopper", ValueError),
        ("no/such/file.hdf5", FileNotFoundError),
        ("no such folder/", FileNotFoundError),
    ],
)
def test_unknown_data_sets(dataset, error):
    message = rf"^{dataset} is neither a file nor a folder here, nor a data set of D4RL \(hopper-medium-v2, .*Minari"
    with pytest.raises(error, match=message):
        TrajectoryDataModule(dataset)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither episodes \(\*.npz, \*.hdf5\) nor a Minari data set"):
        TrajectoryDataModule(str(tmp_path))


def test_without_h5py(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r'needs the package h5py: pip install "minrnn-lightning\[rl\]"'):
        ready(file)
