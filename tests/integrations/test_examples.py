"""The examples of docs/rl.md run, and learn what needs memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ["torchrl", "sb3_contrib", "rsl_rl"]  # in the order of the page
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rl.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_example_learns_the_tmaze(library, tmp_path):
    for needed in (library, "gymnasium"):
        pytest.importorskip(needed, reason=f"needs {needed}")
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[LIBRARIES.index(library)], encoding="utf-8")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-1]) > 3  # 1.95 is the most without memory


def test_every_example_is_tested():
    assert len(EXAMPLES) == len(LIBRARIES)
    assert all(library in example for library, example in zip(LIBRARIES, EXAMPLES, strict=True))
