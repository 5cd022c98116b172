"""Wrong arguments of linear_scan and gated_scan are named, with what is accepted."""

import pytest
import torch

from minrnn_lightning.ops import gated_scan, linear_scan, use_kernel


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((2, 3), (2, 3)), {}, ValueError, r"gate must have shape \(batch, length, dim\), got \(2, 3\)"),
        (((2, 3, 4), (2, 3, 5)), {}, ValueError, r"candidate must have the shape of gate.*got \(2, 3, 5\)"),
        (((2, 3, 4), (2, 3, 4), (1, 4)), {}, ValueError, r"initial must have shape .*\(2, 4\), got \(1, 4\)"),
        (((2, 3, 4), (2, 3, 4)), {"reset": torch.zeros(2, 4).bool()}, ValueError, r"reset must have .*\(2, 3\), got"),
        (((2, 3, 4), (2, 3, 4)), {"reset": torch.zeros(2, 3)}, TypeError, "reset must be bool, got torch.float32"),
        (((2, 3, 4), (2, 3, 4)), {"activation": "tanh"}, ValueError, "activation is 'tanh'; it can be"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, words):
    with pytest.raises(error, match=words):
        gated_scan(*(torch.ones(shape) for shape in arguments), **options)


def test_wrong_types_and_kernels_are_named():
    with pytest.raises(TypeError, match=r"decay must be float16.*got torch.int64"):
        linear_scan(torch.ones(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, 3))
    with (
        pytest.raises(ValueError, match="the kernel is 'fast'; it can be 'auto', 'torch' or 'triton'"),
        use_kernel("fast"),
    ):
        pass


ODD = {
    "None": lambda x: None,
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "complex": lambda x: x.to(torch.complex64),
    "integer": lambda x: x.long(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|quant).*")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["decay", "update", "gate", "candidate", "forget", "initial", "reset"])
def test_what_is_no_dense_tensor_is_refused(name, kind):
    scan = linear_scan if name in ("decay", "update") else gated_scan
    names = ("decay", "update") if scan is linear_scan else ("gate", "candidate")
    given = {key: torch.rand(2, 3, 4) for key in names}
    value = {"initial": torch.rand(2, 4), "reset": torch.rand(2, 3) < 0.5}.get(name, torch.rand(2, 3, 4))
    if kind == "None" and name in ("initial", "reset", "forget"):  # which is what these are by default
        scan(**{**given, name: None})
        return
    with pytest.raises(TypeError, match=f"^{name} must be ") as refused:
        scan(**{**given, name: ODD[kind](value)})
    assert "\n" not in str(refused.value)
