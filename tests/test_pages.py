"""The pages of the site run from top to bottom: every Python block and every command, at a small size."""

import hashlib
import re
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from old_torch import every_export
from this_process import use_this_process

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "clusters",
    "export",
    "hub",
    "rl",
}  # commands/test_clusters.py, test_docs.py, integrations/test_examples.py
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

RUN = [
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
]
MODEL = ["--model.match_parameters=null", "--model.dim=16", "--model.depth=1"]
TRAINED = ["--model.expansion=2", "--model.mlp_ratio=4", "--model.mlp_kernel_size=0"]  # as the fixture's checkpoint
TEXT = [*RUN, *MODEL, "--data.length=16", "--data.batch_size=4", "--trainer.callbacks=null"]
ACTING = ["--data.num_envs=2", "--data.length=8", "--data.epochs=1", "--data.minibatches=1", "--data.eval_episodes=2"]
SMALL = {  # what makes a command small, by words that it contains; the first that fits
    "--print_config": [],
    "hardware/ddp": ["--print_config"],
    "hardware/sequence_parallel": ["--print_config"],
    "StreamingTextDataModule": [*RUN, *MODEL, "--data.length=16", "--data.batch_size=4", "--data.held_out_rows=20"],
    "--model.chunk": [*TEXT, "--model.chunk=8"],
    "benchmark chunks": ["--lengths=8", "--chunk=4", "--dim=4", "--repeats=1"],
    "compare --config rl/": [*RUN, *ACTING, "--mixers=minrnn_lightning.nn.mixers.PointwiseMixer"],
    "rl/ppo_memory": [*RUN, *ACTING],
    "rl/hopper_selfmade": [*RUN, *MODEL, "--data.length=16", "--trainer.callbacks=null"],
    "--config mqar": [*RUN, "--mixers=attention", "--data.length=16", "--data.batch_size=4"],
    "copying.CopyDataModule": [*RUN, "--data.batch_size=4"],
    "--ckpt_path last.ckpt": [*TEXT, *TRAINED],
    "test --config": [*TEXT, "--trainer.limit_test_batches=1"],
    "--ckpt_path": [*TEXT, "--trainer.max_steps=3"],
    "mingru+attention": [*TEXT, "--model.depth=2", "--seeds=0", "--mixers=mingru+attention"],
    "--tune": [*TEXT, "--mixers=mingru", "--model.muon_lr=null"],
    "--equal_time": [*TEXT, "--mixers=mingru"],
    "--config shakespeare": TEXT,
    "generate": ["--max_new_tokens=3"],
    "collect": ["--episodes=2", "--iterations=2"],
    "rollout": ["--episodes=1"],
    "benchmark layer": ["--lengths=4", "--batch_size=1", "--dim=4", "--repeats=1"],
    "benchmark accuracy": ["--lengths=16", "--dim=2"],
    "export": [],
    "recipes": [],
}


def small(command: str) -> list[str]:
    """The arguments of ``minrnn`` for a command of a page, at a small size."""
    _, _, args = command.partition("minrnn_lightning " if command.startswith("python -m") else "minrnn ")
    return [*shlex.split(args), *next(more for words, more in SMALL.items() if words in args)]


@pytest.fixture
def folder(checkpoint, text, tmp_path, monkeypatch):
    """The working folder, with a checkpoint, texts, and a corpus in place of Shakespeare's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    use_this_process(monkeypatch)
    monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path / "data"))
    shutil.copy(checkpoint, "last.ckpt")
    for path, content in (
        ("my_texts/play.txt", text.read_bytes()),
        ("data/tinyshakespeare/input.txt", text.read_bytes()),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    monkeypatch.setattr("minrnn_lightning.data.text.shakespeare.SHA256", digest)
    return tmp_path


def run(command: str, minrnn: Callable[..., tuple[int, str, str]]) -> None:
    """Run a command, up to the refusal of a logger whose package is not installed."""
    code, out, errors = minrnn(*small(command))
    logger = re.search(r"--trainer.logger (Wandb|MLFlow)Logger", command)
    if logger and find_spec(logger[1].lower()) is None:
        assert f"{logger[1]}Logger cannot be used" in errors
    else:
        assert code == 0, f"{command}\n{errors}"
        assert out, command


@pytest.mark.parametrize("page", sorted(set(PAGES) - ELSEWHERE))
def test_page_runs(page, folder, minrnn, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = {"__name__": "page"}
    torch.manual_seed(0)
    for language, block in FENCE.findall(PAGES[page]):
        if "import optuna" in block:
            pytest.importorskip("optuna")
            block = block.replace("STEPS, TRIALS = 400, 20", "STEPS, TRIALS = 4, 2").replace('"480k"', '"120k"')
            names["__name__"] = "__main__"
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", block):
                (folder / file[1]).write_text(block, encoding="utf-8")
            exec(compile(block, f"{page}.md", "exec"), names)
        elif language == "":
            for command in block.splitlines():
                run(command, minrnn)


@every_export
def test_what_was_asked_elsewhere(folder):
    page = PAGES["asked"]
    lines = re.findall(r"\| `([^`]+)`[^|`]*(?:`[^`]*`[^|]*)?\|$", page, re.MULTILINE)
    assert len(lines) == len(re.findall(r"^\|", page, re.MULTILINE)) - 2
    names = {}
    exec(FENCE.search(page)[2], names)
    for line in lines:
        exec(line, names)
    assert names["y"].shape == (4, 100, 32)


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    recipes = {page for page in (ROOT / "recipes").rglob("*.md") if "results" not in page.relative_to(ROOT).parts}
    assert {f"{page}.md" for page in PAGES} <= set(listed)
    assert sum(page.startswith("results/") for page in listed) == len(recipes)
    assert sum(page.startswith("notebooks/") for page in listed) == len(list((ROOT / "notebooks").glob("*.ipynb")))


def test_yaml_is_a_recipe(folder, minrnn):
    for page in PAGES.values():
        for language, block in FENCE.findall(page):
            if language == "yaml":
                Path("more.yaml").write_text(block, encoding="utf-8")
                code, out, errors = minrnn("fit", "--config=shakespeare_small", "--config=more.yaml", "--print_config")
                assert code == 0, errors
                assert "WandbLogger" in out


def test_every_block_is_code_to_run_or_text():
    found = {language for page in set(PAGES) - ELSEWHERE for language, _ in FENCE.findall(PAGES[page])}
    assert found == {"", "python", "text", "yaml"}
