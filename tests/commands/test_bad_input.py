"""Bad input is answered by one sentence that says what is accepted; mistakes of the program keep their traceback."""

import resource

import pytest
import torch
from command_line import check_refused, read
from mistakes import ERRORS, MISTAKES, MistakenTask, make

from minrnn_lightning import LanguageTask, TextDataModule
from minrnn_lightning.callbacks import SeedEveryBatch
from minrnn_lightning.commands.fit import SaveRecipe
from minrnn_lightning.commands.main import main
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import Task
from minrnn_lightning.tasks.schedule import WarmupDecay


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


def test_recipes_that_would_take_minutes_to_read(minrnn, tmp_path):
    (tmp_path / "x.yaml").write_text("# nothing\n" * 200_000)
    check_refused(minrnn("fit", "--config", tmp_path / "x.yaml"), "x.yaml has 2,000,000 bytes, and a recipe at most")


def test_a_number_with_more_digits_than_python_reads(minrnn, small, tmp_path):
    (tmp_path / "x.yaml").write_text(f"seed_everything: {'9' * 5000}")
    check_refused(minrnn("fit", *small, "--config", tmp_path / "x.yaml"), "x.yaml has a number of 5,000 digits")
    check_refused(minrnn("fit", *small, f"--model.dim={'9' * 5000}"), "model.dim has a number of 5,000 digits")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--optimizer=SGD", "--optimizer.lr=-1"], "optimizer.lr must be at least 0, got -1.0"),
        (
            ["--optimizer=SGD", "--lr_scheduler=CosineAnnealingWarmRestarts", "--lr_scheduler.T_0=0"],
            "CosineAnnealingWarmRestarts cannot be used: Expected positive integer T_0",
        ),
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=nothing"], "metric `nothing` which is not"),
    ],
)
def test_what_libraries_refuse_when_training_starts(minrnn, small, words, part):
    check_refused(minrnn("fit", *small, *words, "--trainer.max_steps=1"), part)


def test_a_logger_whose_package_is_missing(minrnn, small, monkeypatch):
    import lightning.pytorch.loggers.wandb as logger

    monkeypatch.setattr(logger, "_WANDB_AVAILABLE", False)
    check_refused(minrnn("fit", *small, "--trainer.logger=WandbLogger"), "False")


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


@pytest.fixture
def small_disk():
    """Files of 60 kB at most, in this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(minrnn, small, tmp_path, small_disk):
    words = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--model.dim=32"]
    assert main(["fit", *small, "--trainer.fast_dev_run=true"]) is None  # prepares the text
    small_disk()  # the checkpoint is larger
    check_refused(minrnn("fit", *small, *words), "File too large")
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


@pytest.mark.parametrize(
    "where",
    [
        *((Task, "training_step"), (TextDataModule, "setup"), (LanguageTask, "__init__")),
        (SaveRecipe, "__init__"),  # which is called where the Trainer is made
    ],
)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_internal_errors_are_not_shown_as_the_user_s(small, monkeypatch, where, mistake):
    monkeypatch.setattr(*where, make(mistake))
    with pytest.raises(ERRORS) as caught:
        main(["fit", *small, "--trainer.max_steps=1"])
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    "where",
    [
        *((Task, "on_load_checkpoint"), (TextDataModule, "load_state_dict"), (WarmupDecay, "load_state_dict")),
        (SeedEveryBatch, "on_load_checkpoint"),
    ],
)
@pytest.mark.parametrize("mistake", ["zip", "int", "key"])
def test_internal_errors_of_resuming_are_not_shown_as_the_user_s(small, monkeypatch, checkpoint, where, mistake):
    monkeypatch.setattr(*where, make(mistake))
    with pytest.raises(ERRORS) as caught:
        main(["fit", *small, "--trainer.max_steps=4", f"--ckpt_path={checkpoint}"])
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_internal_errors_of_a_task_from_elsewhere(small, monkeypatch, mistake):
    monkeypatch.setattr(MistakenTask, "mistake", mistake)
    words = ["--model=mistakes.MistakenTask" if word == "--model=LanguageTask" else word for word in small]
    with pytest.raises(ERRORS) as caught:
        main(["fit", *words, "--trainer.max_steps=1"])
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("where", [(Task, "training_step"), (TextDataModule, "setup"), (LanguageTask, "__init__")])
def test_input_errors_are_shown_as_a_sentence(minrnn, small, monkeypatch, where):
    def refuse(*args, **kwargs):
        raise InputError("colour must be red,\ngot blue")

    monkeypatch.setattr(*where, refuse)
    check_refused(minrnn("fit", *small, "--trainer.max_steps=1"), "minrnn: colour must be red, got blue")
