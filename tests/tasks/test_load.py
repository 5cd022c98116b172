"""A checkpoint alone decides which weights are loaded, never which code runs."""

import sys

import pytest
import torch
from mistakes import ERRORS, MISTAKES, MistakenTask

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


@pytest.fixture
def saved(tmp_path):
    """Save a checkpoint of a task with other hyper-parameters than its own, and return its path."""

    def save(task, **changes):
        values = {**task.hparams, **changes}
        file = tmp_path / "x.ckpt"
        parts = {"state_dict": task.state_dict(), "task": type(task).__name__}
        torch.save({**parts, "hyper_parameters": {name: v for name, v in values.items() if v is not ...}}, file)
        return file

    return save


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_task_keep_their_traceback(saved, monkeypatch, mistake):
    file = saved(MistakenTask(11, 11, dim=8, depth=1))
    assert isinstance(load_task(file, MistakenTask, "generate text")[0], MistakenTask)
    monkeypatch.setattr(MistakenTask, "mistake", mistake)
    with pytest.raises(ERRORS) as caught:
        load_task(file, MistakenTask, "generate text")
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": ...}, "input_size is missing"),
        ({"dim": "wide"}, "dim must be a whole number, got 'wide'"),
        ({"dim": None}, "dim must be a whole number, got None"),
        ({"dim": True}, "dim must be a whole number, got True"),
        ({"dim": 2.5}, "dim must be a whole number, got 2.5"),
        ({"lr": float("nan")}, "lr must be a number, got nan"),
        ({"compile": 1}, "compile must be true or false, got 1"),
        ({"schedule": "round"}, "schedule must be one of 'cosine', 'linear', got 'round'"),
        ({"mixer": ["mingru", 3]}, "mixer must be a text or a class or a list, got ['mingru', 3]"),
        (
            {"mixer_args": {"mingru": 3}},
            "mixer_args must be a dictionary (each value a dictionary) or null, got {'mingru': 3}",
        ),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),  # which the task itself refuses
        ({"expansion": float("inf")}, "expansion"),
    ],
)
def test_values_of_a_checkpoint_that_do_not_fit(saved, changes, words):
    with pytest.raises(CheckpointError) as caught:
        load_task(saved(LanguageTask(11, 11, dim=8, depth=1), **changes), LanguageTask, "generate text")
    assert "x.ckpt is not a checkpoint of a LanguageTask: " in str(caught.value)
    assert words in str(caught.value)


def test_a_whole_number_for_a_float_and_a_tuple_for_a_list(saved):
    task = LanguageTask(11, 11, dim=8, depth=2, mixer=["mingru", "minlstm"])
    loaded, _ = load_task(saved(task, dropout=0, expansion=2, mixer=("mingru", "minlstm")), LanguageTask, "generate")
    assert loaded.hparams["expansion"] == 2
