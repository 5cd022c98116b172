"""``minrnn benchmark export`` compares a file with PyTorch, and leaves out what is not installed."""

import json
import sys


def test_rows_of_each_format_that_is_installed(minrnn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    small = ["--models=layer", "--modes=step", "--formats=onnx,executorch", "--dim=4", "--depth=1", "--repeats=2"]
    code, _, errors = minrnn("benchmark", "export", *small, f"--output={tmp_path}")
    assert code == 0, errors
    assert "layer, step: executorch is left out: this needs the package executorch: pip install" in errors
    eager, onnx = json.loads((tmp_path / "export.json").read_text())["rows"]
    assert (eager["name"], onnx["name"]) == ("layer, eager", "layer, onnx")
    assert 0 <= onnx["difference"] < 1e-6
    assert onnx["file_kb"] > 0
    assert onnx["times_eager_low"] <= onnx["times_eager"] <= onnx["times_eager_high"]
