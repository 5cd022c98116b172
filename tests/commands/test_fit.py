"""The command: recipes, run folders, precision, resuming, fine-tuning, Ctrl-C, and a sentence for bad input."""

import csv
import os
import resource
import signal
import subprocess
import time

import pytest
import torch
import yaml
from command_line import check_refused, command, equal, read

from minrnn_lightning import LanguageTask, TextDataModule, __version__
from minrnn_lightning.commands import fit as lightning_cli
from minrnn_lightning.commands.fit import native_precision
from minrnn_lightning.commands.main import main
from minrnn_lightning.commands.recipes import find_recipes, recipes_folder
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import Task

# Words


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
    recipes, hardware, small = groups
    assert recipes[0] == "shakespeare"
    assert set(hardware) == {"hardware/ddp", "hardware/fsdp", "hardware/bf16"}
    assert "small/mqar" in small
    assert not any(name.startswith(("hardware/", "small/")) for name in recipes)
    assert all(name.startswith("small/") for name in small)


def test_finds_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(recipes_folder() / "shakespeare.yaml")
    ddp = str(recipes_folder() / "hardware/ddp.yaml")
    assert find_recipes(["fit", "--config", "shakespeare", "--config=hardware/ddp"]) == [
        *("fit", "--config", packaged, f"--config={ddp}")
    ]
    assert find_recipes(["fit", "-c", "shakespeare.yaml"]) == ["fit", "-c", packaged]
    own = tmp_path / "shakespeare.yaml"
    own.touch()
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
@pytest.mark.parametrize(
    "words",
    [[], ["--data.num_workers=1"], ["--trainer.strategy=ddp", "--trainer.devices=2"]],
    ids=["one", "workers", "ddp"],
)
def test_ctrl_c_in_the_shell(small, tmp_path, words):
    last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
    words = [*words, "--trainer.max_steps=1000000", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    process = subprocess.Popen(
        command("fit", *small, *words), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 300
    while not last.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    seen = last.stat().st_mtime_ns
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 130, errors
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


def test_fine_tuning_reports_what_it_took(minrnn, small, checkpoint, text, tmp_path, caplog):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("w", "WÄ").replace("k", "#"))
    words = [f"--model.init_from={checkpoint}", f"--data.path={other}", "--model.depth=2", "--model.lr=1e-9"]
    assert minrnn("fit", *small, *words, "--trainer.max_steps=1")[0] == 0
    took, left = (next(line for line in caplog.messages if word in line) for word in (": took ", ": left "))
    assert "backbone.blocks.0" in took
    assert "encoder" not in took
    assert "backbone.blocks.1" in left
    assert all(name in left for name in ("encoder.weight", "head.weight"))
    old, new = read(checkpoint), read(tmp_path / "runs/version_0/checkpoints/last.ckpt")
    assert "init_from" not in new["hyper_parameters"]
    assert new["hyper_parameters"]["input_size"] == old["hyper_parameters"]["input_size"] + 1
    name = "backbone.norm.weight"
    assert torch.allclose(old["state_dict"][name], new["state_dict"][name])


# Bad input


def test_unknown_command(minrnn):
    check_refused(minrnn("train"), "'train' is not a command", "fit, validate", code=2)


def test_missing_recipe(minrnn):
    check_refused(minrnn("fit", "--config", "nope.yaml"), "nope.yaml is neither a file nor a packaged recipe")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model.lrr=3"], ["model.lrr is not an option of LanguageTask; see `minrnn fit --model.help=LanguageTask`"]),
        (["--trainer.max_step=3"], ["--trainer.max_step"]),
        (["--colour=red"], ["--colour=red; see --help"]),
        (["--model=Nothing"], ["model", "Nothing"]),
        (["--trainer.max_steps=many"], ["trainer.max_steps must be a whole number, got many"]),
        (["--trainer.precision=17"], ["trainer.precision", "bf16-mixed", "17"]),
        (["--data.tokenizer=words"], ["data.tokenizer must be one of 'char', 'byte', 'bpe', got words"]),
        (["--model.dim=wide"], ["model.dim must be a whole number, got wide"]),
        (["--trainer.callbacks+=Nothing"], ["trainer.callbacks", "Nothing"]),
    ],
)
def test_unknown_options(minrnn, small, words, parts):
    check_refused(minrnn("fit", *small, *words), *parts, code=2)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("model: {class_path: LanguageTask, init_args: {lrr: 3}}", "model.lrr is not an option of LanguageTask"),
        ("modell: {class_path: LanguageTask}", "modell"),
        ("model: [", "parsing"),
        ("data: {class_path: TextDataModule}\nmodel: {class_path: LanguageTask}", "path"),
        ("\x00\x01", ""),
    ],
)
def test_bad_recipes(minrnn, tmp_path, recipe, part):
    (tmp_path / "x.yaml").write_text(recipe)
    check_refused(minrnn("fit", "--config", tmp_path / "x.yaml"), part, code=2)


