"""Tasks as folders: what is saved is loaded, nothing of a folder runs, and bad folders are refused in one sentence."""

import json
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from command_line import check_refused
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from minrnn_lightning import ClassificationTask, LanguageTask, PolicyTask, TaggingTask, Task
from minrnn_lightning.batches import TextBatch
from minrnn_lightning.checkpoint import CheckpointError, read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.generate import load_language_task
from minrnn_lightning.hub import hub_reason, plain_facts, training_facts

TASKS = [LanguageTask, TaggingTask, ClassificationTask, PolicyTask]


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    """The folder of a trained model; not to be changed."""
    folder = tmp_path_factory.mktemp("published") / "model"
    LanguageTask.load_from_checkpoint(checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it."""
    return shutil.copytree(published, tmp_path / "model")


@pytest.mark.parametrize("task_class", TASKS)
def test_a_task_is_loaded_as_it_was_saved(tmp_path, task_class):
    task = task_class(7, 5, dim=16, depth=2, mixer=["mingru", "minlstm"])
    task.save_pretrained(tmp_path)
    for loaded in (task_class.from_pretrained(tmp_path), Task.from_pretrained(tmp_path)):
        assert type(loaded) is task_class
        assert not loaded.training
        assert dict(loaded.hparams) == dict(task.hparams)
        saved = task.state_dict()
        assert saved.keys() == loaded.state_dict().keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


def test_what_a_policy_knows_of_its_environment(tmp_path):
    task = PolicyTask(3, 2, dim=8, depth=1)
    task.bound_actions([-2.0, -1.0], [2.0, 3.0])
    task.environment |= {"env_id": "Hopper-v5", "max_return": 3.5, "window": 20}
    task.save_pretrained(tmp_path)
    loaded = PolicyTask.from_pretrained(tmp_path)
    assert loaded.environment == task.environment
    assert torch.equal(loaded.action_scale, task.action_scale)


def test_files_and_card_of_a_trained_model(published, checkpoint):
    names = {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert {file.name for file in published.iterdir()} == names
    config = json.loads((published / "config.json").read_text())
    assert config["task"] == "minrnn_lightning.tasks.LanguageTask"
    assert config["training"]["data"] == "TextDataModule"
    assert config["training"]["steps"] == 3
    assert str(checkpoint.parents[3]) not in (published / "config.json").read_text()  # no folder of this machine
    _, head, text = (published / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "minrnn-lightning"
    assert head["license"] == "apache-2.0"
    assert "mingru" in head["tags"]
    assert 'LanguageTask.from_pretrained("model")' in text
    assert "for 3 steps" in text


def test_results_of_the_checkpoint_are_in_the_card(checkpoint, tmp_path):
    saved = read_checkpoint(checkpoint)
    saved["metrics"] = {"val/loss": 1.25, "val/diverged": float("inf")}
    torch.save(saved, tmp_path / "x.ckpt")
    Task.from_pretrained(tmp_path / "x.ckpt").save_pretrained(tmp_path / "model")
    Task.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")  # facts survive
    for name in ("model", "again"):
        text = (tmp_path / name / "README.md").read_text()
        assert "| val/loss | 1.25 |" in text
        assert yaml.safe_load(text.split("---\n")[1])["metrics"] == ["loss"]


class Worse(LanguageTask):
    """Its loss is 1 at the first validation, then 2, and another metric is logged at the first one alone."""

    passes = 0

    def log_metrics(self, part):
        self.passes += 1
        self.log_dict({f"{part}/loss": float(self.passes)} | ({} if self.passes > 1 else {f"{part}/rare": 7.0}))


def test_metrics_are_those_of_the_weights(tmp_path):
    """Of the best and of the last checkpoint, after a step without a validation, and of the task in memory."""
    best = ModelCheckpoint(tmp_path, "best", "val/loss", save_on_train_epoch_end=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=3, num_sanity_val_steps=0, val_check_interval=1, callbacks=[best], **quiet)
    tokens = torch.randint(0, 5, (2, 8))
    data = pl.LightningDataModule()
    data.train_dataloader = lambda: DataLoader([TextBatch(tokens, tokens)] * 3, batch_size=None)
    data.val_dataloader = lambda: DataLoader([TextBatch(tokens, tokens)], batch_size=None)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / f"before_validation_{trainer.global_step}.ckpt")

        def on_validation_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    trainer.callbacks.insert(0, Save())
    task = Worse(5, 5, dim=8, depth=1)
    trainer.fit(task, data)
    expected = {"best": {"val/loss": 1.0, "val/rare": 7.0}, "before_validation_2": None, "last": {"val/loss": 3.0}}
    for name, metrics in expected.items():
        assert training_facts(read_checkpoint(tmp_path / f"{name}.ckpt")).get("metrics") == metrics
    task.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["training"]["metrics"] == expected["last"]


@pytest.mark.parametrize(
    ("given", "written"),
    {
        "mujoco/hopper/medium-v0": "mujoco/hopper/medium-v0",
        "D4RL/door/human-v2": "D4RL/door/human-v2",
        "user/repository": "user/repository",
        "minrnn/TMaze-v0": "minrnn/TMaze-v0",
        "/srv/texts/play.txt": "play.txt",
        "../runs/hopper/medium-v0": "medium-v0",
        "data/sets/hopper.hdf5": "hopper.hdf5",
        "{folder}": "model",
    }.items(),
)
def test_folders_of_this_machine_are_not_published(folder, given, written):
    facts = plain_facts(None, {"path": given.format(folder=folder)}, None, {})
    assert facts == {"data_hyper_parameters": {"path": written}}


def test_an_edited_card_is_kept_and_a_license_given(folder):
    task = LanguageTask.from_pretrained(folder)
    (folder / "README.md").write_text("own")
    task.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "own"
    (folder / "README.md").unlink()
    task.save_pretrained(folder, model_card_kwargs={"license": "mit"})
    assert "license: mit" in (folder / "README.md").read_text()


def test_generation_from_a_folder_is_that_of_the_checkpoint(minrnn, checkpoint, published):
    options = ("--prompt=the ", "--max_new_tokens=20", "--seed=1")
    (code, one, _), (_, two, _) = (minrnn("generate", f"--checkpoint={c}", *options) for c in (checkpoint, published))
    assert code == 0
    assert one == two
    assert load_language_task(published)[1].to_str() == load_language_task(checkpoint)[1].to_str()


def test_publish(minrnn, checkpoint, published, tmp_path, monkeypatch):
    code, out, errors = minrnn("publish", "--checkpoint", checkpoint, "--output", tmp_path / "model", "--license=mit")
    assert code == 0, errors
    assert "LanguageTask" in out
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (published / name).read_bytes()
    assert "license: mit" in (tmp_path / "model/README.md").read_text()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("publish", "--checkpoint", checkpoint, "--output", tmp_path / "model", "--push=not a name")
    check_refused(minrnn(*words), "push: the Hugging Face Hub does not take not a name")


def test_fine_tuning_from_a_folder(published, minrnn, small):
    code, _, errors = minrnn("fit", *small, f"--model.init_from={published}", "--trainer.max_steps=1")
    assert code == 0, errors


def test_tests_of_a_folder_are_those_of_the_checkpoint(minrnn, small, checkpoint, published):
    results = [minrnn("test", *small, f"--ckpt_path={path}", "--seed_everything=0") for path in (checkpoint, published)]
    assert [code for code, *_ in results] == [0, 0], results
    one, two = ([line for line in out.splitlines() if "test/loss" in line] for _, out, _ in results)
    assert one
    assert one == two


def test_upload_is_of_the_same_files(folder, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **options):
            uploaded.update({file.name: file.read_bytes() for file in folder_path.iterdir()})
            return "https://address"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert LanguageTask.from_pretrained(folder).push_to_hub("user/play") == "https://address"
    assert uploaded.keys() == {file.name for file in folder.iterdir()}
    assert uploaded["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b'from_pretrained("user/play")' in uploaded["README.md"]


def test_publish_uploads_the_folder_as_it_is(minrnn, published, tmp_path, monkeypatch):
    uploaded = {}

    class Api:
        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path):
            uploaded.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
            return f"https://address/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/README.md").write_text("own")
    code, out, errors = minrnn("publish", f"--checkpoint={published}", f"--output={tmp_path}/model", "--push=user/play")
    assert code == 0, errors
    assert out.endswith("https://address/user/play\n")
    assert uploaded == {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert uploaded["README.md"] == b"own"
    assert uploaded["model.safetensors"] == (published / "model.safetensors").read_bytes()


def test_a_configuration_imports_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "task": "own_task.OwnTask"}))
    with pytest.raises(CheckpointError, match=r"own_task.OwnTask, which is not one of this package: import the class"):
        Task.from_pretrained(folder)
    assert "own_task" not in sys.modules
    assert type(LanguageTask.from_pretrained(folder)) is LanguageTask  # the caller says the class
    config["hyper_parameters"]["mixer"] = "own_task.Mixer"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="would import the module own_task"):
        LanguageTask.from_pretrained(folder)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def reshape(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"head.weight": torch.zeros(3, 3)}, folder / "model.safetensors")


BAD = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "is no folder that save_pretrained wrote: it holds no ",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is damaged: Expecting property name"),
    "other config": (lambda f: (f / "config.json").write_text('{"a": 1}'), "is not the configuration of a task"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors: save the model there"),
    "cut weights": (cut, "model.safetensors is damaged or cut short"),
    "other shapes": (reshape, "does not fit this LanguageTask: head.weight is"),
    "folder as weights": (
        lambda f: (f / "model.safetensors").rename(f / "x") and (f / "model.safetensors").mkdir(),
        "holds no model.safetensors",
    ),
    "unknown hyper-parameter": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"dim"', '"dimm": 1, "dim"')),
        "is not a model of this version's LanguageTask: it has no hyper-parameter dimm; correct config.json",
    ),
    "folder as vocabulary": (
        lambda f: (f / "tokenizer.json").unlink() or (f / "tokenizer.json").mkdir(),
        "tokenizer.json must be a file with the vocabulary, got a folder",
    ),
    "no text": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), "tokenizer.json is damaged: "),
    "vocabulary": (lambda f: (f / "tokenizer.json").write_text("{"), "holds a vocabulary that cannot be read"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_bad_folders(folder, minrnn, spoil, words):
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        LanguageTask.from_pretrained(folder)
    assert words in str(caught.value)
    check_refused(minrnn("generate", "--checkpoint", folder), words)


def test_another_class(folder):
    with pytest.raises(CheckpointError, match="holds a LanguageTask; only a TaggingTask can be loaded by TaggingTask"):
        TaggingTask.from_pretrained(folder)


def test_a_model_without_vocabulary(tmp_path, minrnn):
    LanguageTask(7, 7, dim=8, depth=1).save_pretrained(tmp_path)
    check_refused(minrnn("generate", "--checkpoint", tmp_path), "holds no vocabulary")


def test_a_name_of_the_hub_without_network(monkeypatch, minrnn, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    words = "nobody/no-such-model is neither a folder here nor a model that the Hugging Face Hub gives"
    with pytest.raises(InputError, match=words):
        LanguageTask.from_pretrained("nobody/no-such-model", cache_dir=tmp_path)
    check_refused(minrnn("generate", "--checkpoint=nobody/no-such-model"), words)


@pytest.mark.parametrize(
    ("message", "reason"),
    {
        "Cannot find it and traffic is disabled. To enable it, set 'X=0'": "Cannot find it and traffic is disabled",
        "404 Client Error. (Request ID: 1)\n\nRepository Not Found: u/v.\nPlease": "Repository Not Found: u/v",
        "500 Server Error: url u": "500 Server Error: url u",
        "": "OSError",
    }.items(),
)
def test_the_reason_of_the_hub_is_one_sentence(message, reason):
    assert hub_reason(OSError(message)) == reason


def test_nothing_half_written(folder, monkeypatch):
    task = LanguageTask.from_pretrained(folder)

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("minrnn_lightning.hub.save", fail)
    with pytest.raises(OSError, match="disk full"):
        task.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"holds no config.json"):  # not a mixture of two models
        LanguageTask.from_pretrained(folder)
