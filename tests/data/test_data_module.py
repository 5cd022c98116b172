"""What all data modules share: arguments, folders, hyper-parameters."""

from pathlib import Path

import pytest
import torch

from minrnn_lightning.data import BaseDataModule
from minrnn_lightning.data.module import writable


class Letters(BaseDataModule):
    """The smallest data module."""

    input_size = output_size = 26

    def __init__(self, batch_size=1, length=1, num_workers=0, data_dir=None, kind="a"):
        super().__init__(batch_size, length, num_workers, data_dir)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("batch_size", 0, 1), ("batch_size", -1, 1), ("length", 0, 1), ("length", -256, 1), ("num_workers", -1, 0)],
)
def test_sizes_out_of_range(name, value, least):
    with pytest.raises(ValueError, match=rf"^{name} must be at least {least}, got {value}$"):
        Letters(**{name: value})


def test_sizes_must_be_given():
    class Sizeless(BaseDataModule):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Sizeless(1, 1)


def test_folder(monkeypatch, tmp_path, cache):
    assert Letters().data_dir == cache
    monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path / "shared"))
    assert Letters().data_dir == tmp_path / "shared"
    assert Letters(data_dir="~/here").data_dir == Path.home() / "here"


def test_read_only_folders_stay_as_they_are(tmp_path, cache):
    (tmp_path / "shared").mkdir()
    assert writable(tmp_path / "shared") == tmp_path / "shared"
    (tmp_path / "shared").chmod(0o555)
    assert writable(tmp_path / "shared") == cache
    assert writable(tmp_path / "new") == tmp_path / "new"


def test_hyper_parameters_are_plain(tmp_path):
    data = Letters(data_dir=tmp_path, kind="b")
    assert dict(data.hparams) == {
        "batch_size": 1,
        "length": 1,
        "num_workers": 0,
        "data_dir": str(tmp_path),
        "kind": "b",
    }
    torch.save(dict(data.hparams_initial), tmp_path / "hparams")
    assert torch.load(tmp_path / "hparams", weights_only=True) == dict(data.hparams)
