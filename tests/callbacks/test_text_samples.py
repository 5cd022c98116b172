"""TextSamples on systems whose encoding is not UTF-8."""

import io
import locale
import os
import subprocess
import sys

import pytest
from command_line import command

from minrnn_lightning.commands.encoding import use_utf8


@pytest.mark.slow
def test_other_encodings_than_utf8(small, tmp_path):
    (tmp_path / "über.txt").write_text("na\u00efve \u2192 \u201cquoted\u201d \u4e2d\u6587 \n" * 200, encoding="utf-8")
    recipe = """\ufeff# Über Größe
trainer:
  max_steps: 1
  val_check_interval: 1
  limit_val_batches: 1
  callbacks: [{class_path: TextSamples, init_args: {prompt: \u4e2d, max_new_tokens: 5}}]
"""
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    args = [*small, f"--data.path={tmp_path}/über.txt", "--config", tmp_path / "recipe.yaml"]
    plain_c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as a Windows that is not set to UTF-8
    environment = {**os.environ, **plain_c, "PYTHONIOENCODING": "cp1252"}  # files in ASCII, output in cp1252
    run = subprocess.run(command("fit", *args), capture_output=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert b"A sample after 1 steps" in run.stdout
    run = subprocess.run(command("recipes"), capture_output=True, env={**os.environ, **plain_c})
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: "utf-8")
    use_utf8()
    print("\u4e2d", end="", flush=True)
    assert out.buffer.getvalue() == ("\u4e2d".encode() if encoding == "utf-8" else b"?")
