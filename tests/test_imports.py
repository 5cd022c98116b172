"""Imports go only downwards, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from clean_process import run_code

import minrnn_lightning

PACKAGE = Path(minrnn_lightning.__file__).parent
BELOW = {  # what each folder, or module beside the folders, may import; nothing else
    "errors": set(),
    "annotations": set(),
    "signals": set(),
    "batches": set(),
    "lightning_internals": set(),
    "memory": {"errors"},
    "results": {"errors"},
    "ops": {"errors"},
    "hub": {"errors", "results"},
    "sharded_checkpoint": set(),
    "checkpoint": {"errors", "hub", "sharded_checkpoint"},
    "checkpoint_io": {"checkpoint"},
    "nn": {"errors", "memory", "ops"},
    "testing": {"errors", "ops", "nn"},
    "data": {"errors", "signals", "memory", "batches", "checkpoint", "lightning_internals"},
    "tasks": {"errors", "annotations", "lightning_internals", "memory", "batches", "hub", "checkpoint", "ops", "nn"},
    "strategies": {"errors", "nn", "ops", "checkpoint", "sharded_checkpoint", "tasks"},
    "generate": {"errors", "checkpoint", "hub", "memory", "nn", "tasks"},
    "integrations": {"errors", "hub", "ops", "nn", "tasks"},
    "rl": {"errors", "checkpoint", "memory", "batches", "nn", "data", "tasks"},
    "export": {"errors", "nn", "ops", "tasks", "__init__"},
    "callbacks": {"errors", "lightning_internals", "signals", "memory", "batches", "data", "tasks", "generate", "rl"},
    "commands": {
        *(
            "errors",
            "annotations",
            "signals",
            "lightning_internals",
            "memory",
            "batches",
            "results",
            "hub",
            "checkpoint",
            "checkpoint_io",
            "ops",
            "nn",
            "data",
            "tasks",
            "generate",
            "rl",
            "export",
        ),
        *("callbacks", "strategies", "__init__"),
    },
    "cli": {"commands"},
    "__main__": {"commands"},
    "__init__": {"nn", "tasks", "data", "rl", "callbacks"},  # looked up when used
}


def layer(module: str) -> str:
    """The folder, or the module beside the folders, of a dotted name inside the package."""
    return module.split(".")[0] or "__init__"


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


def arrows() -> set[tuple[str, str]]:
    """Which layer imports which, for every pair of different ones."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        here = layer(".".join(file.relative_to(PACKAGE).with_suffix("").parts))
        found |= {(here, layer(name)) for name in imported(file) if layer(name) != here}
    return found


def floors() -> dict[str, int]:
    """For every layer the longest way down, along what it may import."""
    heights: dict[str, int] = {}
    while len(heights) < len(BELOW):
        ready = [
            name
            for name in BELOW
            if name not in heights and all(below in heights for below in BELOW[name] - {"__init__"})
        ]
        assert ready, "the layers import each other in a circle"
        heights |= {
            name: 1 + max((heights[below] for below in BELOW[name] - {"__init__"}), default=0) for name in ready
        }
    return heights


def drawing() -> str:
    """The layers from the top to the ground, with what each of them imports."""
    heights, found = floors(), arrows()
    names = sorted(BELOW, key=lambda name: (-heights[name], name))
    lines = [f"{heights[n]}  {n:12} -> {', '.join(sorted(there for here, there in found if here == n))}" for n in names]
    up = sum(heights[there] >= heights[here] for here, there in found if there != "__init__")
    lines.append(f"{len(BELOW)} layers, {max(heights.values())} floors, {len(found)} arrows, {up} of them upwards")
    return "\n".join(lines)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_only_downwards(file):
    here = layer(".".join(file.relative_to(PACKAGE).with_suffix("").parts))
    for name in imported(file):
        assert layer(name) in {here, *BELOW[here]}, f"{here} must not import {name}"


def test_every_layer_is_listed_and_has_its_floor():
    assert {layer(".".join(f.relative_to(PACKAGE).with_suffix("").parts)) for f in PACKAGE.rglob("*.py")} == set(BELOW)
    assert " 0 of them upwards" in drawing()


def test_the_check_sees_what_it_should():
    assert {"callbacks", "data", "nn", "tasks"} <= imported(PACKAGE / "__init__.py")
    assert imported(PACKAGE / "commands/main.py") >= {"", "commands.fit"}


def loaded_after(code: str, *, with_torch: bool = False) -> set[str]:
    """The modules that a new process has loaded after a program; PyTorch is one of them, or is not loaded before."""
    script = f"import sys\n{code}\nprint(' '.join(sys.modules), file=sys.stderr)"
    if with_torch:
        run = run_code(script)
    else:
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["recipes"]], ids=str)
def test_light_commands_do_not_import_torch(words):
    loaded = loaded_after(f"from minrnn_lightning.commands.main import main; main({words})")
    assert "minrnn_lightning.commands.main" in loaded
    assert not loaded & {"torch", "lightning", "numpy"}


@pytest.mark.parametrize("word", ["generate", "collect"])
def test_help_does_not_import_torch(word):
    code = "from minrnn_lightning.commands.main import main\ntry:\n    "
    code += f"main(['{word}', '--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_after(code) & {"torch", "lightning", "gymnasium", "minari"}


@pytest.mark.parametrize("module", ["ops", "nn"])
def test_layers_work_without_lightning(module):
    loaded = loaded_after(f"sys.modules['lightning'] = None; import minrnn_lightning.{module}", with_torch=True)
    assert f"minrnn_lightning.{module}" in loaded
    assert not any(name.startswith(("lightning.", "torchmetrics", "datasets")) for name in loaded)


def test_data_and_collect_need_no_extra():
    code = "import minrnn_lightning.commands.collect, minrnn_lightning.data\nminrnn_lightning.data.TrajectoryDataModule"
    loaded = loaded_after(code, with_torch=True)
    assert "minrnn_lightning.data.offline_rl.minari" in loaded
    assert not loaded & {"gymnasium", "minari", "mujoco", "h5py"}


def test_public_names():
    for name in minrnn_lightning.__all__:
        assert getattr(minrnn_lightning, name).__name__ == name
        assert name in dir(minrnn_lightning)
    assert set(minrnn_lightning.data.__all__) <= set(dir(minrnn_lightning.data))
    for module in (minrnn_lightning, minrnn_lightning.data):
        with pytest.raises(AttributeError, match="nonsense"):
            _ = module.nonsense


if __name__ == "__main__":
    print(drawing())
