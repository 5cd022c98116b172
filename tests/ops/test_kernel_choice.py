"""The kernels of the CPU in other processes, and which one runs: by the environment, without Numba, without a cache."""

import json
import os
from pathlib import Path

import pytest
import torch
from clean_process import run_code

from minrnn_lightning.ops import gated_scan
from minrnn_lightning.ops.cpu import kernels


def test_runs_in_a_forked_process():
    code = (
        "import os, torch; from minrnn_lightning.ops import gated_scan\n"
        "torch.set_num_threads(2); k = torch.randn(8, 300, 256); h = gated_scan(k, k)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if (gated_scan(k, k).numpy() == h.numpy()).all() else 1)\n"  # torch.equal would hang
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert run_code(code).returncode == 0


class Scans(torch.utils.data.Dataset):
    """Every item is a scan, computed where the loader's worker is."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        k = torch.linspace(-3, 3, 8 * 300 * 256).view(8, 300, 256) + index
        return gated_scan(k, k)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_runs_in_workers_of_a_loader(start):
    expected = [Scans()[index] for index in range(3)]
    loader = torch.utils.data.DataLoader(Scans(), batch_size=None, num_workers=2, multiprocessing_context=start)
    assert all(torch.equal(one, two) for one, two in zip(loader, expected, strict=True))


def test_without_a_folder_for_compiled_kernels_they_are_compiled_anew():
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"  # as if nothing could be written
        "import torch; from minrnn_lightning.ops import gated_scan\n"
        "k = torch.ones(2, 3, 4); print(gated_scan(k, k)[0, :, 0].tolist())"
    )
    done = run_code(code)
    k = torch.ones(2, 3, 4)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), gated_scan(k, k)[0, :, 0])
    assert done.stderr.count("compiled kernels cannot be cached (cannot cache function") == 1
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in done.stderr


def test_every_kernel_has_a_file_of_its_own_in_the_cache():
    """Numba's file for several kernels mixes them up where two processes compile different ones at once."""
    made = [kernels.compiled(kernels.ends_entry, "float32", gates) for gates in (None, True)]
    names = {file.name.partition("-")[0] for file in Path(made[0]._cache.cache_path).glob("*.nbi")}
    assert {"kernels.ends_entry_float32", "kernels.ends_entry_float32_gates"} <= names


def test_environment_chooses_the_kernel():
    code = "import torch; from minrnn_lightning.ops import gated_scan; k = torch.ones(2, 3, 4); gated_scan(k, k)"
    code += "\nimport sys; raise SystemExit(int('minrnn_lightning.ops.cpu.launch' in sys.modules))"
    for kernel, loaded in (("torch", 0), ("auto", 1)):
        done = run_code(code, {**os.environ, "MINRNN_KERNEL": kernel})
        assert done.returncode == loaded
    wrong = run_code("import minrnn_lightning.ops", {**os.environ, "MINRNN_KERNEL": "fast"})
    assert "MINRNN_KERNEL is 'fast'; it can be auto, torch or triton" in wrong.stderr


def test_without_numba_the_torch_kernel_runs_and_says_so():
    code = (
        "import sys; sys.modules['numba'] = None; import torch; from minrnn_lightning.ops import gated_scan\n"
        "k = torch.ones(2, 3, 4); print(gated_scan(k, k)[0, :, 0].tolist())"
    )
    done = run_code(code)
    k = torch.ones(2, 3, 4)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), gated_scan(k, k)[0, :, 0])
    assert "Numba does not load" in done.stderr
