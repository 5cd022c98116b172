"""``minrnn compare``: real runs in processes of their own, put together, resumed, never run twice."""

import csv
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
from forked import finish, start
from online import agent, rollouts, trainer
from this_process import use_this_process

from minrnn_lightning.commands import compare_run

SMALL = [
    *("--config", "shakespeare_small", "--model.match_parameters=100k", "--model.depth=2", "--data.batch_size=2"),
    *("--data.length=16", "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2"),
    *("--trainer.accelerator=cpu", "--trainer.precision=32-true"),
]


@pytest.fixture
def where(tmp_path):
    return [f"--output={tmp_path / 'results'}", f"--runs={tmp_path / 'runs'}"]


def test_table_of_mixers_and_seeds(minrnn, tmp_path, where, monkeypatch):
    use_this_process(monkeypatch)
    words = ["compare", *SMALL, "--mixers=mingru,mingru+attention", *where]
    code, out, errors = minrnn(*words, "--seeds=0")
    assert code == 0, errors
    results = tmp_path / "results"
    one = results / "mingru-0.json"
    before, cell = one.read_bytes(), json.loads(one.read_bytes())
    assert [step for step, _ in cell["curve"]] == [2, 4]
    assert cell["best"] == min(value for _, value in cell["curve"])
    assert abs(cell["parameters"] - 100_000) < 5000
    assert 0 < cell["seconds_per_step"] < 60
    assert cell["tokens_per_s"] > 0
    assert cell["peak_mb"] > 100
    hybrid = json.loads((results / "mingru+attention-0.json").read_bytes())
    assert hybrid["curve"] != cell["curve"]
    assert {file.name for file in results.iterdir()} == {
        *("mingru-0.json", "mingru+attention-0.json", "compare.json", "compare.csv", "compare.md", "compare.png")
    }

    code, out, errors = minrnn(*words, "--seeds=0,1", "--devices=cpu,cpu")  # the first ones are not run again
    assert code == 0, errors
    assert "mingru, seed 0: finished before" in out
    assert one.read_bytes() == before
    with (results / "compare.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["mixer"], row["seed"]) for row in rows] == [
        *(("mingru+attention", "0"), ("mingru+attention", "1"), ("mingru", "0"), ("mingru", "1"))
    ]
    table = (results / "compare.md").read_text()
    assert table.count("\n") == 4
    assert " ± " in table

    for other in ("--model.lr=1", "--metric=val/perplexity"):
        code, _, errors = minrnn(*words, "--seeds=0", other)
        assert code == 1
        assert "was made with the metric val/loss and the options" in errors
    one.write_text("{}")
    code, _, errors = minrnn(*words, "--seeds=0")
    assert code == 1
    assert "mingru-0.json is not a result of `minrnn compare`: remove it or give another --output" in errors
    for file in results.iterdir():
        file.unlink()
    code, _, errors = minrnn(*words, "--seeds=0", "--model.lr=1")  # would go on from a checkpoint of the old options
    assert code == 1
    assert "mingru-0 holds a run with other options: remove it or give other --runs" in errors


@pytest.fixture
def ended(monkeypatch):
    """Runs whose processes end at once; they write the given points of the learning curve, by folder."""
    points = {}

    class Process:
        returncode = 0

        def __init__(self, command, **options):
            for folder, rows in points.items():
                folder.mkdir(parents=True)
                lines = [f"{step},{step},0.1,{value}" for step, value in rows]
                (folder / "metrics.csv").write_text("\n".join(["step,steps,seconds_per_step,val/loss", *lines]))

        def poll(self):
            return self.returncode

    monkeypatch.setattr(compare_run, "subprocess", SimpleNamespace(Popen=Process))
    return points


def test_a_run_that_starts_anew_has_a_curve_of_its_own(tmp_path, ended):
    """Its folder may hold a finished run with other options, the checkpoints of which were removed."""
    folder = tmp_path / "trial"
    ended[folder / "version_0"] = [(100, 3.0), (200, 1.0)]
    first = compare_run.Run("mingru", 0, ["--data.batch_size=64"], tmp_path, "cpu", 1, name="trial")
    assert first.training("val/loss")["curve"] == [(100, 3.0), (200, 1.0)]
    ended.clear()
    ended[folder / "version_1"] = [(100, 2.0)]
    second = compare_run.Run("mingru", 0, ["--data.batch_size=32"], tmp_path, "cpu", 1, name="trial")
    assert second.training("val/loss")["curve"] == [(100, 2.0)]
    ended.clear()
    (folder / "version_1/checkpoints").mkdir()
    (folder / "version_1/checkpoints/last.ckpt").touch()
    ended[folder / "version_2"] = [(150, 1.5)]
    third = compare_run.Run("mingru", 0, ["--data.batch_size=32"], tmp_path, "cpu", 1, name="trial")
    assert third.training("val/loss")["curve"] == [(100, 2.0), (150, 1.5)]  # goes on where the second one ended
    assert third.training("val/loss")["steps"] == 150


def test_parameters_are_counted_without_buffers(tmp_path, ended):
    """Such as those of the statistics of a PPOTask."""
    data = rollouts()
    task, fit = agent(data), trainer(tmp_path)
    fit.fit(task, data)
    fit.save_checkpoint(tmp_path / "mingru-0/version_0/checkpoints/last.ckpt")
    ended[tmp_path / "mingru-0/version_1"] = [(6, 1.0)]
    run = compare_run.Run("mingru", 0, [], tmp_path, "cpu", 1)
    found = run.measurements("val/loss")["parameters"]
    assert found == sum(parameter.numel() for parameter in task.parameters())
    assert found < sum(tensor.numel() for tensor in task.state_dict().values())


