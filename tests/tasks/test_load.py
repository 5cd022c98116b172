"""A checkpoint alone decides which weights are loaded, never which code runs."""

import sys

import pytest
import torch

from minrnn_lightning import LanguageTask
from minrnn_lightning.checkpoint import CheckpointError
from minrnn_lightning.tasks.load import load_task

MIXER = """
from pathlib import Path
from minrnn_lightning.nn.mixers import MinGRUMixer
Path(__file__).with_name("executed").touch()
class Own(MinGRUMixer):
    pass
"""


@pytest.mark.parametrize("mixer", ["own_mixer.Own", ["mingru", "own_mixer.Own"]])
def test_a_checkpoint_imports_no_module(tmp_path, monkeypatch, mixer):
    (tmp_path / "own_mixer.py").write_text(MIXER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_mixer", raising=False)
    task = LanguageTask(11, 11, dim=8, depth=2)
    torch.save(
        {"state_dict": task.state_dict(), "task": "LanguageTask", "hyper_parameters": {**task.hparams, "mixer": mixer}},
        tmp_path / "x.ckpt",
    )
    with pytest.raises(CheckpointError, match="would import the module own_mixer: if you trust that module"):
        load_task(tmp_path / "x.ckpt", LanguageTask, "generate text")
    assert not (tmp_path / "executed").exists()
    import own_mixer  # trusted from here on

    loaded, _ = load_task(tmp_path / "x.ckpt", LanguageTask, "generate text")
    assert any(isinstance(module, own_mixer.Own) for module in loaded.modules())


def test_modules_that_the_command_is_told_to_trust(minrnn, tmp_path, monkeypatch):
    (tmp_path / "own_mixer.py").write_text(MIXER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_mixer", raising=False)
    monkeypatch.setenv("MINRNN_IMPORT", "own_mixer")
    assert minrnn("--version")[0] == 0
    assert (tmp_path / "executed").exists()
    monkeypatch.setenv("MINRNN_IMPORT", "no_such_module")
    code, _, errors = minrnn("--version")
    assert code == 1
    assert errors == "minrnn: MINRNN_IMPORT names 'no_such_module', and there is no module no_such_module\n"
