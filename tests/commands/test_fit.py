"""The command: recipes, run folders, precision, resuming, fine-tuning and Ctrl-C."""

import csv
import os
import signal
import subprocess
import time

import pytest
import torch
import yaml
from command_line import command, equal, read
from forked import finish, start

from minrnn_lightning import __version__
from minrnn_lightning.commands import fit as lightning_cli
from minrnn_lightning.commands.fit import native_precision
from minrnn_lightning.commands.recipes import find_recipes, recipes_folder
from minrnn_lightning.errors import InputError

# Help and recipes


def test_version_and_help(minrnn):
    assert minrnn("--version") == (0, f"minrnn {__version__}\n", "")
    code, out, errors = minrnn("--help")
    assert (code, errors) == (0, "")
    assert all(
        f"\n  {word} " in out for word in ("fit", "validate", "test", "predict", "generate", "collect", "recipes")
    )
    assert minrnn() == (code, out, errors)
    run = subprocess.run(command("--version"), capture_output=True, text=True, check=True)
    assert run.stdout == f"minrnn {__version__}\n"


def test_help_of_fit_is_short(minrnn):
    code, out, _ = minrnn("fit", "--help")
    assert code == 0
    assert out.count("\n") < 100  # Lightning alone: about 480
    assert "--trainer.NAME" in out
    assert "--model" in out
    assert "--print_config[=flags]" in out
    code, out, _ = minrnn("fit", "--model.help", "LanguageTask")
    assert code == 0
    assert "--model.mixer" in out


def test_lists_the_recipes(minrnn):
    code, out, _ = minrnn("recipes")
    assert code == 0
    groups: list[list[str]] = []
    for line in out.splitlines():
        if line.startswith("  "):
            groups[-1].append(line.split()[0])
        else:
            assert "minrnn fit --config " in line
            groups.append([])
        assert len(line.split()) > 3
    recipes, hardware, small, paper = groups
    assert recipes[0] == "shakespeare"
    assert set(hardware) == {f"hardware/{name}" for name in ("ddp", "fsdp", "fsdp2", "bf16", "sequence_parallel")}
    assert "small/mqar" in small
    assert not any(name.startswith(("hardware/", "small/", "paper/")) for name in recipes)
    assert all(name.startswith("small/") for name in small)
    assert "paper/shakespeare" in paper
    assert all(name.startswith("paper/") for name in paper)


def test_finds_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(recipes_folder() / "shakespeare.yaml")
    ddp = str(recipes_folder() / "hardware/ddp.yaml")
    assert find_recipes(["fit", "--config", "shakespeare", "--config=hardware/ddp"]) == [
        *("fit", "--config", packaged, f"--config={ddp}")
    ]
    assert find_recipes(["fit", "-c", "shakespeare.yaml"]) == ["fit", "-c", packaged]
    own = tmp_path / "shakespeare.yaml"
    own.write_text("seed_everything: 1\n")
    assert find_recipes(["-c", "shakespeare.yaml", "--trainer.max_steps", "3"]) == [
        *("-c", "shakespeare.yaml", "--trainer.max_steps", "3")
    ]
    with pytest.raises(InputError, match="nope is neither a file nor a packaged recipe"):
        find_recipes(["fit", "--config", "nope"])


# Runs


