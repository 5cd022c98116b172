"""``minrnn rollout``: a trained policy acts in its environment; results as a table, JSON, histogram or video."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minrnn_lightning.data.extra import rl_module
from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.errors import InputError
from minrnn_lightning.results import print_table, version, write_atomic, write_json, write_plot
from minrnn_lightning.rl.environments import arguments_of, environment_of
from minrnn_lightning.rl.rollout import Mode, RolloutResult, load_policy, rollout

PACKAGES = ("gymnasium", "mujoco", "torch", "minrnn-lightning")


def rollout_command(
    checkpoint: str,
    env: str | None = None,
    episodes: int = 10,
    target_return: str | None = None,
    mode: Mode = "carry",
    window: int | None = None,
    seed: int = 0,
    num_envs: int = 32,
    output: str | None = None,
    histogram: str | None = None,
    video: str | None = None,
    env_args: dict[str, Any] | None = None,
) -> None:
    """Let a trained policy act in a Gymnasium environment, and report its returns.

    Args:
        checkpoint: A .ckpt file of a PolicyTask or PPOTask that `minrnn fit` wrote, a folder of `minrnn publish`,
            or user/repository on the Hub.
        env: The environment, such as Hopper-v5; by default that of the training data.
        episodes: Number of episodes for each target.
        target_return: Target returns, separated by commas; by default the highest of the training data.
        mode: carry takes one step of the model for each of the environment; window recomputes the last steps.
        window: Number of steps that mode window recomputes; by default the length of the training data's rows.
        seed: Seed of the first episode; each further one adds 1.
        num_envs: Environments that are stepped together.
        output: A .json file for every return and length.
        histogram: A .png file for the distribution of the returns.
        video: A .gif or .mp4 file for the first episode of the first target.
        env_args: Arguments of the environment, such as '{"length": 50}'; by default those of the training.

    Raises:
        InputError: An option is out of range, the checkpoint or environment cannot be used, or a package is missing.
    """
    json_file = check_file("output", output, [".json"])
    histogram_file = check_file("histogram", histogram, [".png"])
    video_file = check_file("video", video, [".gif", ".mp4"])
    targets: list[float | None] = [] if target_return is None else parse_targets(target_return)
    task = load_policy(checkpoint)
    env_id = environment_of(task, env)
    if env_id is None:
        raise InputError(f"{checkpoint} does not say which environment it is for: give --env, such as Hopper-v5")
    if not task.condition_on_return:
        targets = [None]
    elif not targets and "max_return" in task.environment:
        targets = [task.environment["max_return"]]
    if window is None:
        window = task.environment.get("window", 20)
    options: dict[str, Any] = {
        "mode": mode,
        "window": window,
        "seed": seed,
        "num_envs": num_envs,
        "record": video_file is not None,
        "env_args": arguments_of(task, env_id) if env_args is None else env_args,
    }
    results = rollout(task, env_id, episodes, targets, **options)
    result = {"checkpoint": checkpoint, "seed": seed, "window": window if mode == "window" else None}
    result |= summary(results, env_id, mode)
    show(result)
    if json_file:
        write_json(json_file, result)
    if histogram_file:
        draw_histogram(result, histogram_file)
    if video_file:
        write_video(results[0], video_file)


def parse_targets(text: str) -> list[float | None]:
    """The numbers in ``3600`` or ``3600,1800``.

    Raises:
        InputError: One of them is not a finite number.
    """
    try:
        targets = [float(number) for number in text.split(",")]
    except ValueError:
        targets = [math.nan]
    if not all(map(math.isfinite, targets)):
        raise InputError(f"target_return must be numbers separated by commas, such as 3600,1800, got {text!r}")
    return [*targets]


def check_file(option: str, name: str | None, endings: Sequence[str]) -> Path | None:
    """The path of an output file.

    Raises:
        InputError: It has another ending, its folder does not exist, or a package that writes it is missing.
    """
    if name is None:
        return None
    file = Path(name)
    if file.suffix not in endings:
        raise InputError(f"{option} must be a file that ends in {' or '.join(endings)}, got {name!r}")
    if not file.parent.is_dir():
        raise InputError(f"{option} is {name!r}, but there is no folder {str(file.parent)!r}")
    if file.suffix in (".gif", ".mp4"):
        rl_module("imageio")
    if file.suffix == ".mp4" and not (find_spec("imageio_ffmpeg") or find_spec("av")):
        raise InputError("an .mp4 needs an encoder: pip install imageio-ffmpeg; a .gif needs none")
    if file.suffix == ".png" and find_spec("matplotlib") is None:
        raise InputError('a histogram needs matplotlib: pip install "minrnn-lightning[benchmark]"')
    return file


def summary(results: Sequence[RolloutResult], env_id: str, mode: str) -> dict[str, Any]:
    """The results in plain values, with mean and sample standard deviation of returns and scores."""
    rows = []
    for result in results:
        scores = [normalized_score(env_id, value) for value in result.returns]
        known = [score for score in scores if score is not None]
        rows.append(
            {
                "target": result.target,
                "return": statistics.mean(result.returns),
                "return_std": _deviation(result.returns),
                "score": statistics.mean(known) if known else None,
                "score_std": _deviation(known) if known else None,
                "length": statistics.mean(result.lengths),
                "steps_per_second": sum(result.lengths) / result.seconds,
                "returns": result.returns,
                "lengths": result.lengths,
            }
        )
    versions = {name: version(name) for name in PACKAGES}
    return {"env_id": env_id, "mode": mode, "threads": torch.get_num_threads(), "versions": versions, "targets": rows}


def show(result: dict[str, Any]) -> None:
    """Print the summary as a table, and what its scores mean."""
    env_id, rows = result["env_id"], result["targets"]
    versions = ", ".join(f"{name} {found}" for name, found in result["versions"].items() if found)
    cells = [
        {
            "target": "" if row["target"] is None else f"{row['target']:,g}",
            "return": f"{row['return']:,.1f} ± {row['return_std']:,.1f}",
            "lowest": f"{min(row['returns']):,.1f}",
            "highest": f"{max(row['returns']):,.1f}",
            "D4RL score": "" if row["score"] is None else f"{row['score']:.1f} ± {row['score_std']:.1f}",
            "length": f"{row['length']:,.0f}",
            "episodes": str(len(row["returns"])),
            "env steps/s": f"{row['steps_per_second']:,.0f}",
        }
        for row in rows
    ]
    print_table(f"{env_id}, {versions}, mode {result['mode']}", cells, width=120)
    print("Mean ± standard deviation over the episodes; undiscounted returns of complete episodes.")
    if rows[0]["score"] is not None:
        print(
            "The scores use D4RL's references, which were measured in an older MuJoCo and other versions of the "
            f"environments: those of {env_id} are not comparable with published D4RL scores."
        )


def draw_histogram(result: dict[str, Any], file: Path) -> None:
    """Draw a histogram of the returns, one colour for each target."""
    labels = ["" if row["target"] is None else f"target {row['target']:,g}" for row in result["targets"]]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.hist([row["returns"] for row in result["targets"]], bins=20, label=labels)
        axes.set(xlabel=f"return in {result['env_id']}", ylabel="episodes")
        if any(labels):
            axes.legend()

    write_plot(file, (6, 4), draw)


def write_video(result: RolloutResult, file: Path) -> None:
    """Write the images of an episode as .gif or .mp4.

    Raises:
        InputError: The encoder fails.
    """
    rate = result.frames_per_second
    options = {"duration": 1000 / rate, "loop": 0} if file.suffix == ".gif" else {"fps": rate}
    try:
        content = rl_module("imageio.v3").imwrite("<bytes>", result.frames, extension=file.suffix, **options)
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"{file} cannot be encoded: {error}") from error
    write_atomic(file, content)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
