"""``minrnn compare``: train one recipe with several mixers and seeds, and compare them in one table and plot."""

from __future__ import annotations

import json
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from minrnn_lightning.commands.checks import check_function
from minrnn_lightning.commands.compare_plan import Plan, make_plans
from minrnn_lightning.commands.compare_report import Result, write_report
from minrnn_lightning.commands.compare_run import Job, Run, run_jobs
from minrnn_lightning.commands.compare_time import ROUNDS, STEPS
from minrnn_lightning.commands.compare_tune import EXTENSIONS
from minrnn_lightning.commands.options import split_commas
from minrnn_lightning.commands.recipes import find_recipes
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MIXERS
from minrnn_lightning.results import provenance, write_json


def compare(args: list[str]) -> None:
    """Train every mixer with every seed, each in a process of its own, and put the results together.

    A finished run leaves ``<mixer>-<seed>.json`` in the output folder and is not run again; one that was interrupted
    resumes from its last checkpoint. The tables ``compare.json``, ``.csv``, ``.md`` and the plot ``compare.png`` are
    made anew from all of them. With ``--tune``, ``tuning.json`` has all trials, which are not run again either; with
    ``--equal_time``, ``timing.json`` has the times.

    Args:
        args: The options of ``minrnn fit``, with a recipe, and those of ``_parse``.

    Raises:
        InputError: A mixer, a seed or a device is unknown, or an earlier run had other options; and when all runs
            have ended, if some of them failed.
    """
    options, args = _parse(args)
    find_recipes(args)  # refuses one that is not there; the runs look for it again
    folder, runs = Path(options.output), Path(options.runs or Path("runs", "compare", Path(options.output).name))
    folder.mkdir(parents=True, exist_ok=True)
    _read_results(folder, options, args)  # refuses those of another comparison before anything runs
    plans, failures = make_plans(options, args, folder, runs)
    _read_results(folder, options, args, plans)

    def job(mixer: str, seed: int) -> Job:
        if (folder / f"{mixer}-{seed}.json").is_file():
            print(f"{mixer}, seed {seed}: finished before")
            return
        run = yield partial(Run, mixer, seed, args, runs, settings=plans[mixer].options)
        try:
            result = run.measurements(options.metric) | {"about": provenance(run.generation_device)}
        except InputError as error:  # which the other runs have nothing to do with
            print(error, flush=True)
            failures.append(str(error))
        else:
            write_json(folder / f"{run.name}.json", _with_best(result | plans[mixer].record, options.mode))

    run_jobs((job(mixer, seed) for seed in options.seeds for mixer in plans), options.devices)
    results = _read_results(folder, options, args, plans)
    if results:
        write_report(results, options.metric, options.mode, folder)
    if failures:
        raise InputError("; ".join(failures))


class _Parser(ArgumentParser):
    """One whose errors are exceptions, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an exception."""
        raise ArgumentError(None, message)


def make_parser() -> ArgumentParser:
    """The parser of the options that ``minrnn fit`` does not have."""
    parser = _Parser(
        "minrnn compare",
        description="Train one recipe with several mixers and seeds, and put the results into one table and plot.",
        epilog="All options of `minrnn fit` are accepted too, with a recipe: --config shakespeare_small.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--mixers", required=True, help="Separated by commas; the mixers of a hybrid by +.")
    parser.add_argument("--seeds", default="0", help="Separated by commas (default: 0).")
    parser.add_argument("--metric", default="val/loss", help="Metric to compare, as logged (default: val/loss).")
    parser.add_argument(
        "--mode", default="min", choices=["min", "max"], help="Whether lower or higher is better (default: min)."
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="For the results, a small file for each run.")
    parser.add_argument("--runs", metavar="FOLDER", help="For logs and checkpoints (default: runs/compare/NAME).")
    parser.add_argument(
        "--devices",
        help="Devices, each for one run at a time: indices of GPUs or cpu, separated by commas "
        "(default: one run after the other, on the device of the recipe).",
    )
    parser.add_argument(
        "--tune",
        nargs="?",
        const=1.0,
        type=float,
        metavar="SHARE",
        help="Choose the learning rates of each mixer first, by trainings of SHARE of the steps (default: 1, all) that "
        "validate on the last tenth of the training text. Budget: of each learning rate 3 values, the recipe's, half "
        f"and twice of it, and up to {EXTENSIONS} more while the best is the highest or lowest. A recipe with "
        "model.muon_lr is tuned with Muon (model.muon_lr, then model.lr) and with AdamW for all; the better one is "
        "compared.",
    )
    parser.add_argument(
        "--equal_time",
        nargs="?",
        const="",
        metavar="MIXER",
        help="Give each mixer the steps that take as long as those of the recipe take MIXER (default: the first of "
        f"--mixers), as timed before: {ROUNDS} runs of {STEPS} steps each, the median of the fastest. On one thread "
        "with OMP_NUM_THREADS=1.",
    )
    return parser


