"""Recorded episodes as batches: sources, sizes, statistics, held-out part, streams, and a sentence for bad input."""

import sys

import numpy as np
import pytest
import torch
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


# Bad input


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
