"""Write the tables of results in the Markdown pages from recipes/results: ``python recipes/tables.py``.

A page marks the position of a table by ``<!-- results:NAME -->`` and ``<!-- end -->``. NAME is a folder that ``minrnn
compare --output`` wrote, or several separated by commas; ``formal_languages``, ``parity`` and those of ``minrnn
benchmark`` have a form of their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

RECIPES = Path(__file__).resolve().parent
RESULTS = RECIPES / "results"
MARKED = re.compile(r"(<!-- results:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
CHANCE = {  # accuracy of a random guess, and of the commonest answer at each length and position
    "even_pairs": (1 / 2, 0.5),
    "bucket_sort": (1 / 10, 0.73),
    "cycle_nav": (1 / 5, 0.2),
    "majority": (1 / 63, 0.03),
    "parity_check": (1 / 2, 0.5),
    "missing_duplicate": (1 / 9, 0.11),
    "majority_count": (1 / 63, 0.43),
}
THRESHOLDS = {  # returns that policies without the memory for it do not reach
    "rl/tmaze10": 3.9,
    "rl/tmaze10_highway": 3.9,
    "rl/tmaze50": 3.9,
    "rl/tmaze50_rollouts64": 3.9,
    "rl/repeat_previous4": 0.5,
    "rl/repeat_previous4_convolution": 0.5,
    "rl/cartpole": 400.0,
    "rl/pendulum": -300.0,
    "rl/minigrid": 0.9,
    "rl/autoencode": -0.4,
}
UPDATES = "rl/update64,rl/update256"  # by the length of the rollouts
Run = Mapping[str, Any]
Row = dict[str, str]


def runs(folder: str) -> dict[str, list[Run]]:
    """The runs in a folder of results by mixer, each with its seeds in order."""
    found: dict[str, list[Run]] = {}
    for file in sorted((RESULTS / folder).glob("*-[0-9]*.json")):  # not those of all runs together
        run = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(run["mixer"], []).append(run)
    return found


def spread(seeds: Iterable[Run], name: str, digits: int) -> str:
    """Mean and standard deviation over the seeds that have the number; empty if none has it."""
    numbers = [run[name] for run in seeds if run[name] is not None]
    if not numbers:
        return ""
    deviation = f" ± {stdev(numbers):,.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):,.{digits}f}{deviation}"


def learning_rate(run: Run) -> str:
    """The learning rates that were chosen for a mixer; empty if they are the recipe's."""
    settings = run.get("settings", {})
    if "lr" not in settings:
        return ""
    muon = "" if settings["muon_lr"] is None else f"Muon {settings['muon_lr']:g}, "
    return f"{muon}AdamW {settings['lr']:g}"


def tuning(run: Run) -> str:
    """What was spent on the choice."""
    spent = run.get("tuning")
    return f"{spent['trials']} trials, {spent['steps']:,} steps" if spent else ""


def compared(name: str) -> list[Row]:
    """One row for each folder and mixer."""
    folders = name.split(",")
    rows = []
    for folder in folders:
        for mixer, seeds in runs(folder).items():
            first = seeds[0]
            digits = 0 if first["metric"] == "val/return" else 4
            rows.append(
                ({"results": Path(folder).name} if len(folders) > 1 else {})
                | {
                    "mixer": mixer,
                    f"best {first['metric']}": spread(seeds, "best", digits),
                    "last": spread(seeds, "last", digits),
                    "learning rate": learning_rate(first),
                    "tuning": tuning(first),
                    "steps": f"{first['settings']['max_steps']:,}" if "max_steps" in first.get("settings", {}) else "",
                    "at step": f"{median(run['steps_to_best'] for run in seeds):,.0f}",
                    "parameters": f"{first['parameters']:,}",
                    "s/step": spread(seeds, "seconds_per_step", 3),
                    "tokens/s generating": spread(seeds, "tokens_per_s", 0),
                    "peak MB": spread(seeds, "peak_mb", 0),
                    "minutes": spread(seeds, "minutes", 1),
                    "seeds": str(len(seeds)),
                    "commit": ", ".join(dict.fromkeys(run["about"]["minrnn-lightning"] for run in seeds)),
                }
            )
    metric = next(head for head in rows[0] if head.startswith("best"))
    lower = metric.endswith("loss")
    rows.sort(key=lambda row: float(row[metric].split()[0].replace(",", "")) * (1 if lower else -1))
    return [{head: row[head] for head in rows[0] if any(other[head] for other in rows)} for row in rows]


