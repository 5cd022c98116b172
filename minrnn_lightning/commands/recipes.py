"""``minrnn recipes``: the recipes in the package, and the paths behind the names that ``--config`` understands."""

from __future__ import annotations

from pathlib import Path

from minrnn_lightning.commands.yaml_files import check_recipe
from minrnn_lightning.errors import InputError

GROUPS = {  # title of each group, by the folder of its files; recipes are in all other folders
    "": "Recipes: minrnn fit --config NAME",
    "hardware": "Overlays for hardware, given after a recipe: minrnn fit --config shakespeare --config hardware/bf16",
    "small": "Overlays for two CPU cores, given after the recipe of the same name: "
    "minrnn fit --config mqar --config small/mqar",
    "paper": "Overlays with the paper's settings where a recipe has others, given after it: "
    "minrnn fit --config shakespeare --config paper/shakespeare",
}


def recipes_folder() -> Path:
    """Folder of the recipes: inside the installed package, or next to the package in its source tree."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def find_recipes(args: list[str]) -> list[str]:
    """Replace the name of a packaged recipe after ``--config`` by its path, unless a file of that name exists.

    Args:
        args: Arguments of the command line.

    Raises:
        InputError: There is neither such a file nor such a recipe.
    """
    found: list[str] = []
    for arg in args:
        option, equals, name = arg.partition("=")
        if option in ("-c", "--config") and equals:
            found.append(f"{option}={_find_recipe(name)}")
        elif found and found[-1] in ("-c", "--config"):
            found.append(_find_recipe(arg))
        else:
            found.append(arg)
    return found


def _find_recipe(name: str) -> str:
    if not name.strip():
        raise InputError("config must be a file or the name of a packaged recipe, got an empty text")
    packaged = recipes_folder() / Path(name).with_suffix(".yaml")
    if not Path(name).is_file():
        if not packaged.is_file():
            raise InputError(f"{name} is neither a file nor a packaged recipe; see `minrnn recipes`")
        return str(packaged)
    check_recipe(name)
    return name


def list_recipes() -> None:
    """List the packaged recipes and overlays, whose names `--config` understands, with the command to type."""
    folder = recipes_folder()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path.stem != "shakespeare", path))
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    width = max(map(len, names))
    for group, title in GROUPS.items():
        print(title)
        for name, path in names.items():
            top = name.partition("/")[0]
            if (top if top in GROUPS else "") == group:
                with path.open(encoding="utf-8") as lines:
                    headline = lines.readline().lstrip("#").strip()
                print(f"  {name:{width}}  {headline}")
