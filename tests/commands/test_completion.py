"""Completion scripts: a real bash completes commands, recipes, options, values and files, without starting Python."""

import shutil
import subprocess

import pytest

from minrnn_lightning.commands.main import COMMANDS
from minrnn_lightning.commands.option_names import options_of

COMPLETE = """
source script.bash
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_minrnn
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(minrnn, tmp_path):
    """What bash offers for the last of some words."""
    code, script, errors = minrnn("completion", "bash")
    assert (code, errors) == (0, "")
    (tmp_path / "script.bash").write_text(script)
    (tmp_path / "weights.ckpt").touch()

    def run(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", COMPLETE, "bash", "minrnn", *words]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        assert not found.stderr
        return found.stdout.split()

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="Windows need not have bash")
def test_bash(complete):
    assert complete("") == list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    assert complete("gen") == ["generate"]
    assert set(complete("benchmark", "")) == {command.split()[1] for command in COMMANDS if " " in command}
    assert complete("fit", "--config", "shakespeare_s") == ["shakespeare_small"]
    assert complete("fit", "--config", "shakespeare", "--config", "hardware/d") == ["hardware/ddp"]
    assert complete("fit", "--model.mix") == ["--model.mixer", "--model.mixer_args"]
    assert "--trainer.max_steps" in complete("test", "--trainer.max")
    assert complete("fit", "--model.mixer", "mingr") == ["mingru"]
    assert complete("fit", "--model.mixer", "=", "mingr") == ["mingru"]  # bash has cut the word at the sign
    assert complete("fit", "--trainer.barebones", "t") == ["true"]
    assert complete("fit", "--model", "S") == []  # SequenceTask is abstract
    assert complete("fit", "--data", "B") == []
    assert complete("fit", "--model", "L") == ["LanguageTask"]
    assert set(complete("rollout", "--mode", "")) == {"carry", "window"}
    assert complete("benchmark", "layer", "--dty") == ["--dtype"]
    assert complete("generate", "--checkpoint", "wei") == ["weights.ckpt"]
    assert complete("generate", "--checkpoint", "=", "wei") == ["weights.ckpt"]
    assert complete("compare", "--mix") == ["--mixers"]
    assert complete("completion", "z") == ["zsh"]
    for command in COMMANDS:
        assert {f"--{name}" for name in options_of(command)} <= set(complete(*command.split(), "--"))


def test_zsh_has_the_same_words(minrnn):
    scripts = [minrnn("completion", shell)[1] for shell in ("bash", "zsh")]
    bash, zsh = ({line for line in script.splitlines() if line.endswith(";;")} for script in scripts)
    assert bash == zsh
    assert scripts[1].startswith("#compdef minrnn\n")


def test_unknown_shell(minrnn):
    for words in ([], ["fish"], ["bash", "zsh"]):
        code, _, errors = minrnn("completion", *words)
        assert code == 2
        assert "minrnn completion is followed by bash or zsh" in errors
