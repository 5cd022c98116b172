"""Files that are written whole or not at all: JSON, CSV, plots and anything else."""

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_atomic(file: Path, content: bytes) -> None:
    """Write a whole file or none."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_json(file: Path, record: object) -> None:
    """Write plain values, which must be finite."""
    write_atomic(file, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows under the names of all their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue().encode())


def write_plot(file: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Write a PNG of that size in inches, drawn on a figure of matplotlib; say so where that is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot without matplotlib: pip install "minrnn-lightning[benchmark]"', file=sys.stderr)
        return
    figure, image = Figure(figsize=size, layout="constrained"), io.BytesIO()
    draw(figure)
    figure.savefig(image, format="png", dpi=100)
    write_atomic(file, image.getvalue())
