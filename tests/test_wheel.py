"""The wheel has every recipe and none of the results."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_recipes_without_results():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert all(target == f"minrnn_lightning/{source}" for source, target in included.items())
    files = {
        file.relative_to(ROOT)
        for source in included
        for file in ([ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*"))
        if file.is_file()
    }
    recipes = {file.relative_to(ROOT) for file in (ROOT / "recipes").rglob("*.yaml") if "results" not in file.parts}
    assert files >= recipes
    assert not any("results" in file.parts for file in files)
