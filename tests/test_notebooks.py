"""Every notebook runs from top to bottom."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from forked import run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NEEDED = {"streams": "sktime"}  # packages that are not among those of the tests: it wants an older pandas
PROGRAM = Path(__file__).parent / "fixtures/run_notebook.py"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    if (package := NEEDED.get(notebook.stem)) and find_spec(package) is None:
        pytest.skip(f"needs {package}")
    monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    run([PROGRAM, notebook], tmp_path / "out")


def test_there_are_notebooks():
    assert NOTEBOOKS