def formal_languages(_: str) -> list[Row]:
    """One row for each task, with the best accuracy, and in brackets the same scaled so that chance is 0."""
    rows = []
    for task, (chance, blind) in CHANCE.items():
        plain, signed = runs(f"formal_languages/{task}"), runs(f"formal_languages/signed_{task}")
        columns = {"minGRU": plain["mingru"], "minGRU, signed": signed["mingru"], "minLSTM": plain["minlstm"]}
        best = {head: (found[0]["best"], found[0]["about"]["minrnn-lightning"]) for head, found in columns.items()}
        cells = {head: f"{value:.3f} ({(value - chance) / (1 - chance):.2f})" for head, (value, _) in best.items()}
        rows.append({"task": task, "blind": f"{blind}"} | cells | {"commits": ", ".join(c for _, c in best.values())})
    return rows


def parity(_: str) -> list[Row]:
    """The last accuracy of each seed."""
    heads = {
        "plain_parity": "minGRU, factors in (0, 1), as in the paper",
        "signed_parity": "minGRU with `signed: true`, factors in (−1, 1)",
    }
    found = {head: runs(folder)["mingru"] for folder, head in heads.items()}
    return [{"": head, "accuracy": ", ".join(f"{run['last']:.3f}" for run in seeds)} for head, seeds in found.items()]


def online(name: str) -> list[Row]:
    """One row for each mixer of online training: returns, and the environment steps until one exceeded a threshold."""
    threshold, rows = THRESHOLDS[name], []
    for mixer, seeds in sorted(runs(name).items(), key=lambda found: -mean(run["last"] for run in found[1])):
        reached = [steps for steps in (steps_to(threshold, run) for run in seeds) if steps]
        first, number = seeds[0], f"{len(reached)} of {len(seeds)} seeds"
        rows.append(
            {
                "mixer": mixer.rpartition(".")[2],
                "last val/return": spread(seeds, "last", 2),
                "best": spread(seeds, "best", 2),
                f"environment steps to {threshold:g}": f"{median(reached):,.0f} ({number})" if reached else number,
                "environment steps": f"{first['env_steps']:,.0f}",
                "steps/s collecting": spread(seeds, "collect_steps_per_s", 0),
                "updating": spread(seeds, "update_steps_per_s", 0),
                "parameters": f"{first['parameters']:,}",
                "commit": ", ".join(dict.fromkeys(run["about"]["minrnn-lightning"] for run in seeds)),
            }
        )
    return rows


def updates(name: str) -> list[Row]:
    """One row for each mixer of ``minrnn compare --equal_time``: time of a step, and how often it is in that of nn.GRU.

    The fastest of the timed runs counts, as there.
    """
    rows: dict[str, Row] = {}
    for folder in name.split(","):
        record = json.loads((RESULTS / folder / "timing.json").read_text(encoding="utf-8"))
        fastest: dict[str, float] = {}
        for run in record["times"]:
            fastest[run["mixer"]] = min(run["seconds_per_step"], fastest.get(run["mixer"], math.inf))
        for mixer, seconds in fastest.items():
            cell = f"{1e3 * seconds:.1f} ms ({fastest['gru'] / seconds:.1f})"
            rows.setdefault(mixer, {"mixer": mixer})["length " + folder.removeprefix("rl/update")] = cell
    return list(rows.values())


def other_lengths(name: str) -> list[Row]:
    """One row for each mixer of what ``minrnn rollout --output`` wrote as MIXER-SEED-LENGTH.json: returns by length."""
    found: dict[str, dict[int, list[float]]] = {}
    for file in sorted((RESULTS / name).glob("*.json")):
        mixer, _, length = file.stem.rsplit("-", 2)
        result = json.loads(file.read_text(encoding="utf-8"))["targets"][0]["return"]
        found.setdefault(mixer, {}).setdefault(int(length), []).append(result)
    lengths = sorted({length for row in found.values() for length in row})
    return [
        {"mixer": mixer}
        | {f"length {length}": ", ".join(f"{value:.2f}" for value in row[length]) for length in lengths}
        for mixer, row in found.items()
    ]


def steps_to(threshold: float, run: Run) -> float | None:
    """Environment steps until the first validation with at least this return; None if there was none."""
    points = zip(run["curve"], run["env_steps_curve"], strict=True)
    return next((steps for (_, value), (_, steps) in points if value >= threshold), None)


def measured(row: Run, column: str) -> str:
    """A ratio of times with its quartiles; empty where there is none."""
    if column not in row:
        return ""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return f"{row[column]:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")