def test_run_folder(minrnn, small, tmp_path, caplog):
    best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
    best += ["--trainer.callbacks.filename={step}", "--trainer.callbacks+=LearningRateMonitor"]
    samples = [
        "--trainer.callbacks+=TextSamples",
        "--trainer.callbacks.prompt=the",
        "--trainer.callbacks.max_new_tokens=7",
    ]
    code, out, _ = minrnn("fit", *small, *best, *samples, "--trainer.max_steps=10", "--trainer.val_check_interval=4")
    assert code == 0
    assert "A sample after 10 steps:\nthe" in out
    assert "Precision: " in caplog.text
    assert "💡" not in caplog.text
    run = tmp_path / "runs/version_0"
    files = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    events = {file for file in files if file.startswith("events.out.tfevents")}
    checkpoints = {file for file in files if file.startswith("checkpoints/")}
    assert events
    assert files - events - checkpoints == {"config.yaml", "hparams.yaml", "metrics.csv"}
    assert checkpoints in ({"checkpoints/last.ckpt", f"checkpoints/step={step}.ckpt"} for step in (4, 8))
    assert read(run / "checkpoints/last.ckpt")["global_step"] == 10
    with (run / "metrics.csv").open() as lines:
        columns = set(next(csv.reader(lines)))
    assert {"train/loss", "val/loss", "val/perplexity", "val/bits_per_character", "step"} <= columns
    assert any(column.startswith("lr-") for column in columns)
    assert b"the" in b"".join((run / file).read_bytes() for file in events)  # the sample

    saved = (run / "config.yaml").read_text()
    code, out, _ = minrnn("test", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt")
    assert code == 0
    assert "test/loss" in out
    assert (run / "config.yaml").read_text() == saved
    assert not (tmp_path / "runs/version_1/config.yaml").exists()


def test_the_run_folder_of_a_logger_that_has_none(minrnn, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    logger = "--trainer.logger=lightning.pytorch.loggers.logger.DummyLogger"
    code, _, errors = minrnn("fit", *small, "--trainer.max_steps=2", "--trainer.limit_val_batches=1", logger)
    assert code == 0, errors
    run = tmp_path / "runs/version_0"
    files = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    assert files == {"checkpoints/last.ckpt", "config.yaml", "hparams.yaml", "metrics.csv"}
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"runs", "data"}


def test_no_checkpoints_and_other_loggers_if_so_wanted(minrnn, small, tmp_path):
    code, _, errors = minrnn(
        "fit", *small, "--trainer.max_steps=2", "--trainer.enable_checkpointing=false", "--trainer.logger=false"
    )
    assert code == 0, errors
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("version_*"))


def test_command_line_beats_checkpoint(minrnn, small, checkpoint, tmp_path):
    words = ["--trainer.max_steps=5", "--model.lr=5e-5", f"--ckpt_path={checkpoint}"]
    assert minrnn("fit", *small, *words)[0] == 0
    assert read(checkpoint)["hyper_parameters"]["lr"] != 5e-5
    assert read(tmp_path / "runs/version_0/checkpoints/last.ckpt")["hyper_parameters"]["lr"] == 5e-5


def test_predicts(minrnn, small, checkpoint):
    assert minrnn("predict", *small, f"--ckpt_path={checkpoint}")[0] == 0


# Precision


@pytest.mark.parametrize(
    ("flags", "capability", "accelerator", "precision"),
    [
        ("fpu avx2 avx512_bf16", None, "auto", "bf16-mixed"),
        ("fpu avx2 amx_bf16 amx_tile", None, "cpu", "bf16-mixed"),
        ("fpu avx2 avx512f", None, "cpu", "32-true"),
        ("fpu avx2 avx512_bf16", (7, 5), "auto", "32-true"),
        ("fpu avx2", (8, 0), "auto", "bf16-mixed"),
        ("fpu avx2", (9, 0), "gpu", "bf16-mixed"),
        ("fpu avx2", (9, 0), "cpu", "32-true"),
        (None, None, "auto", "32-true"),
        ("fpu avx512_bf16", None, "mps", "32-true"),
    ],
)
def test_native_precision(monkeypatch, tmp_path, flags, capability, accelerator, precision):
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t: {flags}\n")
    monkeypatch.setattr(lightning_cli, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert native_precision(accelerator) == precision


@pytest.mark.parametrize("words", [[], ["--trainer.precision=bf16-mixed"]])
def test_chosen_precision_wins(minrnn, small, tmp_path, monkeypatch, caplog, words):
    monkeypatch.setattr(lightning_cli, "native_precision", lambda accelerator: "64-true")
    assert minrnn("fit", *small, *words, "--trainer.max_steps=1")[0] == 0
    assert ("Precision:" in caplog.text) == (not words)
    config = yaml.safe_load((tmp_path / "runs/version_0/config.yaml").read_text())
    assert config["trainer"]["precision"] == ("bf16-mixed" if words else "64-true")


# Stopping, resuming, fine-tuning


@pytest.mark.parametrize("stop", [3, 10, 37, 41])  # within the first epoch, around its end at 38 steps, in the second
def test_resumed_run_equals_whole_run(minrnn, small, tmp_path, stop):
    samples = [
        "--trainer.callbacks+=TextSamples",
        "--trainer.callbacks.prompt=the",
        "--trainer.callbacks.max_new_tokens=5",
    ]
    words = [*small, *samples, f"--trainer.max_steps={stop + 10}", "--trainer.val_check_interval=4"]
    words += ["--trainer.check_val_every_n_epoch=null"]
    assert minrnn("fit", *words)[0] == 0
    code, _, errors = minrnn(
        "fit", *words, "--trainer.callbacks+=faulty_callbacks.PressCtrlC", f"--trainer.callbacks.step={stop - 1}"
    )
    assert code == 130
    assert "Traceback" not in errors
    whole, half, resumed = (tmp_path / f"runs/version_{number}/checkpoints/last.ckpt" for number in range(3))
    assert read(half)["global_step"] == stop
    assert minrnn("fit", *words, f"--ckpt_path={half}")[0] == 0
    whole, resumed = read(whole), read(resumed)
    assert whole["global_step"] == resumed["global_step"] == stop + 10
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "seed"):
        assert equal(whole[part], resumed[part]), part
    assert not equal(whole["state_dict"], read(half)["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--data.num_workers=1"]], ids=["one", "workers"])
