"""Imports go only downwards, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minrnn_lightning

PACKAGE = Path(minrnn_lightning.__file__).parent
LAYERS = {
    "ops": set(),
    "nn": {"ops"},
    "checkpoint": set(),
    "tasks": {"nn", "checkpoint"},
    "data": {"checkpoint"},
    "tool": {"ops", "nn", "checkpoint", "tasks", "data", "memory", "tool"},
    "lightning_cli": {"checkpoint", "tasks", "data", "tool"},
    "benchmark": {"ops", "nn", "tasks", "tool", "lightning_cli", "__init__"},
    "compare": {"nn", "tool", "benchmark"},
    "memory": set(),
    "cli": {"memory", "data", "tool", "lightning_cli", "benchmark", "compare", "__init__"},
    "__main__": {"cli"},
    "__init__": {"nn", "tasks", "data", "tool"},  # looked up when used
}


def layer(module: str) -> str:
    """Layer of a dotted name inside the package; a file beside the folders is a tool unless it is listed."""
    name = module.split(".")[0] or "__init__"
    return name if name in LAYERS else "tool"


def imported(file: Path) -> set[str]:
    """Dotted names inside the package that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "minrnn_lightning" else {module}
    inside = {
        name.removeprefix("minrnn_lightning").lstrip(".") for name in names if name.startswith("minrnn_lightning")
    }
    return {"" if name == "__version__" else name for name in inside}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_only_downwards(file):
    here = layer(".".join(file.relative_to(PACKAGE).with_suffix("").parts))
    for name in imported(file):
        there = layer(name)
        assert there == here or there in LAYERS[here], f"{here} must not import {name}"


def test_the_check_sees_what_it_should():
    assert {"callbacks", "data", "nn", "tasks"} <= imported(PACKAGE / "__init__.py")
    assert imported(PACKAGE / "cli.py") >= {"", "lightning_cli", "generate"}


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["recipes"]], ids=str)
def test_light_commands_do_not_import_torch(words):
    loaded = loaded_after(f"from minrnn_lightning.cli import main; main({words})")
    assert "minrnn_lightning.cli" in loaded
    assert not loaded & {"torch", "lightning", "numpy"}


@pytest.mark.parametrize("word", ["generate", "collect"])
def test_help_does_not_import_torch(word):
    code = f"from minrnn_lightning.cli import main\ntry:\n    main(['{word}', '--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_after(code) & {"torch", "lightning", "gymnasium", "minari"}


@pytest.mark.parametrize("module", ["ops", "nn"])
def test_layers_work_without_lightning(module):
    loaded = loaded_after(f"sys.modules['lightning'] = None; import minrnn_lightning.{module}")
    assert "torch" in loaded
    assert not any(name.startswith(("lightning.", "torchmetrics", "datasets")) for name in loaded)


def test_data_and_collect_need_no_extra():
    code = "import minrnn_lightning.collect, minrnn_lightning.data\nminrnn_lightning.data.TrajectoryDataModule"
    loaded = loaded_after(code)
    assert "minrnn_lightning.data.minari" in loaded
    assert not loaded & {"gymnasium", "minari", "mujoco", "h5py"}


def test_public_names():
    for name in minrnn_lightning.__all__:
        assert getattr(minrnn_lightning, name).__name__ == name
        assert name in dir(minrnn_lightning)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = minrnn_lightning.nonsense
