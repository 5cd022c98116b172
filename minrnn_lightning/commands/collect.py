"""``minrnn collect``: trains a linear policy in an environment and saves its episodes as Minari data sets."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minrnn_lightning.errors import InputError
from minrnn_lightning.rl.environments import make
from minrnn_lightning.rl.random_search import Episode, LinearPolicy, Settings, Trial, run_episode, search

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = {  # by the name of the environment without its version
    "Hopper": Settings(8, 4, 0.01, 0.025, 100),
    "HalfCheetah": Settings(16, 8, 0.02, 0.03, 50),
}
OTHERS = Settings(16, 8, 0.02, 0.03, 100)
CHECKPOINTS, TRIES = 20, 5  # candidates for the policy of medium, and episodes to estimate the return of each


def collect(
    env: str = "Hopper-v5",
    output: str | None = None,
    namespace: str = "selfmade",
    episodes: int = 200,
    iterations: int | None = None,
    noise: float = 0.1,
    seed: int = 0,
) -> None:
    """Train a linear policy and save its episodes as three data sets of Minari, for TrajectoryDataModule.

    The policy ("teacher") is found by augmented random search. `NAMESPACE/ENVIRONMENT/medium-v0` are episodes of
    an intermediate policy, whose return in a few episodes is about half of that of the last one; `.../replay-v0` are
    episodes of the search up to it, evenly spaced; `.../medium-expert-v0` are the medium ones and as many of the
    last policy. The same seed and versions give the same data.

    Args:
        env: A Gymnasium environment whose observations and actions are vectors of real numbers.
        output: Folder of the data sets; by default $MINARI_DATASETS_PATH, else minari in the data folder.
        namespace: First part of the names of the data sets.
        episodes: Number of episodes to save of each policy, and of the search.
        iterations: Steps of the search; by default a number that suits the environment.
        noise: Standard deviation of the Gaussian noise on the actions of medium and expert.
        seed: Seed of the search and the episodes.

    Raises:
        InputError: An argument is out of range, the environment is unknown or unsuitable, or a data set exists.
    """
    for name, value in (("episodes", episodes), ("iterations", 1 if iterations is None else iterations)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 <= noise < float("inf") or seed < 0:
        raise InputError(f"noise and seed must be at least 0, got noise {noise}, seed {seed}")
    from minrnn_lightning.data.module import data_folder
    from minrnn_lightning.data.offline_rl.minari import ID, new_storage

    environment = make_environment(env)
    prefix = f"{namespace}/{environment.spec.name.lower()}"
    names = {quality: f"{prefix}/{quality}-v0" for quality in ("medium", "replay", "medium-expert")}
    storage = Path(output).expanduser() if output else new_storage(data_folder())
    for name in names.values():
        if not ID.fullmatch(name):
            raise InputError(
                f"namespace must be at least two letters, digits, -, _ and / between them, got {namespace!r}"
            )
        if (storage / name).exists():
            raise InputError(f"{storage / name} is there already; remove it, or give another --namespace or --output")
    settings = SETTINGS.get(environment.spec.name, OTHERS)
    if iterations is not None:
        settings = settings._replace(iterations=iterations)
    sets, teacher = _episodes(environment, settings, episodes, noise, seed)
    _save({names[quality]: found for quality, found in sets.items()}, environment, storage, noise, seed)
    _report({"teacher, no noise": teacher, **{names[quality]: found for quality, found in sets.items()}}, env)
    print(f"Saved in {storage}: minrnn fit --data TrajectoryDataModule --data.dataset {storage / names['medium']} ...")


def make_environment(env: str) -> Any:
    """A Gymnasium environment that a linear policy can act in.

    Raises:
        InputError: It is unknown or its spaces are not vectors, or the extra ``rl`` is not installed.
    """
    environment = make(env, disable_env_checker=True)
    from gymnasium.spaces import Box

    for what, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise InputError(f"{env} has {what} {space}; the teacher needs a vector of real numbers, Box")
    if environment.spec.max_episode_steps is None:
        raise InputError(f"{env} has no limit of steps, so that an episode might never end")
    return environment


def _episodes(
    environment: Any, settings: Settings, episodes: int, noise: float, seed: int
) -> tuple[dict[str, list[Episode]], list[Episode]]:
    """The episodes of each data set, and those of the last policy without noise."""
    policies: list[LinearPolicy] = []
    trials: list[list[Trial]] = []
    for number, (policy, tried) in enumerate(search(environment, settings, seed), 1):
        policies.append(policy)
        trials.append(tried)
        if number % max(1, settings.iterations // 10) == 0 or number == settings.iterations:
            mean = np.mean([trial.score for trial in tried])
            print(f"iteration {number} of {settings.iterations}: policies around it return {mean:,.1f}", flush=True)
    random = np.random.default_rng((seed, 1))

    def run(policy: LinearPolicy, count: int, noise: float) -> list[Episode]:
        return [run_episode(environment, policy, int(s), noise) for s in random.integers(2**31, size=count)]

    expert = run(policies[-1], episodes, noise)
    candidates = np.unique(np.linspace(0, len(policies) - 1, CHECKPOINTS).round().astype(int))
    distance = [abs(mean_return(run(policies[c], TRIES, noise)) - mean_return(expert) / 2) for c in candidates]
    chosen = int(candidates[np.argmin(distance)])
    medium = run(policies[chosen], episodes, noise)
    print(f"medium is the policy of iteration {chosen + 1}")
    before = [trial for tried in trials[: chosen + 1] for trial in tried]
    spread = np.unique(np.linspace(0, len(before) - 1, episodes).round().astype(int))
    replay = [run_episode(environment, before[number].policy, before[number].seed) for number in spread]
    sets = {"medium": medium, "replay": replay, "medium-expert": medium + expert}
    return sets, run(policies[-1], TRIES, 0.0)


def mean_return(episodes: Sequence[Episode]) -> float:
    """Mean over episodes of the sum of rewards."""
    return float(np.mean([episode.rewards.sum() for episode in episodes]))


def _save(sets: dict[str, list[Episode]], environment: Any, storage: Path, noise: float, seed: int) -> None:
    """Save the data sets: all of them or none."""
    from minrnn_lightning.data.extra import rl_module
    from minrnn_lightning.data.offline_rl.minari import new_sets

    minari = rl_module("minari")
    buffer = rl_module("minari.data_collector.episode_buffer").EpisodeBuffer
    with new_sets(storage), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about missing metadata, such as an e-mail address
        for name, found in sets.items():
            buffers = []
            for number, episode in enumerate(found):
                last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
                ends = {"terminations": last & episode.terminated, "truncations": last & episode.truncated}
                arrays = {name: getattr(episode, name) for name in ("observations", "actions", "rewards")}
                buffers.append(buffer(id=number, **arrays, **ends))
            minari.create_dataset_from_buffers(
                name,
                buffers,
                env=environment,
                algorithm_name="augmented random search",
                author="minrnn collect",
                description=f"self-generated, {environment.spec.id}, linear-policy data; "
                f"action noise {noise}, seed {seed}",
                requirements=[f"{package}=={version(package)}" for package in ("gymnasium", "mujoco")],
            )


def _report(sets: dict[str, list[Episode]], env: str) -> None:
    """Print the returns of each data set as a table."""
    from minrnn_lightning.data.offline_rl.d4rl import normalized_score
    from minrnn_lightning.results import print_table

    versions = ", ".join(f"{package} {version(package)}" for package in ("gymnasium", "mujoco"))
    cells = []
    for name, found in sets.items():
        returns, score = [episode.rewards.sum() for episode in found], normalized_score(env, mean_return(found))
        steps = sum(len(episode.rewards) for episode in found)
        cells.append(
            {
                "": name,
                "episodes": f"{len(found):,}",
                "steps": f"{steps:,}",
                "mean return": f"{np.mean(returns):,.1f}",
                "lowest": f"{min(returns):,.1f}",
                "highest": f"{max(returns):,.1f}",
                "score": "" if score is None else f"{score:.1f}",
            }
        )
    print_table(f"{env}, {versions}: self-generated linear-policy data", cells, width=120)
    if normalized_score(env, 0.0) is not None:
        print("score: of the mean return, on D4RL's scale; not comparable with scores of D4RL's own simulator")
