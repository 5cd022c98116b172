"""Every recipe and every hardware overlay runs through the command, on the corpus or a generated text instead of it."""

import os
import re
import runpy
import shlex
import textwrap
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
import yaml
from corpus_files import write_corpora
from lra_files import write_imdb, write_pathfinder, write_retrieval
from rl_files import write_d4rl, write_minari

from minrnn_lightning.commands.main import recipes_folder
from minrnn_lightning.data.offline_rl.d4rl import ENVIRONMENTS, NAMES, SIZES, file_name
from minrnn_lightning.generate import load_language_task
from minrnn_lightning.rl.environments import make

OVERLAYS = sorted(recipes_folder().glob("hardware/*.yaml"))
SMALL = sorted(recipes_folder().glob("small/*.yaml"))
PAPER = sorted(recipes_folder().glob("paper/*.yaml"))
RECIPES = sorted({*recipes_folder().rglob("*.yaml")} - {*OVERLAYS, *SMALL, *PAPER})
REDUCED = [
    "--data.batch_size=2",
    "--data.length=16",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
REDUCED_DATA = {  # where a short length alone is not enough
    "associative_recall": ["--data.eval_lengths=[8]"],
    "corpora": ["--data.data_dir={files}", "--model.match_parameters=null", "--model.dim=16", "--model.depth=1"],
    "d4rl": ["--data.data_dir={files}", "--model.dim=16", "--model.depth=1"],
    "formal_languages": ["--data.eval_lengths=[8, 16]", "--data.eval_batches=2"],
    "imdb": ["--data.data_dir={files}"],
    "induction_heads": ["--data.eval_lengths=[8]"],
    "listops": ["--data.shortest=5", "--data.length=40", "--data.sizes=[4, 2, 2]", "--data.data_dir={files}"],
    "cifar10": ["--data.dataset=digits", "--data.data_dir={files}", "--model.dim=64"],
    "mqar": ["--data.pairs=2"],
    "pathfinder": ["--data.data_dir={files}"],
    "retrieval": ["--data.data_dir={files}"],
    "ppo_memory": ["--data.num_envs=4", "--data.eval_episodes=2"],
    "rl": ["--data.data_dir={files}"],
    "selective_copying": ["--data.eval_lengths=[16]", "--data.eval_batches=2"],
    "word_problems": ["--data.eval_lengths=[16]"],
}
IMAGES = ("cifar10", "pathfinder")  # whose length is that of the images


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(recipes_folder()).with_suffix("").as_posix() for path in paths]


