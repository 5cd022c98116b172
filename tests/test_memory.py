"""Memory that is freed is used again."""

import ctypes
import os
import sys

import pytest
from clean_process import run_code

from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import check_memory, keep_freed_memory, machine_memory, peak_memory

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
    kept, faults = run_code(FAULTS, environment).stdout.split()
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


def test_peak_memory_on_windows(monkeypatch):
    """The structure and the call are those of the documentation; there is no Windows here."""

    class Kernel:
        class GetCurrentProcess:
            restype = None

            def __new__(cls):
                return 7

        def __init__(self, name):
            assert name == "kernel32"

        @property
        def K32GetProcessMemoryInfo(self):  # noqa: N802
            return query

    def query(process, counters, size):
        assert process == 7
        assert size == 2 * 4 + 8 * ctypes.sizeof(ctypes.c_size_t)  # two DWORDs, eight SIZE_Ts
        counters._obj.PeakWorkingSetSize = 12_500_000
        return 1

    monkeypatch.setattr(ctypes, "WinDLL", Kernel, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory() == 12.5


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    memory = machine_memory()
    assert memory is None or memory > 1 << 28
    monkeypatch.setattr("minrnn_lightning.memory.machine_memory", lambda: 8_000_000_000)
    check_memory(8e9, "a model")
    with pytest.raises(InputError, match="a model would take 9 GB at least, and this machine has 8 GB of memory"):
        check_memory(9e9, "a model")


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    monkeypatch.setattr("minrnn_lightning.memory.CONTAINER_LIMIT", tmp_path / "memory.max")
    whole = machine_memory()
    for text, expected in (("1000000\n", 1_000_000), ("max\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert machine_memory() == (expected if whole else None)
