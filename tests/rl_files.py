"""Made-up episodes, and files of them in D4RL's layout and Minari's, for the tests that read them."""

import warnings
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from minrnn_lightning.data.minari import new_sets


def make_steps(lengths, seed=0, observation_size=11, action_size=3, discrete=False) -> dict[str, np.ndarray]:
    """Arrays of episodes of these lengths, one after the other; the first observation counts the steps."""
    draw, steps = np.random.default_rng(seed), sum(lengths)
    observations = draw.standard_normal((steps, observation_size)).astype(np.float32)
    observations[:, 0] = np.arange(steps)
    actions = draw.uniform(-1, 1, (steps, action_size)).astype(np.float32)
    return {
        "observations": observations,
        "actions": draw.integers(action_size, size=steps) if discrete else actions,
        "rewards": draw.standard_normal(steps).astype(np.float32),
    }


def write_d4rl(file: Path, lengths, partial=0, seed=0, **changes) -> dict[str, np.ndarray]:
    """A file like D4RL's: gzip, an episode ends by terminal or timeout in turn, ``partial`` steps follow the last.

    ``changes`` replaces arrays, or with None leaves them out.
    """
    size = {"observation_size": 11, "action_size": 3} | {k: changes.pop(k) for k in list(changes) if "_size" in k}
    arrays = make_steps([*lengths, partial], seed, **size)
    ends, steps = np.cumsum(lengths, dtype=int) - 1, sum(lengths) + partial
    arrays["terminals"], arrays["timeouts"] = np.zeros((2, steps), dtype=bool)
    arrays["terminals"][ends[::2]] = arrays["timeouts"][ends[1::2]] = True
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as group:
        for name, array in arrays.items():
            group.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        group.create_dataset("next_observations", data=np.roll(arrays["rewards"], 1), compression="gzip")
        group.create_dataset("infos/qpos", data=np.zeros((steps, 6)), compression="gzip")
        group.create_dataset("metadata/algorithm", data=np.bytes_("SAC"))
    return arrays


def write_minari(storage: Path, name: str, env_id: str, lengths) -> None:
    """A data set of Minari, whose episodes are random actions in an environment."""
    with new_sets(storage), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env, buffers = gymnasium.make(env_id), []
        env.action_space.seed(0)
        for number, steps in enumerate(lengths):
            seen, done = [env.reset(seed=number)[0]], [env.action_space.sample() for _ in range(steps)]
            taken = [env.step(action) for action in done]
            buffers.append(
                EpisodeBuffer(
                    id=number,
                    observations=np.stack(seen + [observation for observation, *_ in taken]),
                    actions=np.stack(done),
                    rewards=[float(reward) for _, reward, *_ in taken],
                    terminations=[False] * steps,
                    truncations=[False] * (steps - 1) + [True],
                )
            )
        minari.create_dataset_from_buffers(name, buffers, env)
