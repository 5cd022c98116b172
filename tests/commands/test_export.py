"""``minrnn export`` writes a file that the snippet it prints can use, without this package."""

import ast
import builtins
import gzip
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from old_torch import every_export

from minrnn_lightning.commands.main import main
from minrnn_lightning.export.flatten import flatten
from minrnn_lightning.export.snippets import LOAD, snippet
from minrnn_lightning.tasks import ClassificationTask, LanguageTask, PolicyTask

CHECKPOINTS = Path(__file__).parents[1] / "fixtures/checkpoints"
LEARNED = {"dim": 8, "depth": 1, "mixer_args": {"mingru": {"learn_initial_state": True}}}


def unpack(task, folder):
    file = folder / f"{task}.ckpt"
    file.write_bytes(gzip.decompress((CHECKPOINTS / f"{task}.ckpt.gz").read_bytes()))
    return str(file)


@pytest.mark.parametrize(
    ("task", "mode"),
    [
        ("LanguageTask", "step"),
        ("PolicyTask", "step"),
        pytest.param("ClassificationTask", "sequence", marks=every_export),
    ],
)
def test_the_printed_lines_use_the_file(task, mode, tmp_path, capsys):
    file = str(tmp_path / "model.onnx")
    main(["export", "--checkpoint", unpack(task, tmp_path), "--output", file, "--mode", mode])
    first, _, lines = capsys.readouterr().out.partition("\n\n")
    assert first == f"Wrote {file}. To use it:"
    lines = f"import sys\nsys.modules['minrnn_lightning'] = sys.modules['torch'] = None\n{lines}"
    result = "output" if task == "PolicyTask" else "logits"
    run = subprocess.run(
        [sys.executable, "-c", f"{lines}print({result}.shape)"], capture_output=True, text=True, check=True
    )
    rows, *_ = eval(run.stdout)
    assert rows == 1


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["--reset"], True),
        (["--reset", "true"], True),
        (["--reset=true"], True),
        (["--reset", "false"], False),
        (["--reset=false"], False),
    ],
)
def test_a_flag_may_have_a_value(words, added, monkeypatch):
    given = {}

    def export_command(checkpoint: str, reset: bool = False) -> None:
        given.update(checkpoint=checkpoint, reset=reset)

    monkeypatch.setattr("minrnn_lightning.commands.export.export_command", export_command)
    for args in ([*words, "--checkpoint=x"], ["--checkpoint=x", *words]):
        given.clear()
        main(["export", *args])
        assert given == {"checkpoint": "x", "reset": added}


@pytest.mark.parametrize(
    ("format_", "task", "mode"),
    [
        pytest.param("torch", "PolicyTask", "step", marks=every_export),
        ("executorch", "LanguageTask", "step"),
        pytest.param("torch", "ClassificationTask", "sequence", marks=[pytest.mark.slow, every_export]),
        pytest.param("executorch", "PolicyTask", "sequence", marks=pytest.mark.slow),
        pytest.param("aotinductor", "LanguageTask", "step", marks=[pytest.mark.slow, every_export]),
    ],
)
def test_the_printed_lines_of_other_formats_use_the_file(format_, task, mode, tmp_path, capsys):
    if format_ == "executorch":
        pytest.importorskip("executorch.runtime")
    file = str(tmp_path / ("model.pte" if format_ == "executorch" else "model.pt2"))
    arguments = ["--checkpoint", unpack(task, tmp_path), "--output", file, "--mode", mode, "--format", format_]
    main(["export", *arguments])
    names = {}
    exec(capsys.readouterr().out.partition("\n\n")[2], names)
    assert (names["output"] if "output" in names else names["logits"]).shape[0] == 1


@pytest.mark.parametrize("name", LOAD)
@pytest.mark.parametrize("mode", ["step", "sequence"])
def test_every_printed_program_is_complete(name, mode):
    """It is Python of at most ten lines, names the file, and uses no name that it does not define or import."""
    for task in (ClassificationTask(7, 5, dim=8, depth=1), PolicyTask(5, 3, **LEARNED), LanguageTask(7, 7, **LEARNED)):
        lines = snippet(flatten(task, mode), name, "a 'file'")
        assert len([line for line in lines.splitlines() if line]) <= 10
        nodes = list(ast.walk(ast.parse(lines)))
        assert sum(isinstance(node, ast.Constant) and node.value == "a 'file'" for node in nodes) == 1
        names = [node for node in nodes if isinstance(node, ast.Name)]
        defined = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
        defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        defined |= {alias.asname or alias.name for alias in imports}
        assert {node.id for node in names} <= defined


def test_another_checkpoint_is_refused_in_one_sentence(tmp_path, capsys):
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "task": "ByteTask"}, file)
    with pytest.raises(SystemExit):
        main(["export", "--checkpoint", str(file), "--output", str(tmp_path / "m.onnx")])
    assert "holds a ByteTask; minrnn export takes LanguageTask, TaggingTask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("trained.ckpt", "output must be another file than the checkpoint"),
        ("m.tflite", "no format of minrnn export has it"),
        ("m.pte", "use format executorch"),
    ],
)
def test_an_output_that_is_the_checkpoint_or_of_another_format_is_refused(output, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "task": "LanguageTask"}, "trained.ckpt")
    before = (tmp_path / "trained.ckpt").read_bytes()
    with pytest.raises(SystemExit):
        main(["export", "--checkpoint", str(tmp_path / "trained.ckpt"), "--output", output])
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trained.ckpt"]
    assert (tmp_path / "trained.ckpt").read_bytes() == before