def _parse(args: list[str]) -> tuple[Namespace, list[str]]:
    """Options of the comparison, and the remaining arguments, which are those of ``minrnn fit``."""
    options, args = make_parser().parse_known_args(args)
    check_function("compare", vars(options))
    options.mixers = split_commas(options.mixers)
    if options.equal_time is not None:
        options.equal_time = options.equal_time.strip() or next(iter(options.mixers), "")
    for name in [*options.mixers, *filter(None, [options.equal_time])] or [""]:
        if unknown := [part for part in name.split("+") if part not in MIXERS and "." not in part]:
            accepted = ", ".join(sorted(MIXERS))
            option = "mixers" if name in options.mixers or not name else "equal_time"
            raise InputError(f"{option} must be some of {accepted} or paths of classes, got {unknown[0]!r}")
    if options.tune is not None and not 0 < options.tune <= 1:
        raise InputError(f"tune must be a share of the steps, above 0 and at most 1, got {options.tune}")
    seeds = split_commas(options.seeds)
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"seeds must be whole numbers separated by commas, got {options.seeds!r}")
    options.seeds = list(map(int, seeds))
    gpus = [str(index) for index in range(torch.cuda.device_count())]
    # not split_commas: a device that is given twice runs two trainings at a time
    options.devices = [None] if options.devices is None else [name.strip() for name in options.devices.split(",")]
    for device in options.devices:
        if device not in (None, "cpu", *gpus):
            raise InputError(f"devices must be some of {', '.join(['cpu', *gpus])}, got {device!r}")
    return options, args


def _read_results(
    folder: Path, options: Namespace, args: list[str], plans: Mapping[str, Plan] | None = None
) -> list[Result]:
    """The finished runs in a folder, with the best value of each.

    Args:
        folder: Folder of the results.
        options: The options of the comparison.
        args: Those of ``minrnn fit``.
        plans: The training of each mixer, once that is known.

    Raises:
        InputError: A file is not a result, or one with another metric, other options, settings or time.
    """
    results: list[Result] = []
    chosen = dict.fromkeys(["lr", "muon_lr"], "to choose") if options.tune is not None else {}
    chosen |= {"max_steps": "to choose"} if options.equal_time is not None else {}
    budget = next((plan.record.get("equal_time") for plan in (plans or {}).values()), None)  # the same for all
    for file in sorted(folder.glob("*-[0-9]*.json")):
        try:
            result = json.loads(file.read_bytes())
            before = result["metric"], result["options"]
            mixer, settings = result["mixer"], result.get("settings")
            results.append(_with_best(result, options.mode))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a result of `minrnn compare`: remove it or give another --output"
            ) from error
        if before != (options.metric, args):
            raise InputError(
                f"{file} was made with the metric {before[0]} and the options {' '.join(before[1])!r}, now there are "
                f"{options.metric} and {' '.join(args)!r}: remove it or give another --output"
            )
        now = plans[mixer].record.get("settings") if plans and mixer in plans else chosen
        if list(settings or {}) != list(chosen) or (plans and mixer in plans and settings != now):
            raise InputError(
                f"{file} was made with {_settings(settings)}, now there are {_settings(now)}: remove it or give "
                "another --output"
            )
        had = result.get("equal_time")
        if had and budget and had != budget:
            raise InputError(
                f"{file} was made with the time of {had['mixer']}, {had['seconds']:.1f} s, now it is that of "
                f"{budget['mixer']}, {budget['seconds']:.1f} s: remove it or give another --output"
            )
    return results


def _settings(settings: Mapping[str, Any] | None) -> str:
    """Chosen settings in words."""
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items()) or "those of the recipe"


def _with_best(result: Result, mode: str) -> Result:
    """Add the best value of the learning curve, and the step at which it was reached."""
    steps, best = (min if mode == "min" else max)(result["curve"], key=lambda point: point[1])
    return result | {"best": best, "steps_to_best": steps}
