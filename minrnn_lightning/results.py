"""Results of a command: tables, JSON, CSV, plots, and the provenance of a measurement; files are written atomically."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PEERS = ("minGRU-pytorch", "mingru-scans")  # packages that are benchmarked, where they are installed


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file so that it never exists in part, not even after an interruption."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_json(file: Path, record: object) -> None:
    """Write plain values, which must be finite: JSON has neither NaN nor infinity."""
    write_atomic(file, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows under a header with the columns of all of them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue().encode())


def write_plot(file: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Write a PNG; without matplotlib, print how to install it instead.

    Args:
        file: Path of the PNG.
        size: Width and height in inches, at 100 pixels per inch.
        draw: Draws on a matplotlib figure.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot without matplotlib: pip install "minrnn-lightning[benchmark]"', file=sys.stderr)
        return
    figure, image = Figure(figsize=size, layout="constrained"), io.BytesIO()
    draw(figure)
    figure.savefig(image, format="png", dpi=100)
    write_atomic(file, image.getvalue())


def print_table(title: str, rows: Sequence[Mapping[str, str]], left: Sequence[str] = ("",), width: int = 160) -> None:
    """Print rows with the same columns as a table.

    Args:
        title: Printed above the table.
        rows: Values by the head of their column.
        left: Heads of the columns that are aligned to the left; the others, with numbers, to the right.
        width: Largest width of the table in characters.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in rows[0]:
        table.add_column(head, justify="left" if head in left else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=width, highlight=False).print(table)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same columns as a table in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def write_markdown(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write such a table."""
    write_atomic(file, (markdown_table(rows) + "\n").encode())


def provenance(device: torch.device) -> dict[str, object]:
    """The machine and the versions that a measurement depends on."""
    import torch

    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
        cpu = next(names, cpu)
    about: dict[str, object] = {"device": str(device), "cpu": cpu, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    about |= {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    packages = {"minrnn-lightning": _commit() or version("minrnn-lightning"), **{peer: version(peer) for peer in PEERS}}
    return about | {package: found for package, found in packages.items() if found}


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a source tree, with ``-dirty`` if it was changed since; None for an installed package."""
    tree = Path(__file__).parents[1]
    if not (tree / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