@pytest.mark.slow
def test_environment_steps_of_online_training(minrnn, tmp_path, where, monkeypatch):
    """Two rollouts of 4 environments and 8 steps, after one for the statistics; each is used for two steps."""
    use_this_process(monkeypatch)
    sizes = [
        "--data.num_envs=4",
        "--data.length=8",
        "--data.epochs=1",
        "--data.minibatches=2",
        "--data.eval_episodes=1",
    ]
    sizes += ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.accelerator=cpu"]
    words = ["--config=rl/ppo_memory", "--mixers=mingru", "--seeds=0", "--metric=val/return", "--mode=max"]
    code, _, errors = minrnn("compare", *words, *sizes, *where)
    assert code == 0, errors
    result = json.loads((tmp_path / "results/mingru-0.json").read_bytes())
    assert f"{result['parameters']:,} parameters" in (tmp_path / "runs/mingru-0/log").read_text()
    assert result["env_steps"] == 3 * 4 * 8
    assert result["env_steps_curve"][-1] == [result["steps"], result["env_steps"]]
    assert result["collect_steps_per_s"] > 0
    assert result["update_steps_per_s"] > 0
    head = (tmp_path / "results/compare.md").read_text().splitlines()[0]
    assert "| environment steps | environment steps/s collecting | environment steps/s updating |" in head


def test_an_interrupted_run_goes_on(minrnn, tmp_path, where, monkeypatch):
    use_this_process(monkeypatch)
    run = ["--seed_everything=0", "--model.mixer=mingru", f"--trainer.default_root_dir={tmp_path}/runs/mingru-0"]
    code, _, errors = minrnn("fit", *SMALL, *run, "--trainer.callbacks+=TrainingCost", "--trainer.max_steps=2")
    assert code == 0, errors
    code, out, errors = minrnn("compare", *SMALL, "--mixers=mingru", *where)
    assert code == 0, errors
    assert "mingru, seed 0: resumes" in out
    cell = json.loads((tmp_path / "results/mingru-0.json").read_bytes())
    assert [step for step, _ in cell["curve"]] == [2, 4]
    assert cell["minutes"] is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_with_the_comparison_and_leaves_a_checkpoint(tmp_path, where, number):
    words = ["compare", *SMALL, "--mixers=mingru", "--trainer.max_steps=100000", *where]
    run = tmp_path / "runs/mingru-0"
    with start(["minrnn", *words], tmp_path / "out") as comparison:
        while not list(run.glob("version_0/checkpoints/last.ckpt")):
            assert comparison.is_alive(), (tmp_path / "out").read_text()
            time.sleep(0.1)
        os.kill(comparison.pid, number)
        assert finish(comparison) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 300
    while "Saved" not in (run / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mixers=mingru,mamba9"], "mixers must be some of attention, "),
        (["--mixers="], "mixers must be some of attention, "),
        (["--mixers=mingru", "--seeds="], "seeds must be given, not empty, got ''"),
        (["--mixers=mingru", "--seeds=0,x"], "seeds must be whole numbers separated by commas, got '0,x'"),
        (["--mixers=mingru", "--devices=cpu,99"], "devices must be some of cpu"),
        (["--seeds=0"], "the following arguments are required: --mixers"),
    ],
)
def test_refuses(minrnn, where, words, sentence):
    code, _, errors = minrnn("compare", *SMALL, *words, *where)
    assert code in (1, 2)
    assert errors.startswith("minrnn: ")
    assert errors.count("\n") == 1
    assert sentence in errors


@pytest.mark.slow
def test_a_failed_run_says_why(minrnn, where, monkeypatch):
    use_this_process(monkeypatch)
    code, _, errors = minrnn("compare", *SMALL, "--mixers=mingru", "--model.depth=-1", *where)
    assert code == 1
    assert "the run of mingru with seed 0 failed" in errors
    assert "depth must be above 0, got -1" in errors
    args = [*SMALL, "--mixers=mingru", "--metric=val/los", "--trainer.max_steps=2"]  # not held to the former options
    code, _, errors = minrnn("compare", *args, *where)
    assert code == 1
    assert "left no checkpoint or no 'val/los'; it logged epoch, peak_mb, seconds_per_step, step, val/" in errors


def test_tuned_at_equal_time(minrnn, tmp_path, where, monkeypatch):
    use_this_process(monkeypatch)
    monkeypatch.setattr("minrnn_lightning.commands.compare_time.ROUNDS", 1)
    monkeypatch.setattr("minrnn_lightning.commands.compare_tune.EXTENSIONS", 0)
    args = [*SMALL, "--mixers=mingru", "--tune=0.5", "--equal_time", "--devices=cpu,cpu", "--model.muon_lr=null"]
    code, out, errors = minrnn("compare", *args, *where)
    assert code == 0, errors
    assert "mingru-AdamW-time-0: 0." in out
    result = json.loads((tmp_path / "results/mingru-0.json").read_bytes())
    tuning = json.loads((tmp_path / "results/tuning.json").read_bytes())
    assert {trial["steps"] for trial in tuning["trials"]} == {2}
    lr = json.loads((tmp_path / "runs/mingru-0/options.json").read_bytes())
    assert f"--model.lr={result['settings']['lr']}" in lr
    assert result["tuning"] == {"trials": 3, "steps": 6}
    assert result["steps"] == result["settings"]["max_steps"] == 4
    best = min(tuning["trials"], key=lambda trial: trial["best"])
    assert result["settings"]["lr"] == best["lr"]
    assert list((tmp_path / "runs/trials").glob("*/version_*/checkpoints/*.ckpt")) == []
