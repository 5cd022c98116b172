"""``minrnn rollout``: tables, files, films, and one sentence for bad input."""

import json
import sys

import numpy as np
import pytest
import torch
from acting import Ladder, fitted

from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.tasks import LanguageTask


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoint of a policy for Hopper after 6 steps."""
    folder = tmp_path_factory.mktemp("policy")
    trainer, _ = fitted(folder, "Hopper-v5", enable_checkpointing=False)
    trainer.save_checkpoint(folder / "hopper.ckpt")
    return folder / "hopper.ckpt"


@pytest.mark.parametrize(
    "words", [["--target_return", "-20,-3.5e2"], ["--target_return=-20,-3.5e2"]], ids=["apart", "="]
)
def test_negative_targets(minrnn, trained, tmp_path, words):
    words = [f"--checkpoint={trained}", *words, "--episodes=1", f"--output={tmp_path}/x.json"]
    code, _, errors = minrnn("rollout", *words)
    assert code == 0, errors
    assert [part["target"] for part in json.loads((tmp_path / "x.json").read_bytes())["targets"]] == [-20, -350]


def test_command(minrnn, trained, tmp_path):
    files = [f"--output={tmp_path}/x.json", f"--histogram={tmp_path}/x.png"]
    code, out, errors = minrnn("rollout", f"--checkpoint={trained}", "--episodes=3", "--target_return=20,3600", *files)
    assert code == 0, errors
    assert "Hopper-v5, gymnasium" in out
    assert "mujoco" in out
    assert "are not comparable with published D4RL scores" in " ".join(out.split())
    result = json.loads((tmp_path / "x.json").read_bytes())
    assert [part["target"] for part in result["targets"]] == [20, 3600]
    for part in result["targets"]:
        assert len(part["returns"]) == len(part["lengths"]) == 3
        assert part["return"] == pytest.approx(np.mean(part["returns"]))
        assert part["return_std"] == pytest.approx(np.std(part["returns"], ddof=1))
        assert part["score"] == pytest.approx(np.mean([normalized_score("Hopper-v5", r) for r in part["returns"]]))
        assert part["steps_per_second"] > 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    code, _, errors = minrnn("rollout", f"--checkpoint={trained}", "--episodes=1", "--mode=window", files[0])
    assert code == 0, errors
    result = json.loads((tmp_path / "x.json").read_bytes())
    assert (result["mode"], result["window"], result["targets"][0]["target"]) == ("window", 4, 25)


def test_arguments_are_those_of_the_data(minrnn, tmp_path):
    trainer, _ = fitted(tmp_path, "CartPole-v1", {"max_episode_steps": 3}, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    old = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del old["environment"]["env_args"]  # as in checkpoints of before
    torch.save(old, tmp_path / "old.ckpt")

    def lengths(name, *words):
        words = f"--checkpoint={tmp_path}/{name}.ckpt", "--episodes=2", f"--output={tmp_path}/x.json", *words
        code, _, errors = minrnn("rollout", *words)
        assert code == 0, errors
        return json.loads((tmp_path / "x.json").read_bytes())["targets"][0]["lengths"]

    assert lengths("new") == [3, 3]
    assert lengths("new", '--env_args={"max_episode_steps": 4}') == [4, 4]
    assert min(lengths("old")) > 4


@pytest.mark.parametrize("words", [[], ['--env_args={"render_mode": null}']])
def test_command_films(minrnn, tmp_path, words):
    trainer, _ = fitted(tmp_path, "Ladder-v0", enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    code, _, errors = minrnn(
        "rollout", f"--checkpoint={tmp_path}/x.ckpt", "--episodes=1", f"--video={tmp_path}/x.gif", *words
    )
    assert code == 0, errors
    assert (tmp_path / "x.gif").read_bytes().startswith(b"GIF89a")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("without", ["render mode", "driver"])
def test_no_episode_runs_for_a_film_that_cannot_be_drawn(minrnn, tmp_path, monkeypatch, without):
    trainer, _ = fitted(tmp_path, "Ladder-v0", enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")

    def fail(self, *args):
        raise RuntimeError("no display")

    monkeypatch.setattr(Ladder, "step", fail)
    monkeypatch.setattr(Ladder, "render", fail)
    message = "Ladder-v0 cannot be rendered here (no display): images of MuJoCo need OpenGL"
    if without == "render mode":
        monkeypatch.setattr(Ladder, "metadata", {"render_modes": ["human"]})
        message = "Ladder-v0 has no images to record (no rgb_array in its render_modes): leave out the video"
    code, _, errors = minrnn("rollout", f"--checkpoint={tmp_path}/x.ckpt", "--episodes=1", f"--video={tmp_path}/x.gif")
    assert code == 1
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target_return=high"], "target_return must be numbers separated by commas, such as 3600,1800, got 'high'"),
        (["--episodes=0"], "episodes must be at least 1, got 0"),
        (["--env=Hoper-v5"], "Gymnasium cannot make the environment 'Hoper-v5'"),
        (["--env=HalfCheetah-v5"], "HalfCheetah-v5 has 17 numbers in an observation"),
        (["--mode=fast"], "mode"),
        (["--output=x.csv"], "output must be a file that ends in .json, got 'x.csv'"),
        (["--video=nowhere/x.gif"], "video is 'nowhere/x.gif', but there is no folder 'nowhere'"),
        (["--video=x.avi"], "video must be a file that ends in .gif or .mp4"),
        (["--checkpoint=nowhere.ckpt"], "nowhere.ckpt: there is no such file"),
    ],
)
def test_command_refuses(minrnn, trained, words, message):
    code, out, errors = minrnn("rollout", f"--checkpoint={trained}", *words)
    assert (code, out) == (1 if "mode" not in words[0] else 2, "")
    assert errors.startswith("minrnn: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_command_refuses_other_files(minrnn, trained, tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(trained.read_bytes()[:5000])
    assert (
        "torn.ckpt is not a checkpoint of plain tensors" in minrnn("rollout", f"--checkpoint={tmp_path}/torn.ckpt")[2]
    )
    whole = torch.load(trained, weights_only=True)
    language = LanguageTask(5, 5, dim=8, depth=1)
    other = {
        **whole,
        "task": "LanguageTask",
        "state_dict": language.state_dict(),
        "hyper_parameters": dict(language.hparams),
    }
    torch.save(other, tmp_path / "words.ckpt")
    code, _, errors = minrnn("rollout", f"--checkpoint={tmp_path}/words.ckpt")
    assert (code, errors.count("\n")) == (1, 1)
    assert "words.ckpt holds a LanguageTask; only a PolicyTask can act in an environment" in errors
    torch.save({**whole, "environment": {"env_id": "antigravity:Hopper-v5"}}, tmp_path / "imports.ckpt")
    errors = minrnn("rollout", f"--checkpoint={tmp_path}/imports.ckpt", "--target_return=1")[2]
    assert "'antigravity:Hopper-v5', which the checkpoint or its data set names, would import a module" in errors
    assert "antigravity" not in sys.modules
    torch.save({**whole, "environment": {}}, tmp_path / "homeless.ckpt")
    assert "does not say which environment it is for" in minrnn("rollout", f"--checkpoint={tmp_path}/homeless.ckpt")[2]


def test_what_is_missing_is_named(minrnn, trained, monkeypatch, tmp_path):
    monkeypatch.setattr("minrnn_lightning.commands.rollout.find_spec", lambda name: None)
    words = ["rollout", f"--checkpoint={trained}", "--episodes=1"]
    assert "an .mp4 needs an encoder: pip install imageio-ffmpeg" in minrnn(*words, f"--video={tmp_path}/x.mp4")[2]
    assert "a histogram needs matplotlib: pip install" in minrnn(*words, f"--histogram={tmp_path}/x.png")[2]
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    code, _, errors = minrnn(*words)
    assert (code, errors.count("\n")) == (1, 1)
    assert 'needs the package gymnasium: pip install "minrnn-lightning[rl]"' in errors
