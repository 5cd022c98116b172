"""``minrnn benchmark accuracy``: the error of the scans against a float64 loop, against the length."""

from collections.abc import Callable

import torch
from torch import Tensor

from minrnn_lightning.benchmark.measure import check_sizes, parse_device, parse_lengths
from minrnn_lightning.benchmark.report import Report, finite
from minrnn_lightning.ops import gated_scan
from minrnn_lightning.ops.reference import gated_scan_loop, log_space_scan

SCANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gated_scan": gated_scan,
    "the paper's log-space scan": log_space_scan,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accuracy(
    lengths: str = "64,256,1024,4096,16384,65536",
    dim: int = 32,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Find the largest relative error of a state, for the scan and the paper's log-space scan, against the length.

    The gates' logits are drawn from N(0, 2²) and the candidates from N(0, 1), in float32, and rounded to each type
    first; the reference is a loop in float64 over the rounded values.

    Args:
        lengths: Steps of the sequences, separated by commas.
        dim: Features of the state.
        device: cpu, cuda or cuda:N; the reference runs on the CPU.
        output: Folder to write accuracy.json, accuracy.csv and accuracy.png to.
        compare: The accuracy.json of an earlier run; adds the ratio to it.

    Raises:
        ValueError: A size is below one, or the device unknown.
    """
    place, steps_of = parse_device(device), parse_lengths(lengths)
    check_sizes(dim=dim)
    report = Report("accuracy", ["error"], {"dim": dim}, place, output, compare)
    generator = torch.Generator().manual_seed(0)
    gate, candidate = torch.randn(2, 1, max(steps_of), dim, generator=generator).unbind()
    drawn = {dtype: ((2 * gate).to(dtype), candidate.to(dtype)) for dtype in DTYPES}
    exact = {dtype: gated_scan_loop(*(x.double() for x in inputs)) for dtype, inputs in drawn.items()}
    for length in steps_of:
        rows = []
        for dtype, inputs in drawn.items():
            for name, scan in SCANS.items():
                gate, candidate = (x[:, :length].to(place) for x in inputs)
                states = scan(gate, candidate).cpu()
                error = finite(relative_error(states, exact[dtype][:, :length]))
                rows.append({"name": f"{name}, {str(dtype).removeprefix('torch.')}", "length": length, "error": error})
        report.add(f"Length {length:,}", rows)
    report.save()


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """The largest, over all elements; not a number if one of them is not."""
    return float(((actual.double() - exact) / exact).abs().max())
