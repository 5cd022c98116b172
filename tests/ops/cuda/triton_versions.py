"""Whether every supported Triton compiles the kernels: ``python tests/ops/cuda/triton_versions.py [3.2 3.3 ...]``.

pip puts one version after the other into a temporary folder, which comes first on the path of a process of its own.
That compiles each kernel for GPUs that need not be there, in all its tiles, types and cases, and prints the most
registers that a thread has and how many instructions store and load spilled ones. It fails if a kernel fails or spills.
"""

import os
import subprocess
import sys
import tempfile

from minrnn_lightning.ops.cuda.compilers import TRITON

GPUS = (80, 90)
ROW = "{:8} {:6} {:9} {:>7} {:>9} {:>7} {:>7}"


def compiled(kernels, name, gpu):
    """A kernel in everything that a launch may choose."""
    import test_cuda_compile as test

    target = test.GPUTarget("cuda", gpu, 32)
    if name == "carry":
        for dtype in ("float32", "float64"):
            yield test.build(kernels.carry, dtype, "linear", False, False, *test.CARRY, target)
        return
    kernel = getattr(kernels, name)
    for dtype in ("bfloat16", "float32", "float64"):
        for tile, options in test.tiles(kernels, kernel, dtype):
            for case in test.CASES:
                yield test.build(kernel.fn, dtype, *case, tile, options, target)


def measure():
    """A row for each GPU and kernel, with the Triton of this process; whether all compile and none spills."""
    import test_cuda_compile as test
    import triton

    good, kernels = True, test.load_kernels()
    for gpu in GPUS:
        for name in ("forward", "backward", "carry"):
            built = registers = stores = loads = 0
            outcome = ""
            try:
                for kernel in compiled(kernels, name, gpu):
                    used, stack, _ = test.usage(kernel)
                    built, registers = built + 1, max(registers, used)
                    code = kernel.asm["sass"] if stack else ""  # slow to get, and nothing is spilled without a stack
                    stores, loads = stores + code.count(" STL"), loads + code.count(" LDL")
            except Exception as error:  # of any kind: it is what the row tells
                outcome = f" {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            good = good and not (outcome or stores or loads)
            print(
                ROW.format(triton.__version__, f"sm_{gpu}", name, built, registers, stores, loads) + outcome, flush=True
            )
    return good


def main(versions):
    print(ROW.format("Triton", "GPU", "kernel", "built", "registers", "stores", "loads"), flush=True)
    failed = []
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
            path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": os.path.join(folder, "cache")}
            done = subprocess.run([*pip, f"triton=={version}.*"])
            if done.returncode == 0:
                done = subprocess.run([sys.executable, "-W", "ignore", __file__, "--here"], env=environment)
            failed += [version] * (done.returncode != 0)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        sys.exit(not measure())
    main(sys.argv[1:] or TRITON)
