"""Results of a benchmark: tables, JSON, CSV and a plot, and ratios to an earlier run."""

import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minrnn_lightning.errors import InputError
from minrnn_lightning.results import print_table, provenance, write_csv, write_json, write_plot

Row = dict[str, Any]
Values = dict[tuple[object, ...], float | None]  # by name and the values of AXES

AXES = {  # what a measurement is made at, with their heads in tables and plots; every row has a length
    "length": "length",
    "batch_size": "batch",
    "dim": "dim",
}

COLUMNS = {  # measurements, where a row has them, with their heads; a spread is in <name>_low and <name>_high
    "ms": "ms",
    "ms_min": "min",
    "ms_max": "max",
    "us_per_token": "µs per token",
    "times_gru": "times nn.GRU",
    "times_grucell": "times nn.GRUCell",
    "times_lstm": "times nn.LSTM",
    "times_lstmcell": "times nn.LSTMCell",
    "times_products": "times its products",
    "times_eager": "times eager",
    "difference": "largest difference",
    "file_kb": "file, kB",
    "peak_mb": "peak memory, MB",
    "kept_bytes": "kept, B/token",
    "tokens_per_s": "tokens/s",
    "env_steps_per_s": "environment steps/s",
    "state_kb": "state, kB",
    "parameters_m": "parameters, M",
    "float32": "float32 error",
    "bfloat16": "bfloat16 error",
    "float16": "float16 error",
}


class Report:
    """The rows of one benchmark run, each with the measurements of one name at one length (and batch size, and width).

    Args:
        benchmark: Name of the benchmark, and of its files.
        plotted: Columns to plot; ratios are those of the first.
        about: Settings, which are saved together with the provenance.
        device: Device of the benchmark.
        output: Folder for ``<benchmark>.json``, ``.csv`` and ``.png``; none if None.
        compare: JSON file of an earlier run; a column of the table has the ratio to it. None for no such column.
        axis: What the columns are plotted against, a name in ``AXES``.

    Raises:
        InputError: The earlier file is not one of this benchmark.
        OSError: It cannot be read, or the folder cannot be made.
    """

    def __init__(
        self,
        benchmark: str,
        plotted: list[str],
        about: Mapping[str, object],
        device: torch.device,
        output: str | None,
        compare: str | None,
        axis: str = "length",
    ) -> None:
        self.benchmark = benchmark
        self.axis = axis
        self.plotted = plotted
        self.about = {**provenance(device), **about}
        self.rows: list[Row] = []
        self.folder = Path(output) if output else None
        self.earlier: Values | None = None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        if compare:
            about, self.earlier = _read(compare, benchmark, plotted[0])
            changes = (
                f"{key} {about.get(key)} (now {now})" for key, now in self.about.items() if about.get(key) != now
            )
            print(f"The earlier run had {', '.join(changes) or 'the same setting'}.", file=sys.stderr)

    def add(self, title: str, rows: list[Row], bases: Sequence[str] = ()) -> None:
        """Add rows and print them as a table.

        Args:
            title: Title of the table.
            rows: With ``name``, ``length``, other ``AXES`` and the measurements.
            bases: Names among them; a column for each has the ratio of every row to its row.
        """
        if not rows:
            return
        if not self.rows:
            print(self._setting())
        self.rows += rows
        main = [row[self.plotted[0]] for row in rows]
        columns = {"": [row["name"] for row in rows]}
        for axis in _varied(rows):
            columns[AXES[axis]] = [f"{row[axis]:,}" for row in rows]
        for column, head in COLUMNS.items():
            if any(column in row for row in rows):
                columns[head] = [measured(row, column) for row in rows]
        for base in bases:
            if base in columns[""]:
                columns[f"times {base}"] = [_ratio(value, main[columns[""].index(base)]) for value in main]
        if self.earlier is not None:
            before = [self.earlier.get(_key(row)) for row in rows]
            columns["times the earlier run"] = list(map(_ratio, main, before))
        cells = zip(*columns.values(), strict=True)
        print_table(title, [dict(zip(columns, row, strict=True)) for row in cells])

    def save(self) -> None:
        """Write JSON and CSV, and a plot where matplotlib is installed."""
        if self.folder is None:
            return
        file = self.folder / self.benchmark
        write_json(file.with_suffix(".json"), {"benchmark": self.benchmark, "about": self.about, "rows": self.rows})
        write_csv(file.with_suffix(".csv"), self.rows)
        write_plot(file.with_suffix(".png"), (5 * len(self.plotted) + 3.5, 4.5), self.draw)

    def draw(self, figure: Any) -> None:
        """Draw a panel for each plotted column, against the axis, as in figure 1 of the paper."""
        others = [axis for axis in _varied(self.rows) if axis != self.axis]
        lines: dict[str, list[Row]] = {}
        for row in self.rows:
            label = ", ".join([row["name"], *(f"{AXES[axis]} {row[axis]:,}" for axis in others)])
            lines.setdefault(label, []).append(row)
        for axes, column in zip(figure.subplots(1, len(self.plotted), squeeze=False)[0], self.plotted, strict=True):
            for number, (label, rows) in enumerate(lines.items()):
                points = [(row[self.axis], row[column]) for row in rows if row[column]]
                marker = "osv^D<>pP*"[number // 10 % 10]  # matplotlib has ten colours
                axes.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=label)
            name = "sequence length" if self.axis == "length" else AXES[self.axis]
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel=COLUMNS[column])
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
        figure.suptitle(textwrap.fill(self._setting(), round(14 * figure.get_figwidth())), fontsize="small")

    def _setting(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.about.items() if key not in ("python", "platform"))


def _read(path: str, benchmark: str, column: str) -> tuple[dict[str, object], Values]:
    """Settings and measurements in a file that ``save`` wrote."""
    found = None
    try:
        record = json.loads(Path(path).read_bytes())
        found = record["benchmark"]
        if found == benchmark:
            return dict(record["about"]), {_key(row): row[column] for row in record["rows"]}
    except (ValueError, TypeError, KeyError):  # not JSON, or of another shape
        pass
    what = "not a file to compare with" if found in (None, benchmark) else f"of `minrnn benchmark {found}`"
    raise InputError(
        f"{path} is {what}; "
        f"--compare takes a {benchmark}.json that `minrnn benchmark {benchmark} --output FOLDER` wrote"
    )


def _key(row: Row) -> tuple[object, ...]:
    """What a measurement is of: its name, and where it was made; an earlier run may have fewer axes."""
    return row["name"], row["length"], row.get("batch_size"), row.get("dim")


def _varied(rows: Sequence[Row]) -> list[str]:
    """The axes in which the rows differ."""
    return [axis for axis in AXES if len({row.get(axis) for row in rows}) > 1]


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def measured(row: Row, column: str) -> str:
    """A measurement and, where the row has it, its spread; empty where it has none."""
    if column not in row:
        return ""
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is None or high is None:
        return _number(row[column])
    return f"{row[column]:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    if value == 0 or 0.01 <= value < 1e6:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:.1e}"


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value and base else ""
