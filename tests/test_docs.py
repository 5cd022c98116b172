"""The Python blocks and the commands of docs/export.md and docs/hub.md run as they are printed."""

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from old_torch import every_export
from transformers import Pipeline

from minrnn_lightning import LanguageTask
from minrnn_lightning.export import export
from minrnn_lightning.export.flatten import flatten

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("export", "hub")}
TEXT = "".join(PAGES.values())
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = list(dict.fromkeys(re.findall(r"(?:^ *|`)(minrnn \w+ [^`\n]+)", TEXT, re.MULTILINE)))
TRAINED = "runs/shakespeare_small/version_0/checkpoints/last.ckpt"
BENCHMARK = ("--models=layer", "--modes=step", "--dim=4", "--depth=1", "--repeats=1")
MORE = {"fit": ("--print_config",), "generate": ("--max_new_tokens=3", "--prompt=the "), "benchmark": BENCHMARK}


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch):
    """The working folder, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, "last.ckpt")
    Path(TRAINED).parent.mkdir(parents=True)
    shutil.copy(checkpoint, TRAINED)
    LanguageTask.load_from_checkpoint(checkpoint).save_pretrained("play")
    return tmp_path


def block(words):
    """The one block that contains some words."""
    (found,) = (each for each in BLOCKS if words in each)
    return found


def run(words, **names):
    exec(block(words), names)
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, minrnn, folder, small):
    _, word, *args = shlex.split(command)
    if "executorch" in args:
        pytest.importorskip("executorch.exir")
    code, out, errors = minrnn(word, *(small if word == "test" else ()), *args, *MORE.get(word, ()))
    assert code == 0, errors
    assert out
    assert all((folder / args[args.index(option) + 1]).exists() for option in args if option == "--output")


def test_export(folder):
    run("export(")
    assert (folder / "model.onnx").stat().st_size > 0


@every_export
def test_a_program_of_torch(folder):
    task = LanguageTask(5, 5, dim=8, depth=1).eval()
    export(task, "model.pt2", format="torch", mode="sequence")
    tokens = torch.randint(0, 5, (2, 9))
    found = run("torch.export.load", tokens=tokens, state=flatten(task, "sequence").starts)
    torch.testing.assert_close(found["logits"], task(tokens)[0])


def test_quantize(folder):
    found = run("# left", task=LanguageTask(5, 5, dim=8, depth=1))
    assert all(parameter.is_floating_point() for parameter in found["model"].parameters())
    assert found["left"].keys() == dict(found["model"].named_parameters()).keys()


def test_cost_of_int8(folder, text, monkeypatch, capsys):
    monkeypatch.setenv("MINRNN_DATA_DIR", str(folder))
    (folder / "tinyshakespeare").mkdir()
    content = 20 * text.read_bytes()
    (folder / "tinyshakespeare/input.txt").write_bytes(content)
    monkeypatch.setattr("minrnn_lightning.data.text.shakespeare.SHA256", hashlib.sha256(content).hexdigest())
    Path(TRAINED).unlink()
    LanguageTask(65, 65, dim=64, depth=1).save_pretrained(TRAINED)
    run(TRAINED)
    before, after = map(int, re.findall(r"^(\d+) bytes", capsys.readouterr().out, re.MULTILINE))
    assert after < 0.4 * before


def test_save_and_load(folder, monkeypatch):
    shutil.rmtree("play")
    monkeypatch.setattr("minrnn_lightning.LanguageTask.push_to_hub", lambda task, name: f"{task.dim} {name}")
    task = run("push_to_hub")["task"]
    assert not task.training
    assert task.tokenizer.get_vocab_size() == task.output_size


def test_transformers(folder, monkeypatch):
    called = Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda *args, **options: made.append(called(*args, **options)))
    made = []
    run("pipeline(")
    ((result,),) = made
    assert result["generated_text"].startswith("ROMEO:")


def test_torchao(folder):
    pytest.importorskip("torchao")
    task = LanguageTask.from_pretrained("last.ckpt")
    run("quantize_(task,", task=task)
    assert "Int8" in type(task.backbone.blocks[0].mixer.rnn.weight_ih_l0).__name__


def test_every_block_and_command_is_tested():
    assert len(BLOCKS) == 7
    assert len(COMMANDS) == 11
