"""The README's Python examples run, its commands parse, and the links of all pages have targets."""

import re
import shlex
from pathlib import Path

import pytest
from forked import run
from this_process import use_this_process

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in README.splitlines() if re.match(r"minrnn \w+ --", line)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], encoding="utf-8")
    run([script], tmp_path / "out", {"MINRNN_DATA_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("minrnn fit")])
def test_fit_command_parses(minrnn, command, tmp_path, monkeypatch, checkpoint, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "play.txt").write_text(text.read_text())
    code, out, errors = minrnn(*shlex.split(command)[1:], "--print_config")
    assert code == 0, errors
    assert ("my_texts" in out) == ("my_texts" in command)


def test_generate_command_runs(minrnn, checkpoint, tmp_path, monkeypatch):
    (command,) = (c for c in COMMANDS if c.startswith("minrnn generate"))
    monkeypatch.chdir(tmp_path)
    args = shlex.split(command)[1:]
    path = Path(args[args.index("--checkpoint") + 1])
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint.read_bytes())
    args[args.index("--prompt") + 1] = "the king"
    code, out, errors = minrnn(*args, "--max_new_tokens=5")
    assert code == 0, errors
    assert out.startswith("the king")


@pytest.mark.slow
def test_compare_command_runs(minrnn, tmp_path, monkeypatch):
    (command,) = (c for c in COMMANDS if c.startswith("minrnn compare"))
    use_this_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    options = [
        "--mixers=mingru+attention",
        "--seeds=0",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
    ]
    code, _, errors = minrnn(*shlex.split(command)[1:], *options)
    assert code == 0, errors
    assert "mingru+attention" in (tmp_path / "results/compare.md").read_text()


def test_collect_command_runs(minrnn, tmp_path, monkeypatch):
    (command,) = (c for c in COMMANDS if c.startswith("minrnn collect"))
    monkeypatch.chdir(tmp_path)
    code, _, errors = minrnn(*shlex.split(command)[1:], "--episodes=2", "--iterations=2")
    assert code == 0, errors
    assert (tmp_path / "episodes/selfmade/hopper/medium-expert-v0/data/metadata.json").is_file()


def test_rollout_command_parses(minrnn, tmp_path, monkeypatch):
    commands = [c for c in COMMANDS if c.startswith("minrnn rollout")]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        (checkpoint,) = re.findall(r"--checkpoint (\S+)", command)
        assert f"{checkpoint}: there is no such file" in minrnn(*shlex.split(command)[1:])[2]
    assert len(commands) == 2


def test_the_two_set_up_commands_are_there():
    commands = re.findall(r"^python -m pip install .* && .*$", README, re.MULTILINE)
    assert [command.split(" && ")[1] for command in commands] == [
        "minrnn fit --config recipes/shakespeare.yaml",
        "python -m pytest",
    ]


PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "recipes").rglob("*.md") if "results" not in page.parts)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub derives from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_have_targets(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_readme_has_links_and_a_picture():
    assert re.search(r"!\[[^]]+\]\(docs/\w+\.png\)", README)
    assert "](recipes/README.md" in README
