"""Sequences whose parts are on two or four processes equal the complete sequences on one."""

from pathlib import Path

from forked import run_several

CASES = Path(__file__).parents[1] / "fixtures/sharded_cases.py"


def test_sequences_in_parts(tmp_path):
    """Scans, backbones, messages and errors, in one start of four processes; see ``sharded_cases.py``."""
    run_several([CASES], tmp_path, 4)
