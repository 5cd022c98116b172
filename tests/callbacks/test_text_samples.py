"""TextSamples on systems whose encoding is not UTF-8."""

import os
import subprocess

import pytest
from command_line import command


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
    for environment in (plain_c, {"PYTHONIOENCODING": "cp1252"}):
        run = subprocess.run(command("fit", *args), capture_output=True, env={**os.environ, **environment})
        assert run.returncode == 0, run.stderr
        assert b"A sample after 1 steps" in run.stdout
    run = subprocess.run(command("recipes"), capture_output=True, env={**os.environ, **plain_c})
    assert run.returncode == 0, run.stderr
