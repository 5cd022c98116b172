"""Wheel and sdist have the package and every recipe, and nothing else; every extra that a message names exists."""

import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import minrnn_lightning

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


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The paths of the files in the wheel and in the sdist, without the name of the folder in the latter."""
    wheels, sdists = (pytest.importorskip(f"hatchling.builders.{kind}") for kind in ("wheel", "sdist"))
    folder = tmp_path_factory.mktemp("dist")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    (sdist,) = sdists.SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    return set(zipfile.ZipFile(wheel).namelist()), names, [wheel, sdist]


def test_contents(archives):
    wheel, sdist, _ = archives
    package = {file.relative_to(ROOT).as_posix() for file in (ROOT / "minrnn_lightning").rglob("*.py")}
    about = {name for name in wheel if ".dist-info/" in name}
    recipes = {name for name in wheel if name.startswith("minrnn_lightning/recipes/")}
    assert wheel - about - recipes == package | {"minrnn_lightning/py.typed"}
    assert all(name.endswith((".yaml", ".md")) and "results" not in name for name in recipes)
    assert {name.rpartition("/")[2] for name in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}
    others = {"pyproject.toml", "hatch_build.py", "PKG-INFO", "LICENSE", ".gitignore", "docs/layer.png"}
    others |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"}
    for pattern in ("docs/*.md", "docs/figures/*.png", "notebooks/*.ipynb", "recipes/*.md"):
        others |= {file.relative_to(ROOT).as_posix() for file in ROOT.glob(pattern)}
    in_folder = {name.replace("minrnn_lightning/recipes/", "recipes/") for name in recipes}
    assert sdist == package | {"minrnn_lightning/py.typed"} | in_folder | others


def test_metadata(archives):
    check = pytest.importorskip("twine.commands.check").check
    assert not check(archives[2], strict=True)


def test_description_has_no_links_into_the_repository(archives):
    _, sdist, (wheel, _) = archives
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        text = file.read(metadata).decode().partition("\n\n")[2]
    assert text.startswith("# minrnn-lightning\n")
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]*)\)", text))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((?!https:)([^)#]*)", readme))
    assert {name for name in linked if "/results/" not in name} <= sdist
    assert all(name in text for name in linked if name.endswith((".md", ".ipynb")))


def test_citation_and_changelog_have_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## ([\d.]+)", changelog, re.MULTILINE)
    assert versions[0] == minrnn_lightning.__version__
    assert versions == sorted(versions, key=lambda each: tuple(map(int, each.split("."))), reverse=True)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert not re.search("^version:", citation, re.MULTILINE)  # which the package alone has


def test_every_extra_that_a_message_or_a_page_names_exists():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "minrnn_lightning").rglob("*.py")]
    named = re.findall(r"minrnn-lightning\[([^\]{]+)\]", "".join(file.read_text(encoding="utf-8") for file in files))
    assert {"export", "rl", "transformers"} <= {name for names in named for name in names.split(",")} <= extras.keys()
