"""Fixtures of the data tests: folders of their own and made-up texts."""

import random

import pytest
from lightning.pytorch import Trainer
from recording_module import RecordingModule


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep every test's files in a folder of its own, away from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINRNN_DATA_DIR", raising=False)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return tmp_path / "cache" / "minrnn_lightning"


@pytest.fixture
def text_file(tmp_path):
    """A file of 2,000 characters, 10 different ones: 1,800 to train with, 200 held out."""
    file = tmp_path / "text.txt"
    file.write_text("".join(random.Random(0).choices("abcdefgh \n", k=2000)))
    return file


@pytest.fixture
def recorder():
    return RecordingModule()


@pytest.fixture
def trainer(tmp_path):
    """Makes Trainers that print and save nothing by themselves."""

    def make(**options):
        silence = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        silence |= {"logger": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "default_root_dir": tmp_path}
        return Trainer(**{**silence, **options})

    return make
