"""``minrnn compare --tune`` and ``--equal_time``: which trainings start, what is chosen, and that none is repeated.

The trainings are replaced by functions of their settings; `test_compare.py` has real ones.
"""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from this_process import use_this_process

from minrnn_lightning.commands import compare as command
from minrnn_lightning.commands import compare_plan, compare_report, compare_run, compare_time, compare_tune
from minrnn_lightning.commands.compare_recipe import Rates, Recipe, read_recipe
from minrnn_lightning.errors import InputError

BEST = {"mingru": (0.08, 0.01), "gru": (None, 0.001), "minlstm": (0.02, 0.01)}  # muon_lr and lr of the lowest loss
SECONDS = {("mingru", "Muon"): 0.2, ("mingru", "AdamW"): 0.1, ("gru", "Muon"): 0.5, ("gru", "AdamW"): 0.4}


class FakeRun:
    """A training whose loss is the distance from the best learning rates, and which ends at once.

    With learning rates five times as high as the best ones it fails, as one that has diverged.
    """

    started: ClassVar[list["FakeRun"]] = []
    returncode = 0
    limit = math.inf  # of trainings, after which Ctrl-C is pressed

    def __init__(self, mixer, seed, args, runs, device, concurrent, settings=(), name=""):
        if len(self.started) >= self.limit:
            raise KeyboardInterrupt
        self.mixer, self.seed, self.args, self.device, self.name = mixer, seed, args, device, name or f"{mixer}-{seed}"
        self.options = dict(option.removeprefix("--").split("=") for option in settings)
        self.process = SimpleNamespace(poll=lambda: 0, returncode=self.returncode)
        self.generation_device = torch.device("cpu")
        self.steps = int(self.options.get("trainer.max_steps", 400))
        self.started.append(self)

    @property
    def rates(self):
        muon_lr = json.loads(self.options.get("model.muon_lr", "0.02"))
        return muon_lr, float(self.options.get("model.lr", 0.004))

    def training(self, metric):
        muon_lr, lr = self.rates
        best_muon, best_lr = BEST.get(self.mixer, (0.02, 0.01))
        if lr > 5 * best_lr:
            raise InputError("it has diverged")
        loss = abs(math.log(lr / best_lr)) + (1 if (muon_lr is None) != (best_muon is None) else 0)
        if muon_lr and best_muon:
            loss += abs(math.log(muon_lr / best_muon))
        seconds = SECONDS.get((self.mixer, "AdamW" if muon_lr is None else "Muon"), 0.1)
        return {
            "mixer": self.mixer,
            "seed": self.seed,
            "metric": metric,
            "options": self.args,
            "last": loss,
            "steps": self.steps,
            "seconds_per_step": seconds,
            "minutes": 1.5,
            "peak_mb": 1.0,
            "curve": [[self.steps // 2, loss + 1], [self.steps, loss]],
        }

    def measurements(self, metric):
        return self.training(metric) | {"parameters": 10, "dim": 2, "tokens_per_s": 5.0}

    def remove_checkpoints(self):
        pass

    def stop(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    """The started runs; no training is a process, and the recipe has 400 steps, lr 0.004 and muon_lr 0.02."""
    FakeRun.started, FakeRun.limit = [], math.inf
    for module in (command, compare_time, compare_tune):
        monkeypatch.setattr(module, "Run", FakeRun)
        monkeypatch.setattr(module, "provenance", lambda device: {"minrnn-lightning": "a1b2c3d"})
    monkeypatch.setattr(compare_run, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(compare_report, "write_plot", lambda *arguments: None)
    recipe = Recipe(Rates(0.004, 0.02), 400, 100, 1, "TextDataModule", can_tune=True)
    monkeypatch.setattr(compare_plan, "read_recipe", lambda args, mixer: recipe)
    return FakeRun


@pytest.fixture
def compare(minrnn, tmp_path):
    """Run the comparison; its exit code and errors."""

    def run(*words):
        folders = [f"--output={tmp_path}/results", f"--runs={tmp_path}/runs"]
        code, _, errors = minrnn("compare", "--config", "shakespeare_small", *folders, *words)
        return code, errors

    return run


def results(folder):
    return {file.stem: json.loads(file.read_bytes()) for file in (folder / "results").glob("*-[0-9].json")}


def searched(start, loss):
    """The values that a line search tries for a loss, and the one that it returns."""
    line, values, value = compare_tune.line_search(start, lambda value: Rates(value, None)), [], None
    try:
        value = next(line).lr
        while True:
            values.append(value)
            value = line.send(loss(value)).lr
    except StopIteration as end:
        return values, end.value


@pytest.mark.parametrize(
    ("loss", "values", "best"),
    [
        (lambda lr: abs(lr - 1), [1, 0.5, 2], 1),
        (lambda lr: abs(lr - 4), [1, 0.5, 2, 4, 8], 4),
        (lambda lr: -lr, [1, 0.5, 2, 4, 8], 8),
        (lambda lr: lr, [1, 0.5, 2, 0.25, 0.125], 0.125),
        (lambda lr: abs(lr - 2) if lr < 3 else math.inf, [1, 0.5, 2, 4], 2),
        (lambda lr: math.inf if lr > 0.3 else lr, [1, 0.5, 2], 1),
        (lambda lr: math.inf if lr > 0.5 else lr, [1, 0.5, 2, 0.25, 0.125], 0.125),
        (lambda lr: 0, [1, 0.5, 2], 1),
    ],
)
def test_line_search(loss, values, best):
    assert searched(1.0, loss) == (values, best)


@pytest.mark.parametrize("best", [2.0**power for power in range(-3, 4)])
def test_line_search_finds_the_minimum_within_reach(best):
    reached, found = searched(1.0, lambda lr: (math.log2(lr) - math.log2(best)) ** 2)
    assert found == best
    assert len(reached) <= 3 + compare_tune.EXTENSIONS


def test_every_mixer_is_compared_at_its_best_learning_rates(fake, compare, tmp_path):
    assert compare("--mixers=mingru,gru", "--seeds=0,1", "--tune") == (0, "")
    trials = [run for run in fake.started if run.seed == compare_tune.SEED]
    compared = [run for run in fake.started if run.seed in (0, 1)]
    assert fake.started == trials + compared
    assert all(run.options["data.tuning"] == "true" for run in trials)
    assert not any("data.tuning" in run.options or "trainer.max_steps" in run.options for run in compared)
    chosen = {run.mixer: run.rates for run in compared}
    assert chosen == {"mingru": (0.08, 0.008), "gru": (None, 0.001)}

    tuning = json.loads((tmp_path / "results/tuning.json").read_bytes())
    spent = {mixer: sum(run.mixer == mixer for run in trials) for mixer in chosen}
    for mixer, (muon_lr, lr) in chosen.items():
        cost = {"trials": spent[mixer], "steps": 400 * spent[mixer]}
        assert tuning["chosen"][mixer] == {"lr": lr, "muon_lr": muon_lr} | cost
        result = results(tmp_path)[f"{mixer}-1"]
        assert result["settings"] == {"lr": lr, "muon_lr": muon_lr}
        assert result["tuning"] == cost
        losses = [trial["best"] for trial in tuning["trials"] if trial["mixer"] == mixer and not trial["error"]]
        assert result["best"] == min(losses)
    assert len(tuning["trials"]) == len(trials) == len({run.name for run in trials})
    for trial, run in zip(tuning["trials"], trials, strict=True):
        assert (trial["mixer"], trial["muon_lr"], trial["lr"]) == (run.mixer, *run.rates)
        diverged = run.rates[1] > 5 * BEST[run.mixer][1]
        assert trial["error"] == ("it has diverged" if diverged else None)
        assert (trial["best"] is None) == (trial["seconds"] is None) == diverged
    assert any(trial["error"] for trial in tuning["trials"]), "or the test shows less than it should"
    table = (tmp_path / "results/compare.md").read_text()
    for rates, mixer in (("Muon 0.08, AdamW 0.008", "mingru"), ("AdamW 0.001", "gru")):
        assert f"| {rates} | {spent[mixer]} trials, {400 * spent[mixer]:,} steps | 2 |" in table
    assert (tmp_path / "results/compare.csv").read_text().startswith("mixer,seed,metric,")


def test_no_trial_is_run_twice(fake, compare, tmp_path):
    names, code, fake.limit = [], 130, 5
    while code == 130:
        code, _ = compare("--mixers=mingru,gru", "--tune")
        names += [run.name for run in fake.started]
        fake.started.clear()
    assert code == 0
    finished = (tmp_path / "results/tuning.json").read_bytes()
    assert len(names) == len(set(names)) == len(json.loads(finished)["trials"]) + 2
    assert compare("--mixers=mingru,gru", "--tune")[0] == 0
    assert fake.started == []
    assert json.loads((tmp_path / "results/tuning.json").read_bytes()) == json.loads(finished)
    fake.limit = math.inf
    assert compare("--mixers=mingru,gru,minlstm", "--tune")[0] == 0
    assert {run.mixer for run in fake.started} == {"minlstm"}


def test_results_of_before_are_refused_before_anything_runs(fake, compare):
    assert compare("--mixers=mingru")[0] == 0
    fake.started.clear()
    for words, now in ((["--tune"], "lr to choose, muon_lr to choose"), (["--equal_time"], "max_steps to choose")):
        code, errors = compare("--mixers=mingru", *words)
        assert code == 1
        assert f"was made with those of the recipe, now there are {now}: remove it or give another" in errors
        assert fake.started == []


@pytest.mark.parametrize("returncode", [-9, 143])
def test_a_stopped_trial_counts_for_nothing(fake, compare, tmp_path, monkeypatch, returncode):
    with monkeypatch.context() as patch:
        patch.setattr(fake, "returncode", returncode)
        code, errors = compare("--mixers=mingru", "--tune")
    assert (code, "AdamW0.004-400 was stopped from outside: give the same command again" in errors) == (1, True)
    assert not (tmp_path / "results/tuning.json").exists()
    assert compare("--mixers=mingru", "--tune") == (0, "")


def test_trials_of_a_share_of_the_steps(fake, compare, tmp_path):
    assert compare("--mixers=mingru", "--tune=0.25")[0] == 0
    *trials, compared = fake.started
    for run in trials:
        assert (run.options["trainer.max_steps"], run.options["trainer.val_check_interval"]) == ("100", "25")
    assert "trainer.max_steps" not in compared.options
    assert results(tmp_path)["mingru-0"]["tuning"] == {"trials": len(trials), "steps": 100 * len(trials)}


def test_highest_is_best(fake, compare, tmp_path):
    assert compare("--mixers=gru", "--tune", "--mode=max")[0] == 0
    trials = json.loads((tmp_path / "results/tuning.json").read_bytes())["trials"]
    highest = max((trial for trial in trials if not trial["error"]), key=lambda trial: trial["best"])
    assert fake.started[-1].rates == (highest["muon_lr"], highest["lr"])


def test_a_mixer_of_which_every_trial_fails(fake, compare, tmp_path, monkeypatch):
    monkeypatch.setitem(BEST, "minlstm", (0.02, 1e-5))
    code, errors = compare("--mixers=minlstm,mingru", "--tune")
    assert code == 1
    assert "every trial of minlstm failed, the first one with: it has diverged" in errors
    assert list(results(tmp_path)) == ["mingru-0"]


def test_equal_time(fake, compare, tmp_path):
    assert compare("--mixers=mingru,gru", "--equal_time") == (0, "")
    *timed, mingru, gru = fake.started
    assert [run.mixer for run in timed] == ["mingru", "gru"] * compare_time.ROUNDS
    assert all(run.options["data.tuning"] == "true" and run.steps == compare_time.STEPS for run in timed)
    assert "trainer.max_steps" not in mingru.options
    assert (gru.options["trainer.max_steps"], gru.options["trainer.val_check_interval"]) == ("160", "40")
    assert results(tmp_path)["gru-0"]["settings"] == {"max_steps": 160}
    assert compare("--mixers=mingru,gru,minlstm", "--equal_time=mingru", "--seeds=0,1")[0] == 0
    assert [run.mixer for run in fake.started[len(timed) + 2 :] if "time" in run.name] == ["minlstm"] * 3
    assert {run.steps for run in fake.started if run.mixer == "minlstm"} == {20, 800}
    code, errors = compare("--mixers=mingru,gru,minlstm", "--equal_time=gru")
    assert code == 1
    assert "timing.json is of a comparison with the time of mingru, now it is that of gru: give" in errors
    code, errors = compare("--mixers=gru")
    assert code == 1
    assert "was made with max_steps 160, now there are those of the recipe: remove it or give another" in errors


def test_mixers_that_are_added_have_the_time_of_the_others(fake, compare, tmp_path, monkeypatch):
    assert compare("--mixers=mingru,gru", "--equal_time")[0] == 0
    file = tmp_path / "results/timing.json"
    timing = json.loads(file.read_bytes())
    assert timing["reference"] == "mingru"
    assert results(tmp_path)["gru-0"]["equal_time"] == {"mixer": "mingru", "seconds": 400 * 0.2}
    fake.started.clear()
    file.write_text(json.dumps({name: value for name, value in timing.items() if name != "reference"}))  # of before
    for words in (["--mixers=minlstm", "--equal_time"], ["--mixers=minlstm", "--equal_time=gru"]):
        code, errors = compare(*words)
        assert (code, "is of a comparison with the time of mingru, now it is that of" in errors) == (1, True)
    assert fake.started == []
    assert compare("--mixers=minlstm", "--equal_time=mingru")[0] == 0
    assert results(tmp_path)["minlstm-0"]["settings"] == {"max_steps": 800}

    file.unlink()
    monkeypatch.setitem(SECONDS, ("mingru", "Muon"), 0.3)
    code, errors = compare("--mixers=lstm", "--equal_time=mingru")
    message = "gru-0.json was made with the time of mingru, 80.0 s, now it is that of mingru, 120.0 s: remove it or"
    assert (code, message in errors) == (1, True)
    assert not (tmp_path / "results/lstm-0.json").exists()


def test_equal_time_counts_the_time_of_the_chosen_optimizer(fake, compare, tmp_path):
    """0.2 s a step for minGRU with Muon, 0.4 for GRU with AdamW, and 0.5 for GRU with Muon."""
    assert compare("--mixers=mingru,gru", "--equal_time", "--tune")[0] == 0
    found = results(tmp_path)
    assert found["mingru-0"]["settings"] == {"lr": 0.008, "muon_lr": 0.08, "max_steps": 400}
    assert found["gru-0"]["settings"] == {"lr": 0.001, "muon_lr": None, "max_steps": 200}
    steps = {(run.mixer, run.rates[0] is None, run.steps) for run in fake.started if run.seed == compare_tune.SEED}
    assert steps == {("mingru", False, 400), ("mingru", True, 800), ("gru", False, 160), ("gru", True, 200)}


def test_equal_time_counts_the_collection_of_rollouts(fake, compare, tmp_path, monkeypatch):
    """0.2 + 0.3 s a step for minGRU, and 0.5 + 2 s for GRU."""
    training, collecting = fake.training, {"mingru": 0.3, "gru": 2.0}
    monkeypatch.setattr(
        fake,
        "training",
        lambda run, metric: training(run, metric) | {"collect_seconds_per_step": collecting[run.mixer]},
    )
    assert compare("--mixers=mingru,gru", "--equal_time")[0] == 0
    assert results(tmp_path)["gru-0"]["settings"] == {"max_steps": 80}


RECIPE = Recipe(Rates(0.004, None), 400, 100, 1, "TextDataModule", can_tune=True)


@pytest.mark.parametrize(
    ("changed", "words", "sentence"),
    [
        (
            {"can_tune": False, "data": "MQARDataModule"},
            ["--tune", "--equal_time"],
            "as TextDataModule, got MQARDataModule: leave",
        ),
        ({"rates": None}, ["--tune"], "--tune chooses model.lr, which the option optimizer replaces"),
        ({"max_steps": -1}, ["--tune=0.5"], "need a recipe that counts steps: set trainer.max_steps"),
        ({"val_check_interval": None}, ["--equal_time"], "need a recipe that counts steps: set trainer.max_steps"),
        ({}, ["--tune=0"], "tune must be a share of the steps, above 0 and at most 1, got 0.0"),
        ({}, ["--tune=1.5"], "tune must be a share of the steps, above 0 and at most 1, got 1.5"),
        ({}, ["--tune=much"], "--tune: invalid float value: 'much'"),
        ({}, ["--equal_time=mamba9"], "or paths of classes, got 'mamba9'"),
    ],
)
def test_refuses(fake, compare, monkeypatch, changed, words, sentence):
    recipe = dataclasses.replace(RECIPE, **changed)
    monkeypatch.setattr(compare_plan, "read_recipe", lambda args, mixer: recipe)
    code, errors = compare("--mixers=mingru", *words)
    assert code in (1, 2)
    assert errors.startswith("minrnn: ")
    assert errors.count("\n") == 1
    assert sentence in errors
    assert fake.started == []


def test_refuses_files_of_another_comparison(fake, compare, tmp_path):
    assert compare("--mixers=mingru", "--tune", "--equal_time")[0] == 0
    (tmp_path / "results/mingru-0.json").unlink()
    code, errors = compare("--mixers=mingru", "--tune", "--metric=val/perplexity")
    assert (code, "tuning.json is of a comparison with other options: remove it or give" in errors) == (1, True)
    code, errors = compare("--mixers=mingru", "--equal_time", "--model.depth=3")
    assert (code, "timing.json is of a comparison with other options: remove it or give" in errors) == (1, True)


@pytest.mark.parametrize(
    ("max_steps", "interval", "batches_per_step", "asked", "steps", "options"),
    [
        (400, 100, 1, 400, 400, []),
        (400, 100, 1, 137, 136, ["--trainer.max_steps=136", "--trainer.val_check_interval=34"]),
        (400, 100, 1, 0.4, 4, ["--trainer.max_steps=4", "--trainer.val_check_interval=1"]),
        (1000, 75, 1, 500, 494, ["--trainer.max_steps=494", "--trainer.val_check_interval=38"]),
        (100, 50, 4, 40, 40, ["--trainer.max_steps=40", "--trainer.val_check_interval=20"]),
        (50, 100, 1, 30, 30, ["--trainer.max_steps=30", "--trainer.val_check_interval=30"]),
    ],
)
def test_the_last_step_is_validated(max_steps, interval, batches_per_step, asked, steps, options):
    recipe = Recipe(None, max_steps, interval, batches_per_step, "", can_tune=True)
    assert recipe.round_steps(asked) == steps
    assert recipe.steps_options(steps) == options
    if options:
        last = int(options[1].partition("=")[2])
        assert steps * batches_per_step % last == 0


@pytest.mark.slow
def test_reads_recipe_and_options(monkeypatch):
    use_this_process(monkeypatch)
    args = ["--config", "shakespeare_small", "--model.lr=1e-2", "--model.muon_lr=0.03", "--trainer.max_steps=70"]
    recipe = read_recipe(args, "mingru+attention")
    assert recipe == Recipe(Rates(0.01, 0.03), 70, 100, 1, "ShakespeareDataModule", can_tune=True)
    assert recipe.starts() == {"AdamW": Rates(0.01, None), "Muon": Rates(0.01, 0.03)}
    with pytest.raises(InputError, match=r"model\.lr must be a number, got much"):
        read_recipe([*args, "--model.lr=much"], "mingru")