def single_steps(name: str) -> list[Row]:
    """One row for each batch size of ``minrnn benchmark step``: each minimal RNN relative to what it replaces."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    by_batch: dict[int, dict[str, Run]] = {}
    for row in record["rows"]:
        by_batch.setdefault(row["batch_size"], {})[row["name"]] = row
    return [
        {
            "batch": str(batch),
            "minGRU: times nn.GRU": measured(rows["MinGRU"], "times_gru"),
            "times nn.GRUCell": measured(rows["MinGRU"], "times_grucell"),
            "minLSTM: times nn.LSTM": measured(rows["MinLSTM"], "times_lstm"),
            "times nn.LSTMCell": measured(rows["MinLSTM"], "times_lstmcell"),
        }
        for batch, rows in by_batch.items()
    ]


def small_steps(name: str) -> list[Row]:
    """One row for each width and stack; in brackets the ratios to nn.GRU and to its own matrix products."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    stacks: dict[tuple[int, str], Row] = {}
    for row in record["rows"]:
        if not row["name"].startswith("products of "):
            cells = stacks.setdefault((row["dim"], row["name"]), {"dim": str(row["dim"]), "": row["name"]})
            ratios = [f"{row[column]:.2g}" for column in ("times_gru", "times_products") if column in row]
            cells[f"batch {row['batch_size']}"] = f"{1e3 * row['ms']:,.0f} ({', '.join(ratios)})"
    return list(stacks.values())


def short_sequences(name: str) -> list[Row]:
    """One row for each width and batch size of ``minrnn benchmark layer``: times as fast as nn.GRU and nn.LSTM."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    times: dict[tuple[int, int, int], dict[str, float]] = {}
    for row in record["rows"]:
        times.setdefault((row["dim"], row["batch_size"], row["length"]), {})[row["name"]] = row["ms"]
    found: dict[tuple[int, int], Row] = {}
    for (dim, batch, length), ms in times.items():
        cells = found.setdefault((dim, batch), {"dim": str(dim), "batch": str(batch)})
        cells[f"T {length}"] = f"{ms['nn.GRU'] / ms['MinGRU']:.1f}, {ms['nn.LSTM'] / ms['MinLSTM']:.1f}"
    return list(found.values())


def memory(name: str) -> list[Row]:
    """One row for each module of ``minrnn benchmark layer --blocks``: peak by length, and bytes kept for backward."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[str, Row] = {}
    for row in record["rows"]:
        cells = found.setdefault(row["name"], {"": row["name"]})
        cells[f"T {row['length']:,}: peak MB"] = f"{row['peak_mb']:.3g}"
        cells["kept, bytes per token"] = f"{row['kept_bytes']:,.0f}"  # that of the longest, without the initial state
    return [{head: row[head] for head in sorted(row, key="kept, bytes per token".__eq__)} for row in found.values()]


def exported(name: str) -> list[Row]:
    """One row for each mode and runtime of ``minrnn benchmark export``: times eager, largest difference, size."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], Row] = {}
    for row in record["rows"]:
        model, runtime = row["name"].split(", ")
        mode = "step" if row["length"] == 1 else "sequence"
        cells = found.setdefault((mode, runtime), {"mode": mode, "runtime": runtime})
        cells[model] = f"{1e3 * row['ms']:,.0f} µs"
        if "difference" in row:
            cells[model] = f"{row['times_eager']:.2f}, {row['difference']:.0e}, {row['file_kb']:,.0f} kB"
    heads = dict.fromkeys(head for row in found.values() for head in row)
    return [
        {head: found[key].get(head, "") for head in heads}
        for key in sorted(found, key=lambda key: key[0], reverse=True)
    ]


def on_gpu(name: str) -> list[Row]:
    """The scans of ``minrnn benchmark gpu`` as a share of the speed of copying, and as a multiple of the paper's."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], Row] = {}
    for run in record["runs"].values():
        if run["benchmark"] != "scan":
            continue
        about, times = run["about"], {(row["name"], row["length"]): row["ms"] for row in run["rows"]}
        for (full, length), ms in times.items():
            part, scan = full.split(": ")
            sizes = f"{about['dtype']}, {about['batch_size']} × {length:,} × {about['dim']}"
            cells = found.setdefault((sizes, scan), {"type, sizes": sizes, "": scan})
            copying = times.get((f"{part}: copying as many bytes", length))
            cells[part] = f"{ms:.3g} ms" + (f" ({copying / ms:.0%})" if copying and copying != ms else "")
    heads = dict.fromkeys(head for row in found.values() for head in row)
    return [{head: row.get(head, "") for head in heads} for row in found.values()]


def table(name: str) -> str:
    """A table in Markdown."""
    forms = {"formal_languages": formal_languages, "parity": parity, "benchmarks/step": single_steps}
    forms |= {"benchmarks/step_small": small_steps, "benchmarks/export": exported, "benchmarks/gpu": on_gpu}
    forms |= {"benchmarks/layer_short": short_sequences, "benchmarks/layer_memory": memory}
    forms |= dict.fromkeys(THRESHOLDS, online) | {"rl/tmaze10_longer": other_lengths, UPDATES: updates}
    rows = forms.get(name, compared)(name)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]) + "\n"


def filled(page: str) -> str:
    """A page with its tables as the results say."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], page)


def pages() -> list[Path]:
    """The Markdown pages next to the recipes, and those of the documentation."""
    found = [*RECIPES.rglob("*.md"), *(RECIPES.parent / "docs").rglob("*.md")]
    return sorted(page for page in found if RESULTS not in page.parents)


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
