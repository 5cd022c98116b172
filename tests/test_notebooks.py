"""Every notebook runs from top to bottom."""

import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    run = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=600", "-p", "no:cacheprovider", "-n0"]
    done = subprocess.run([*run, str(notebook)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_are_notebooks():
    assert NOTEBOOKS
