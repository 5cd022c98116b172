"""The wheel has every recipe, none of the results, and every extra that a message names."""

import re
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


def test_every_extra_that_a_message_or_a_page_names_exists():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "minrnn_lightning").rglob("*.py")]
    named = re.findall(r"minrnn-lightning\[([^\]{]+)\]", "".join(file.read_text(encoding="utf-8") for file in files))
    assert {"export", "rl", "transformers"} <= {name for names in named for name in names.split(",")} <= extras.keys()
