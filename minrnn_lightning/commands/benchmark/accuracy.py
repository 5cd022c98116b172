"""``minrnn benchmark accuracy``: rounding errors of the scans, relative to a float64 loop, against the length."""

from collections.abc import Callable

import torch
from torch import Tensor

from minrnn_lightning.commands.benchmark.measure import check_sizes, parse_device, parse_lengths
from minrnn_lightning.commands.benchmark.report import Report, Row, finite
from minrnn_lightning.ops import gated_scan
from minrnn_lightning.ops.reference import gated_scan_loop, log_space_scan

SCANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gated_scan": gated_scan,
    "the paper's log-space scan": log_space_scan,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def accuracy(
    lengths: str = "64,256,1024,4096,16384,65536",
    dim: int = 32,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Measure the largest relative error of a state, for the scan and the paper's log-space scan.

    The gates' logits are drawn from N(0, 2²) and the candidates from N(0, 1), in float32, and rounded to each type
    first; the reference is a loop in float64 over the rounded values.

    Args:
        lengths: Lengths of the sequences, separated by commas.
        dim: Features of the state.
        device: cpu, cuda or cuda:N; the reference runs on the CPU.
        output: Folder to write accuracy.json, accuracy.csv and accuracy.png to.
        compare: The accuracy.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1 or the device is unknown.
    """
    torch_device, sequence_lengths = parse_device(device), parse_lengths(lengths)
    check_sizes(dim=dim)
    report = Report("accuracy", list(DTYPES), {"dim": dim}, torch_device, output, compare)
    generator = torch.Generator().manual_seed(0)
    gate, candidate = torch.randn(2, 1, max(sequence_lengths), dim, generator=generator).unbind()
    drawn = {name: ((2 * gate).to(dtype), candidate.to(dtype)) for name, dtype in DTYPES.items()}
    exact = {name: gated_scan_loop(*(x.double() for x in inputs)) for name, inputs in drawn.items()}
    rows: list[Row] = []
    for name, scan in SCANS.items():
        for length in sequence_lengths:
            row: Row = {"name": name, "length": length}
            for dtype, inputs in drawn.items():
                gate, candidate = (x[:, :length].to(torch_device) for x in inputs)
                row[dtype] = finite(relative_error(scan(gate, candidate).cpu(), exact[dtype][:, :length]))
            rows.append(row)
    report.add("Largest relative error", rows)
    report.save()


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Largest relative error of an element; NaN if one of them is NaN."""
    return float(((actual.double() - exact) / exact).abs().max())