def test_nothing_to_train(minrnn):
    check_refused(minrnn("fit"), "required", "model", "data", code=2)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model.dim=-3"], ["dim", "-3"]),
        (["--model.depth=0"], ["depth", "0"]),
        (["--model.kernel_size=-1"], ["kernel_size", "-1"]),
        (["--model.dropout=1.5"], ["dropout", "1.5"]),
        (["--model.lr=-1"], ["lr", "-1"]),
        (["--model.dim=null"], ["model.dim", "null"]),
        (["--data.batch_size=null"], ["data.batch_size", "null"]),
        (["--model.mixer=s5"], ["mixer", "s5", "mingru"]),
        (["--data.batch_size=0"], ["batch_size", "0"]),
        (["--data.length=-16"], ["length", "-16"]),
        (["--data.length=100000"], ["too short"]),
        (["--trainer.max_steps=0"], ["max_steps", "0"]),
        (["--trainer.max_steps=-7"], ["max_steps", "-7"]),
        (["--trainer.max_epochs=0"], ["max_epochs", "0"]),
        (["--trainer.devices=0"], ["devices"]),
    ],
)
def test_bad_sizes(minrnn, small, words, parts):
    check_refused(minrnn("fit", *small, *words), *parts)


@pytest.mark.parametrize(("content", "part"), [(b"", "empty"), (b"\xff\xfe\x00\x81" * 99, "UTF-8"), (b"ab\n", "short")])
def test_bad_texts(minrnn, small, tmp_path, content, part):
    (tmp_path / "x.txt").write_bytes(content)
    check_refused(minrnn("fit", *small, f"--data.path={tmp_path}/x.txt", "--trainer.max_steps=1"), part)


def test_missing_text(minrnn, small):
    check_refused(minrnn("fit", *small, "--data.path=/none/such.txt", "--trainer.max_steps=1"), "/none/such.txt")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_weights_are_not_tested(minrnn, small, command):
    check_refused(minrnn(command, *small), f"minrnn {command} needs trained weights", "--ckpt_path")


@pytest.fixture(params=["missing", "empty", "foreign", "cut", "other class", "other program"])
def bad_checkpoint(request, checkpoint, tmp_path):
    """A file that is no checkpoint of the small model."""
    file = tmp_path / "bad.ckpt"
    match request.param:
        case "empty":
            file.touch()
        case "foreign":
            file.write_text("PNG")
        case "cut":
            file.write_bytes(checkpoint.read_bytes()[:-1000])
        case "other class":
            torch.save({**read(checkpoint), "state_dict": {"conv.weight": torch.ones(3)}}, file)
        case "other program":
            torch.save([1, 2], file)
    return file


def test_bad_checkpoints(minrnn, small, bad_checkpoint):
    fit = ["fit", *small, "--trainer.max_steps=5"]
    check_refused(minrnn(*fit, f"--ckpt_path={bad_checkpoint}"), "bad.ckpt")
    check_refused(minrnn(*fit, f"--model.init_from={bad_checkpoint}"), "bad.ckpt")
    check_refused(minrnn("test", *small, f"--ckpt_path={bad_checkpoint}"), "bad.ckpt")
    check_refused(minrnn("generate", f"--checkpoint={bad_checkpoint}"), "bad.ckpt")


