"""Accuracy at length 65,536 beside the paper's log-space scan, and the two reference implementations themselves."""

import pytest
import torch

from minrnn_lightning.ops import gated_scan, linear_scan, use_kernel
from minrnn_lightning.ops.reference import gated_scan_loop, linear_scan_loop, log_space_scan

LENGTH = 65_536


@pytest.fixture(scope="module")
def long_sequence():
    generator = torch.Generator().manual_seed(0)
    gate = 2 * torch.randn(1, LENGTH, 32, generator=generator)
    candidate = torch.randn(1, LENGTH, 32, generator=generator)
    with torch.no_grad():
        return (
            gate,
            candidate,
            {
                dtype: gated_scan_loop(gate.to(dtype).double(), candidate.to(dtype).double())
                for dtype in (torch.float32, torch.bfloat16)
            },
        )


def relative_error(actual, expected):
    return ((actual.double() - expected).abs() / expected.abs()).max().item()


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_float32_at_65536_steps(long_sequence, kernel):
    gate, candidate, exact = long_sequence
    with use_kernel(kernel):
        ours = relative_error(gated_scan(gate, candidate), exact[torch.float32])
    log_space = relative_error(log_space_scan(gate, candidate), exact[torch.float32])
    print(f"\nlength {LENGTH}, float32: {kernel} {ours:.1e}, log-space scan {log_space:.1e}")
    assert ours <= 2e-6
    assert log_space > 100 * ours


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_bfloat16_at_65536_steps(long_sequence, kernel):
    gate, candidate, exact = long_sequence
    gate, candidate = gate.bfloat16(), candidate.bfloat16()
    with use_kernel(kernel):
        ours = relative_error(gated_scan(gate, candidate), exact[torch.bfloat16])
    log_space = relative_error(log_space_scan(gate, candidate), exact[torch.bfloat16])
    print(f"\nlength {LENGTH}, bfloat16: {kernel} {ours:.1e}, log-space scan {log_space:.1e}")
    assert ours <= 1e-2
    assert not log_space <= 1  # not a number, or useless


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_long_memories_stay_exact(kernel):
    """Gates nearly shut: the state hardly changes in a step, which is where roundings pile up."""
    gate = torch.full((1, LENGTH, 16), -9.0)
    candidate = torch.randn(1, LENGTH, 16, generator=torch.Generator().manual_seed(0))
    exact = gated_scan_loop(gate.double(), candidate.double())
    with use_kernel(kernel):
        error = relative_error(gated_scan(gate, candidate), exact)
    assert error <= (2e-6 if kernel == "auto" else 1e-3)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_linear_scan_at_65536_steps(kernel):
    generator = torch.Generator().manual_seed(0)
    decay = (2 * torch.randn(1, LENGTH, 16, generator=generator)).sigmoid()
    update = torch.rand(1, LENGTH, 16, generator=generator)
    with use_kernel(kernel):
        assert relative_error(linear_scan(decay, update), linear_scan_loop(decay.double(), update.double())) <= 2e-6


def test_log_space_scan_is_the_same_function():
    gate, candidate = (torch.randn(2, 40, 5, dtype=torch.float64) for _ in range(2))
    initial = torch.rand(2, 5, dtype=torch.float64) + 0.1
    for start in (None, initial):
        torch.testing.assert_close(log_space_scan(gate, candidate, start), gated_scan_loop(gate, candidate, start))
