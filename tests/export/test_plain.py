import pytest
import torch
from old_torch import every_export

from minrnn_lightning import Backbone
from minrnn_lightning.errors import InputError
from minrnn_lightning.export.flatten import flatten
from minrnn_lightning.export.plain import BLOCK, _cummax, export_plain, plain_scan
from minrnn_lightning.nn import MinGRU
from minrnn_lightning.ops.reference import linear_scan_loop

LENGTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 1000, 4096)


@pytest.mark.parametrize(
    ("length", "longest"),
    [(length, longest) for longest in (2 * BLOCK, 4096, 1 << 18) for length in LENGTHS if length <= longest],
)
def test_equals_the_loop(length, longest):
    torch.manual_seed(length)
    a, b = 2 * torch.rand(2, length, 3) - 1, torch.randn(2, length, 3)
    a[0, length // 2] = 0  # a reset
    product, h = plain_scan(a, b, longest)
    torch.testing.assert_close(h.double(), linear_scan_loop(a.double(), b.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product, a.cumprod(1), rtol=1e-4, atol=1e-6)


def test_long_memory_keeps_its_digits():
    torch.manual_seed(0)
    a, b = 1 - 1e-4 * torch.rand(4, 4096, 8), torch.randn(4, 4096, 8)
    h, loop = plain_scan(a, b, 1 << 18)[1].double(), linear_scan_loop(a.double(), b.double())
    assert (h - loop).abs().max() < 1e-5 * loop.abs().max()


@pytest.mark.parametrize("longest", [40, 64])
def test_cummax_equals_that_of_pytorch(longest):
    x = torch.randint(0, 9, (3, 40))
    values, indices = _cummax(longest, x, 1)
    expected = x.cummax(1)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


@every_export
def test_a_program_refuses_what_is_too_long():
    module = flatten(MinGRU(3, 4, batch_first=True), "sequence")
    program = export_plain(module, batch=4, longest=BLOCK * 4).module()
    state = torch.zeros(1, 1, 4)
    program(torch.randn(1, BLOCK * 4, 3), state)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.randn(1, BLOCK * 4 + 1, 3), state)


@every_export
def test_a_sequence_that_would_keep_an_operator_of_this_package_is_refused():
    module = flatten(Backbone(4, 1, "gru", kernel_size=0, mlp_ratio=0), "sequence")
    with pytest.raises(InputError, match=r"^a Backbone needs the operator minrnn.rnn.default of this package"):
        export_plain(module, batch=4, longest=256)


@every_export
def test_a_step_of_nn_gru_s_recurrence_has_operators_of_pytorch_alone():
    torch.manual_seed(0)
    module = flatten(Backbone(4, 1, "gru", kernel_size=0, mlp_ratio=0), "step")
    program = export_plain(module, batch=4, longest=256).module()
    inputs = tuple(torch.randn(3, *x.shape[1:]) for x in module.examples)
    torch.testing.assert_close(program(*inputs), module(*inputs))