def test_ctrl_c_in_the_shell(small, tmp_path, words):
    last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    words = [*words, "--trainer.max_steps=1000000", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    with start(["minrnn", "fit", *small, *words], tmp_path / "out") as process:
        code, errors, seen = interrupt(process, last, tmp_path / "out")
    check_interrupted(code, errors, last, seen)


@pytest.mark.slow
def test_ctrl_c_in_the_shell_with_two_processes(small, tmp_path):
    """The script that pip installs, started again by Lightning for the second process."""
    last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    words = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_steps=1000000"]
    words += ["--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    with start(["minrnn", "fit", *small, *words], tmp_path / "out") as process:
        code, errors, seen = interrupt(process, last, tmp_path / "out")
    check_interrupted(code, errors, last, seen)
    assert "MEMBER: 2/2" in errors
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]


def interrupt(process, last, out):
    """Press Ctrl-C, which the terminal sends to all of its processes, after the first checkpoint."""
    end = time.monotonic() + 300
    while not last.exists() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.1)
    seen = last.stat().st_mtime_ns
    os.killpg(process.pid, signal.SIGINT)
    return finish(process), out.read_text(), seen


def check_interrupted(code, errors, last, seen):
    assert code == 130, errors
    assert "Traceback" not in errors
    assert "Saved" in errors
    assert last.stat().st_mtime_ns > seen
    assert read(last)["global_step"] > 0
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]


def test_ctrl_c_before_training(minrnn, monkeypatch):
    def press(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(lightning_cli, "MinRNNCLI", press)
    assert minrnn("fit") == (130, "", "")


def test_fine_tuning_reports_what_it_loaded(minrnn, small, checkpoint, text, tmp_path, caplog):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("w", "WÄ").replace("k", "#"))
    words = [f"--model.init_from={checkpoint}", f"--data.path={other}", "--model.depth=2", "--model.lr=1e-9"]
    assert minrnn("fit", *small, *words, "--trainer.max_steps=1")[0] == 0
    loaded, kept = (next(line for line in caplog.messages if word in line) for word in (": loaded ", ": kept "))
    assert "backbone.blocks.0" in loaded
    assert "encoder" not in loaded
    assert "backbone.blocks.1" in kept
    assert all(name in kept for name in ("encoder.weight", "head.weight"))
    old, new = read(checkpoint), read(tmp_path / "runs/version_0/checkpoints/last.ckpt")
    assert "init_from" not in new["hyper_parameters"]
    assert new["hyper_parameters"]["input_size"] == old["hyper_parameters"]["input_size"] + 1
    name = "backbone.norm.weight"
    assert torch.allclose(old["state_dict"][name], new["state_dict"][name])
