"""The pictures of the documentation are drawn from the results, and their page is up to date."""

import runpy
from pathlib import Path

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
FIGURES = runpy.run_path(str(ROOT / "recipes/figures.py"))


def test_page_is_up_to_date():
    assert (ROOT / "docs/figures.md").read_text(encoding="utf-8") == FIGURES["page"](), (
        "run `python recipes/figures.py`"
    )
    assert {file.stem for file in (ROOT / "docs/figures").glob("*.png")} == FIGURES["FIGURES"].keys()


@pytest.mark.parametrize("name", FIGURES["FIGURES"])
def test_figure(name):
    figure = Figure()
    FIGURES["FIGURES"][name].draw(figure)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert len(axes.get_lines()) >= 3
        assert all(len(line.get_xdata()) for line in axes.get_lines())