def reduced(recipe: Path, files: Path) -> list[str]:
    """Options that reduce a recipe to a few small batches; data that would be downloaded are in ``files``."""
    name = recipe.stem if recipe.stem in REDUCED_DATA else recipe.parent.name
    common = [option for option in REDUCED if name not in IMAGES or "length" not in option]
    if name == "ppo_memory":  # whose batches are rows of a rollout
        common = [option for option in common if "batch_size" not in option]
    return [*common, *(option.format(files=files) for option in REDUCED_DATA.get(name, []))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Corpora, data of the Long Range Arena and of D4RL in their official formats, a few examples; sets of Minari."""
    folder = tmp_path_factory.mktemp("files")
    write_retrieval(folder / "lra_release/lra_release/tsv_data")
    write_pathfinder(folder / "lra_release/lra_release/pathfinder32/curv_contour_length_14", 60)
    write_imdb(folder / "aclImdb")
    write_corpora(folder)
    for name in NAMES:
        observation_size, action_size = SIZES[name.partition("-")[0]]
        write_d4rl(
            folder / "d4rl" / file_name(name), [30, 20, 40], observation_size=observation_size, action_size=action_size
        )
    for env in ("hopper", "halfcheetah"):
        write_minari(folder / "minari", f"selfmade/{env}/medium-expert-v0", ENVIRONMENTS[env], [30, 20, 40])
    return folder


@pytest.fixture(autouse=True)
def corpus(tmp_path, monkeypatch, text):
    """Without the corpus, a text at the path of the plays that replace it offline; no data sets of the user."""
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    if not Path(os.environ.get("MINRNN_DATA_DIR", ""), "tinyshakespeare/input.txt").is_file():
        plays = tmp_path / "data/shakespeare-plays/input.txt"
        plays.parent.mkdir(parents=True)
        plays.write_text(text.read_text())
        monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """Episodes in an environment end after 20 steps; one of HalfCheetah would last 1,000, whatever the policy."""
    monkeypatch.setattr("minrnn_lightning.rl.rollout.make", partial(make, max_episode_steps=20))


@pytest.mark.filterwarnings("ignore:.*is empty and left out", "ignore:.*is not the file of D4RL")
@pytest.mark.filterwarnings("ignore:.*is not the published", "ignore:The text has only")
@pytest.mark.parametrize("recipe", RECIPES, ids=names(RECIPES))
def test_recipe_runs(minrnn, recipe, tmp_path, files):
    args = [f"--config={recipe}", *reduced(recipe, files), f"--trainer.default_root_dir={tmp_path}/runs"]
    assert minrnn("fit", *args, "--trainer.fast_dev_run=true")[0] == 0
    assert minrnn("fit", *args, "--trainer.max_steps=1")[0] == 0
    checkpoint = f"--ckpt_path={tmp_path}/runs/version_0/checkpoints/last.ckpt"
    for command in ("validate", "test"):
        code, out, errors = minrnn(command, *args, checkpoint, "--trainer.fast_dev_run=true")
        assert code == 0, errors
        assert ("loss" in out) == (recipe.stem != "ppo_memory")  # held-out data
        is_policy = recipe.parent.name in ("d4rl", "rl")
        assert ("return" in out) == is_policy
        is_text = recipe.stem.startswith("shakespeare") or recipe.parent.name == "corpora"
        assert ("bits_per_byte" in out) == is_text
        assert ("baseline" in out) == ("accuracy" in out) == (not is_text and not is_policy)


@pytest.mark.filterwarnings("ignore:.*is not the file of D4RL")
@pytest.mark.parametrize("overlay", [*SMALL, *PAPER], ids=names([*SMALL, *PAPER]))
def test_overlay_of_a_recipe_runs(minrnn, overlay, tmp_path, files):
    """The first command in its head, whose last --config is the overlay."""
    command, *others = re.findall(r"^#   (minrnn fit [^#\n]*)", overlay.read_text(), re.MULTILINE)
    recipe, *overlays = configs = re.findall(r"--config (\S+)", command)
    assert overlays[-1] == f"{overlay.parent.name}/{overlay.stem}"
    assert " ".join(f"--config {name}" for name in configs) in (recipes_folder() / f"{recipe}.yaml").read_text()
    args = [*shlex.split(command)[1:], *reduced(recipes_folder() / f"{recipe}.yaml", files)]
    code, out, errors = minrnn(*args, "--print_config")
    assert code == 0, errors
    settings, printed = yaml.safe_load(overlay.read_text()), yaml.safe_load(out)
    for name, value in settings.get("model", {"init_args": {}})["init_args"].items():
        assert printed["model"]["init_args"][name] == (
            float(value) if name == "lr" else value
        )  # YAML reads 1e-3 as text
    trainer = {name: value for name, value in settings.get("trainer", {}).items() if name != "callbacks"}
    assert all(printed["trainer"][name] == value for name, value in trainer.items())
    for name in {"optimizer", "lr_scheduler"} & set(settings):
        assert printed[name]["class_path"].rpartition(".")[2] == settings[name]["class_path"]
    assert printed["trainer"]["max_steps"] <= 20_000 or overlay in PAPER
    for more in ("", *(other.partition(configs[-1])[2] for other in others)):  # what the other commands add
        words = [*shlex.split(more), f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"]
        code, _, errors = minrnn(*args, *words)
        assert code == 0, errors


@pytest.mark.parametrize("recipe", RECIPES, ids=names(RECIPES))
def test_recipe_is_complete(recipe):
    content = recipe.read_text()
    settings = yaml.safe_load(content)
    assert content.startswith("# ")
    assert "paper" in content
    assert isinstance(settings["seed_everything"], int)
    assert settings["trainer"]["default_root_dir"] == f"runs/{recipe.stem}"
    assert {"class_path", "init_args"} == settings["model"].keys() == settings["data"].keys()


def test_tables_of_results_are_up_to_date():
    tables = runpy.run_path(str(recipes_folder() / "tables.py"))
    pages = {page: page.read_text(encoding="utf-8") for page in tables["pages"]()}
    outdated = [page.name for page, content in pages.items() if tables["filled"](content) != content]
    assert outdated == [], "run `python recipes/tables.py`"
    assert sum(content.count("<!-- results:") for content in pages.values()) == 42


def test_index_names_every_recipe():
    index = (recipes_folder() / "README.md").read_text(encoding="utf-8")
    families = {"d4rl": "d4rl/*"}
    assert [recipe.stem for recipe in RECIPES if families.get(recipe.parent.name, recipe.stem) not in index] == []


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_sets_hardware_only(minrnn, overlay):
    settings = yaml.safe_load(overlay.read_text())
    assert settings.keys() == {"trainer"}
    code, out, errors = minrnn("fit", "--config=shakespeare", f"--config={overlay}", "--print_config")
    assert code == 0, errors
    printed = yaml.safe_load(out)["trainer"]
    assert all(printed[name] == value for name, value in settings["trainer"].items())
    assert printed["max_steps"] > 0


def test_bf16(minrnn, tmp_path):
    args = [*REDUCED, "--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}/runs"]
    assert minrnn("fit", "--config=shakespeare", "--config=hardware/bf16", *args)[0] == 0
    assert "precision: bf16-mixed" in (tmp_path / "runs/version_0/config.yaml").read_text()


@pytest.mark.slow
def test_ddp(tmp_path):
    recipes = ["--config", recipes_folder() / "shakespeare.yaml", "--config", recipes_folder() / "hardware/ddp.yaml"]
    args = [*REDUCED, "--model.dim=16", "--model.depth=1", "--trainer.max_steps=3", "--trainer.val_check_interval=2"]
    args += ["--trainer.limit_val_batches=2", f"--trainer.default_root_dir={tmp_path}/runs"]
    out = tmp_path / "out"
    forked.run(["minrnn", "fit", *recipes, *args], out)
    assert "MEMBER: 2/2" in out.read_text()
    assert "gloo" in out.read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    checkpoint = torch.load(tmp_path / "runs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3


EXTERNAL = textwrap.dedent("""
    '''A project of a user, which imports the package.'''

    import sys

    import lightning as L
    import torch

    from minrnn_lightning import LanguageTask, TextDataModule


    class MyTask(LanguageTask):
        def __init__(self, momentum: float = 0.0, **others):
            super().__init__(**others)
            self.momentum = momentum

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


    if __name__ == "__main__":
        path, folder, devices, batch_size, steps = sys.argv[1:]
        L.seed_everything(0)
        data = TextDataModule(path, batch_size=int(batch_size), length=16, data_dir=folder + "/data")
        sizes = {"input_size": data.input_size, "output_size": data.output_size, "dim": 16, "depth": 1}
        task = MyTask(**sizes, lr=0.5, momentum=0.5 if int(steps) > 1 else 0.0)
        trainer = L.Trainer(
            accelerator="cpu", devices=int(devices), strategy="ddp" if int(devices) > 1 else "auto",
            max_steps=int(steps), limit_val_batches=2, logger=False, enable_progress_bar=False,
            enable_checkpointing=False,
        )
        before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        trainer.fit(task, data)
        trainer.save_checkpoint(folder + "/x.ckpt")
        if trainer.is_global_zero:
            open(folder + "/loss", "w").write(str(trainer.callback_metrics["train/loss"].item()))
            torch.save(before, folder + "/before.pt")
""")


def external(folder: Path, text: Path, devices: int, batch_size: int, steps: int) -> tuple[float, dict, dict]:
    """Run the external project and return its last loss, and its weights before and after."""
    folder.mkdir()
    project = folder / "project.py"
    project.write_text(EXTERNAL)
    args = [project, text, folder, devices, batch_size, steps]
    if devices == 1:
        forked.run(args, folder / "out")
    else:
        forked.run_two(args, folder)
    after = torch.load(folder / "x.ckpt", weights_only=True)["state_dict"]
    return float((folder / "loss").read_text()), torch.load(folder / "before.pt"), after


@pytest.mark.slow
def test_external_project_with_another_optimizer(minrnn, text, tmp_path):
    loss, _, after = external(tmp_path / "project", text, devices=1, batch_size=8, steps=60)
    assert loss < 2.6  # 3.3 at the start
    task, _ = load_language_task(tmp_path / "project/x.ckpt")
    assert torch.equal(task.head.weight, after["head.weight"])
    code, out, _ = minrnn("generate", f"--checkpoint={tmp_path}/project/x.ckpt", "--max_new_tokens=5")
    assert (code, len(out)) == (0, 6)


@pytest.mark.slow
def test_gradient_of_two_processes_is_that_of_the_joined_batch(text, tmp_path):
    _, one_before, one_after = external(tmp_path / "one", text, 1, batch_size=8, steps=1)
    _, two_before, two_after = external(tmp_path / "two", text, devices=2, batch_size=4, steps=1)
    for name, before in one_before.items():
        assert torch.equal(before, two_before[name])
        one, two = before - one_after[name], before - two_after[name]  # learning rate times gradient
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert any((one_before[name] - one_after[name]).abs().max() > 1e-3 for name in one_before)
