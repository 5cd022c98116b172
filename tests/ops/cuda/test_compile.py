"""The Triton kernels compiled for GPUs, without one: registers, spills and shared memory of every tile."""

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import triton
import triton.language as tl
from triton.backends import compiler as backend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minrnn_lightning import ops

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ELEMENTS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "float64": "*fp64"}
SEQUENCES = {"grad", "k", "v", "f", "h", "d_k", "d_v", "d_f"}
STATES = {"initial", "before", "ends", "final", "d_initial"}
OUTPUTS = {"forward": {"h", "final"}, "backward": {"d_k", "d_v", "d_f", "d_initial"}}
NEVER_ALIGNED = {"length", "chunks", "chunk_length"}
CASES = [  # kind, with f, whether it only finds the maps of the chunks
    ("linear", False, False),
    ("positive", False, False),
    ("positive", True, False),
    ("positive", True, True),
]


CARRY = {"BLOCK_L": 16, "BLOCK_D": 64}, {"num_warps": 1}


def load_kernels():
    """The kernels for the compiler; the other tests have imported them for the interpreter."""
    spec = importlib.util.spec_from_file_location("compiled_kernels", Path(ops.__file__).parent / "cuda/kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.INTERPRETED
    return module


@pytest.fixture(scope="module")
def kernels():
    return load_kernels()


def build(function, dtype, kind, forget, maps_only, tile, options, target, aligned=True):
    """Compile as a launch on tensors of that type does."""
    wide = "float64" if dtype == "float64" else "float32"
    absent = set() if forget else {"f", "d_f"}
    absent |= (OUTPUTS.get(function.__name__, set()) | {"before"}) if maps_only else {"ends"}
    constants = {"KIND": kind, "REVERSE": False, "STATE": getattr(tl, wide), **tile}
    if function.__name__ != "carry":
        constants |= dict.fromkeys(absent)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}

    def type_of(name):
        if name in constants:
            return "constexpr"
        if name == "reset":
            return "*i1"
        return ELEMENTS[dtype] if name in SEQUENCES else ELEMENTS[wide] if name in STATES else "i32"

    signature = {name: type_of(name) for name in function.arg_names}
    divisible = [
        i
        for i, name in enumerate(function.arg_names)
        if aligned and name not in constants and name not in NEVER_ALIGNED
    ]
    if hasattr(backend, "AttrsDescriptor"):  # until Triton 3.2
        attributes = backend.AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
    else:
        attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    return triton.compile(ASTSource(function, signature, constants, attributes), target, options)


def usage(compiled):
    """Registers of a thread, bytes of its stack, where spilled ones go, and bytes of shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        report = subprocess.run(
            [CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", report).groups())
    return registers, stack, compiled.metadata.shared


def tiles(kernels, kernel, dtype):
    """The tiles that a launch tries for this type, and the compiler's options of each."""
    state = tl.float64 if dtype == "float64" else tl.float32
    configs = kernels.fitting(kernel.configs, {}, STATE=state)
    return [(config.kwargs, {"num_warps": config.num_warps, "maxnreg": config.maxnreg}) for config in configs]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_no_tile_spills(kernels, name, dtype, capability):
    kernel, target = getattr(kernels, name), GPUTarget("cuda", capability, 32)
    spilling = []
    print(f"\n{name}, {dtype}, sm_{capability}\n  steps channels  kind            registers spills shared")
    for tile, options in tiles(kernels, kernel, dtype):
        for kind, forget, maps_only in CASES:
            registers, spills, shared = usage(build(kernel.fn, dtype, kind, forget, maps_only, tile, options, target))
            case = kind + ", f" * forget + ", maps" * maps_only
            steps, channels = tile.values()
            print(f"  {steps:5} {channels:8}  {case:17} {registers:7} {spills:6} {shared:6}")
            if spills:
                spilling.append((tile, options, case, spills))
    assert not spilling


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiles_for_blackwell(kernels, name, dtype):
    kernel = getattr(kernels, name)
    tile, options = tiles(kernels, kernel, dtype)[0]
    compiled = build(kernel.fn, dtype, "positive", True, False, tile, options, GPUTarget("cuda", 100, 32))
    registers, spills, _ = usage(compiled)
    assert (registers > 0, spills) == (True, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_carry_compiles(kernels, dtype):
    compiled = build(kernels.carry, dtype, "linear", False, False, *CARRY, GPUTarget("cuda", 80, 32))
    assert usage(compiled)[1] == 0


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_compiles_without_alignment(kernels, name):
    kernel = getattr(kernels, name)
    tile, options = tiles(kernels, kernel, "float16")[0]
    target = GPUTarget("cuda", 80, 32)
    compiled = build(kernel.fn, "float16", "identity", True, False, tile, options, target, aligned=False)
    registers, spills, _ = usage(compiled)
    assert (registers > 0, spills) == (True, 0)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_offsets_have_64_bits(kernels, name):
    kernel = getattr(kernels, name)
    tile, options = tiles(kernels, kernel, "float16")[0]
    target = GPUTarget("cuda", 80, 32)
    for maps_only in (False, True):
        compiled = build(kernel.fn, "float16", "identity", True, maps_only, tile, options, target)
        offsets = re.findall(r"tt\.addptr.*, (?:tensor<[\dx]*)?(i\d+)>? loc", compiled.asm["ttir"])
        assert offsets
        assert set(offsets) == {"i64"}


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_compiles_for_amd(kernels, name):
    kernel = getattr(kernels, name)
    tile, options = tiles(kernels, kernel, "bfloat16")[0]
    options = {"num_warps": options["num_warps"]}
    compiled = build(kernel.fn, "bfloat16", "positive", True, False, tile, options, GPUTarget("hip", "gfx942", 64))
    assert ".vgpr_spill_count: 0" in compiled.asm["amdgcn"]
