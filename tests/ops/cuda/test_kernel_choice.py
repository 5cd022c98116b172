"""When the Triton kernels run, and what runs where Triton does not load or compile."""

import inspect
import os
import warnings
from unittest import mock

import pytest
import torch
import triton
from clean_process import run_code
from scans import assert_close
from triton.runtime import build

from minrnn_lightning.ops import eager, kernel_choice, linear_scan


def test_cuda_tensors_get_these_kernels_and_cpu_tensors_on_request(cuda):
    assert kernel_choice._kernels(torch.device("cuda", 1)) is cuda
    assert kernel_choice._kernels(torch.device("cpu")) is not cuda
    with kernel_choice.use_kernel("triton"):
        assert kernel_choice._kernels(torch.device("cpu")) is cuda
    with kernel_choice.use_kernel("torch"):
        assert kernel_choice._kernels(torch.device("cuda")) is eager


def in_a_new_process(code, **environment):
    code = "import sys, torch\nfrom minrnn_lightning.ops import kernel_choice, linear_scan\n" + code
    return run_code(code, {**{k: v for k, v in os.environ.items() if not k.startswith("TRITON")}, **environment})


def test_the_environment_chooses_and_interprets():
    code = "x = torch.full((1, 2, 1), 0.5); print(linear_scan(x, x).flatten().tolist())"
    done = in_a_new_process(code, MINRNN_KERNEL="triton", TRITON_INTERPRET="1")
    assert done.stdout == "[0.5, 0.75]\n", done.stderr
    refused = in_a_new_process(code, MINRNN_KERNEL="triton")
    assert "the triton kernel runs on CUDA tensors, got cpu: choose the kernel 'auto', or set" in refused.stderr


def test_without_triton():
    code = "assert 'triton' not in sys.modules; sys.modules['triton'] = None; gpu = torch.device('cuda')\n"
    code += "print(kernel_choice._kernels(gpu).__name__, kernel_choice._kernels(gpu).__name__)\n"
    code += "with kernel_choice.use_kernel('triton'): kernel_choice._kernels(gpu)"
    done = in_a_new_process(code)
    assert done.stdout == "minrnn_lightning.ops.eager minrnn_lightning.ops.eager\n"
    assert done.stderr.count("3.2 to 3.9 are supported): the slower torch kernel runs instead") == 1
    assert "RuntimeError: the triton kernel needs Triton 3.2 to 3.9, and Triton does not load" in done.stderr


def test_with_a_triton_that_is_too_old():
    code = "import triton; triton.__version__ = '3.1.0'; gpu = torch.device('cuda')\n"
    code += "print(kernel_choice._kernels(gpu).__name__, kernel_choice._kernels(gpu).__name__)\n"
    code += "with kernel_choice.use_kernel('triton'): kernel_choice._kernels(gpu)"
    done = in_a_new_process(code)
    assert done.stdout == "minrnn_lightning.ops.eager minrnn_lightning.ops.eager\n"
    warning = (
        "Triton 3.1.0 does not load (it is older than 3.2; 3.2 to 3.9 are supported): the slower torch kernel runs"
    )
    assert done.stderr.count(warning) == 1
    assert "RuntimeError: the triton kernel needs Triton 3.2 to 3.9, and Triton 3.1.0 does not load" in done.stderr


def test_they_load_without_a_gpu():
    done = in_a_new_process("print(kernel_choice._kernels(torch.device('cuda')).__name__)")
    assert done.stdout == "minrnn_lightning.ops.cuda.launch\n", done.stderr


def broken(x):
    undefined  # noqa: B018, F821


def triton_fails(*_, **__):
    from triton.backends.compiler import GPUTarget

    function = triton.runtime.JITFunction(broken)
    triton.compile(triton.compiler.ASTSource(function, {"x": "*fp32"}), GPUTarget("cuda", 80, 32))


def the_c_compiler_fails(*_, **__):
    rest = len(inspect.signature(build._build).parameters) - 3
    build._build("launcher", "no_such_file.c", ".", *[[]] * rest)


@pytest.fixture
def on_a_gpu(cuda):
    """The scans of CPU tensors run as those of CUDA tensors do."""
    with mock.patch.dict(kernel_choice._loaded, {"cpu": cuda}):
        yield


def scan_and_gradient():
    x = torch.full((1, 3, 2), 0.5, requires_grad=True)
    h = linear_scan(x, x)
    return h.detach(), torch.autograd.grad(h.sum(), x)[0]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("fail", [triton_fails, the_c_compiler_fails])
@pytest.mark.parametrize("first", [True, False])
def test_where_it_does_not_compile_the_torch_kernel_runs(cuda, fail, first):
    with kernel_choice.use_kernel("torch"):
        expected = scan_and_gradient()
    launch = cuda._launch

    def fails(kernel, *args, **options):
        (fail if first or kernel is cuda.kernels.backward else launch)(kernel, *args, **options)

    with mock.patch.object(cuda, "_launch", fails), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = scan_and_gradient(), scan_and_gradient()
    (message,) = (text for text in (str(warning.message) for warning in caught) if "torch kernel" in text)
    assert message.startswith(f"Triton {triton.__version__} does not compile the kernel (")
    assert message.endswith("; 3.2 to 3.9 are supported): the slower torch kernel runs instead")
    assert "\n" not in message
    for actual in results:
        for x, y in zip(actual, expected, strict=True):
            assert_close(x, y.double(), 1e-6)
    assert kernel_choice._kernels(torch.device("cpu")) is eager


@pytest.mark.parametrize("fail", [triton_fails, the_c_compiler_fails])
def test_asked_for_by_name_it_fails_where_it_does_not_compile(cuda, fail):
    wanted = f"^Triton {triton.__version__} does not compile .* or choose the kernel 'auto' or 'torch'$"
    with (
        mock.patch.object(cuda, "_launch", fail),
        kernel_choice.use_kernel("triton"),
        pytest.raises(RuntimeError, match=wanted),
    ):
        scan_and_gradient()


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        TypeError("a mistake of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_stay_as_they_are(cuda, error):
    with mock.patch.object(cuda, "_launch", side_effect=error), pytest.raises(type(error)) as raised:
        scan_and_gradient()
    assert raised.value is error
    assert kernel_choice._kernels(torch.device("cpu")) is cuda
