"""The tables of results: of those with learning rates of their own, and of those from before there were any."""

import json
import runpy

import pytest

from minrnn_lightning.commands.recipes import recipes_folder

RUN = {
    "mixer": "mingru",
    "seed": 0,
    "metric": "val/loss",
    "best": 1.5,
    "last": 1.6,
    "steps_to_best": 300,
    "parameters": 1000,
    "seconds_per_step": 0.25,
    "tokens_per_s": 100.0,
    "peak_mb": 50.0,
    "minutes": 2.0,
    "about": {"minrnn-lightning": "a1b2c3d"},
}
TUNED = RUN | {"settings": {"lr": 0.008, "muon_lr": 0.04, "max_steps": 250}, "tuning": {"trials": 9, "steps": 3600}}


@pytest.fixture
def table(tmp_path):
    """Make the table of runs, by the name of their file."""
    tables = runpy.run_path(str(recipes_folder() / "tables.py"))
    tables["runs"].__globals__["RESULTS"] = tmp_path

    def make(**runs):
        (tmp_path / "one").mkdir()
        for name, run in runs.items():
            (tmp_path / "one" / f"{name.replace('_', '-')}.json").write_text(json.dumps(run))
        return tables["table"]("one").splitlines()

    return make


def test_results_of_before(table):
    head, _, row = table(mingru_0=RUN, compare={"rows": []})
    assert "learning rate" not in head
    assert row == "| mingru | 1.5000 | 1.6000 | 300 | 1,000 | 0.250 | 100 | 50 | 2.0 | 1 | a1b2c3d |"


def test_environment_steps_to_a_threshold(tmp_path):
    tables = runpy.run_path(str(recipes_folder() / "tables.py"))
    tables["runs"].__globals__["RESULTS"] = tmp_path
    (name, threshold), *_ = tables["THRESHOLDS"].items()
    (tmp_path / name).mkdir(parents=True)
    speeds = {"env_steps": 300.0, "collect_steps_per_s": 9000.0, "update_steps_per_s": 2000.0}
    for seed, (second, third) in enumerate([(threshold, threshold + 1), (0.0, threshold), (0.0, 0.0)]):
        curves = {"curve": [[10, 0.0], [20, second], [30, third]], "env_steps_curve": [[10, 100], [20, 200], [30, 300]]}
        run = RUN | speeds | curves | {"seed": seed, "last": third, "best": third}
        (tmp_path / name / f"mingru-{seed}.json").write_text(json.dumps(run))
    head, _, row = tables["table"](name).splitlines()
    assert head.split(" | ")[3] == f"environment steps to {threshold:g}"
    assert row.split(" | ")[3] == "250 (2 of 3 seeds)"


def test_returns_at_other_lengths(tmp_path):
    tables = runpy.run_path(str(recipes_folder() / "tables.py"))
    tables["runs"].__globals__["RESULTS"] = tmp_path
    (tmp_path / "rl/tmaze10_longer").mkdir(parents=True)
    for name, value in {"gru-0-100": 1.0, "gru-0-20": 4.0, "gru-1-100": 2.5, "gru-1-20": 3.0}.items():
        record = json.dumps({"targets": [{"return": value}]})
        (tmp_path / "rl/tmaze10_longer" / f"{name}.json").write_text(record)
    head, _, row = tables["table"]("rl/tmaze10_longer").splitlines()
    assert head == "| mixer | length 20 | length 100 |"
    assert row == "| gru | 4.00, 3.00 | 1.00, 2.50 |"


def test_times_of_updates(tmp_path):
    tables = runpy.run_path(str(recipes_folder() / "tables.py"))
    tables["runs"].__globals__["RESULTS"] = tmp_path
    for length, times in {64: [0.5, 0.25, 1.0], 256: [2.0, 1.0, 4.0]}.items():
        (tmp_path / f"rl/update{length}").mkdir(parents=True)
        runs = zip(["mingru", "mingru", "gru"], times, strict=True)
        record = {"times": [{"mixer": mixer, "seconds_per_step": seconds} for mixer, seconds in runs]}
        (tmp_path / f"rl/update{length}/timing.json").write_text(json.dumps(record))
    head, _, first, second = tables["table"](tables["UPDATES"]).splitlines()
    assert head == "| mixer | length 64 | length 256 |"
    assert first == "| mingru | 250.0 ms (4.0) | 1000.0 ms (4.0) |"
    assert second == "| gru | 1000.0 ms (1.0) | 4000.0 ms (1.0) |"


def test_chosen_settings(table):
    head, _, first, second = table(
        gru_0=RUN | {"mixer": "gru", "best": 1.7}, mingru_0=TUNED, tuning={"trials": []}, timing={"times": []}
    )
    assert head.split(" | ")[3:6] == ["learning rate", "tuning", "steps"]
    assert first.split(" | ")[3:6] == ["Muon 0.04, AdamW 0.008", "9 trials, 3,600 steps", "250"]
    assert second.split(" | ")[3:6] == ["", "", ""]
