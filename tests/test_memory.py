"""Memory that is freed is used again."""

import os
import subprocess
import sys

import pytest

from minrnn_lightning.memory import keep_freed_memory, peak_memory

FAULTS = """
import resource, torch
from minrnn_lightning.memory import keep_freed_memory
kept = keep_freed_memory()
for _ in range(40):
    torch.ones(1 << 24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def _faults(keep: str) -> tuple[str, int]:
    environment = os.environ | {"MINRNN_KEEP_MEMORY": keep, "GLIBC_TUNABLES": ""}
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    kept, faults = run.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_blocks_are_used_again_without_page_faults() -> None:
    """Forty blocks of 64 MiB, one after the other: 16,384 faults each (32 in huge pages), unless the first is kept."""
    kept, few = _faults("1")
    left, many = _faults("0")
    assert (kept, left) == ("True", "False")
    assert many - few > 20 * 32


def test_unknown_wish_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINRNN_KEEP_MEMORY", "yes")
    with pytest.raises(ValueError, match="MINRNN_KEEP_MEMORY must be 0 or 1, got 'yes'"):
        keep_freed_memory()


def test_peak_memory(monkeypatch):
    held = bytearray(1 << 20)
    assert peak_memory() > len(held) / 1e6
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory() is None