def test_checkpoint_of_another_size(minrnn, small, checkpoint):
    words = ["--trainer.max_steps=5", "--model.dim=24", f"--ckpt_path={checkpoint}"]
    check_refused(minrnn("fit", *small, *words), "last.ckpt does not fit this LanguageTask", "24", "--model.init_from")


def test_checkpoint_of_another_vocabulary(minrnn, small, checkpoint, text, tmp_path):
    (tmp_path / "x.txt").write_text(text.read_text().replace("w", "W"))  # as many characters
    words = ["--trainer.max_steps=5", f"--data.path={tmp_path}/x.txt", f"--ckpt_path={checkpoint}"]
    check_refused(minrnn("fit", *small, *words), "another vocabulary")


def test_log_folder_that_cannot_be_written(minrnn, small, tmp_path):
    (tmp_path / "file").touch()
    words = ["--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}/file/runs"]
    check_refused(minrnn("fit", *small, *words), "file/runs", "Not a directory")


@pytest.mark.slow
def test_full_disk(small, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # the checkpoint is larger

    words = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--model.dim=32"]
    assert main(["fit", *small, "--trainer.fast_dev_run=true"]) is None  # prepares the text
    run = subprocess.run(command("fit", *small, *words), preexec_fn=small_disk, capture_output=True, text=True)
    check_refused((run.returncode, run.stdout, run.stderr), "File too large")
    assert not list(tmp_path.rglob("last.ckpt*"))


def test_offline_without_cache(minrnn, small, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY", "PIP_INDEX_URL", "PIP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINRNN_DATA_DIR", raising=False)
    words = [word for word in small if not word.startswith("--data")]
    result = minrnn("fit", *words, "--data=ShakespeareDataModule", f"--data.data_dir={tmp_path}/none")
    check_refused(result, "input.txt", "https://", "--data.data_dir")


def test_wrong_checksum(minrnn, small, text, tmp_path):
    file = tmp_path / "none/tinyshakespeare/input.txt"
    file.parent.mkdir(parents=True)
    file.write_text(text.read_text())
    words = [word for word in small if not word.startswith("--data")]
    result = minrnn("fit", *words, "--data=ShakespeareDataModule", f"--data.data_dir={tmp_path}/none")
    check_refused(result, str(file), "sha256")


def test_mistakes_in_the_program_show_their_traceback(small):
    with pytest.raises(KeyError, match="mistake"):
        main(["fit", *small, "--trainer.max_steps=1", "--trainer.callbacks+=faulty_callbacks.Faulty"])


INTERNAL_MISTAKES = {
    "zip": lambda: list(zip([1, 2], [3], strict=True)),
    "int": lambda: int("x"),
    "key": lambda: {}["missing"],
    "value": lambda: (_ for _ in ()).throw(ValueError("internal")),
}


@pytest.mark.parametrize("where", [(Task, "training_step"), (TextDataModule, "setup"), (LanguageTask, "__init__")])
@pytest.mark.parametrize("mistake", INTERNAL_MISTAKES)
def test_internal_errors_are_not_shown_as_the_user_s(small, monkeypatch, where, mistake):
    monkeypatch.setattr(*where, lambda *args, **kwargs: INTERNAL_MISTAKES[mistake]())
    with pytest.raises((ValueError, KeyError)) as caught:
        main(["fit", *small, "--trainer.max_steps=1"])
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("where", [(Task, "training_step"), (TextDataModule, "setup"), (LanguageTask, "__init__")])
def test_input_errors_are_shown_as_a_sentence(minrnn, small, monkeypatch, where):
    def refuse(*args, **kwargs):
        raise InputError("colour must be red,\ngot blue")

    monkeypatch.setattr(*where, refuse)
    check_refused(minrnn("fit", *small, "--trainer.max_steps=1"), "minrnn: colour must be red, got blue")
