"""``minrnn benchmark policy``: environment steps per second of policies that carry a state or repeat a window."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minrnn_lightning.commands.benchmark.measure import (
    Step,
    check_sizes,
    in_turns,
    parse_choice,
    parse_device,
    parse_lengths,
    timing,
    warm_up,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.rl.environments import Environment, make, take
from minrnn_lightning.rl.rollout import RecurrentActor, WindowActor
from minrnn_lightning.tasks import PolicyTask

Act = Callable[[Tensor, Tensor, Tensor], Tensor]  # of a policy, as in ``RecurrentActor``

TRANSFORMER = "attention, the window again"
ALONE = "the environment alone"


def policy(
    lengths: str = "20,100",
    env: str = "Hopper-v5",
    mixer: str = "mingru,minlstm",
    dim: int = 128,
    depth: int = 3,
    steps: int = 200,
    num_envs: int = 1,
    repeats: int = 5,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Time steps of an environment with policies that act in it.

    Ours carry their state, with one token a step (compact) or the three of Decision Transformer. The baseline is a
    transformer of the same width and depth, with Decision Transformer's tokens, that computes a window of the last
    steps again at each, as Decision Transformer does; beside them is the environment alone, with random actions. The
    weights are random, and an environment that ends starts again. The windows are full before the clock starts.

    Args:
        lengths: Steps of the transformer's window, separated by commas.
        env: A Gymnasium environment whose observations and actions are vectors of real numbers.
        mixer: Our kinds of sequence mixer, separated by commas.
        dim: Width of the models.
        depth: Blocks.
        steps: Steps that are timed together.
        num_envs: Environments side by side.
        repeats: How often each is timed, in turns.
        device: cpu, cuda or cuda:N, of the policies.
        output: Folder to write policy.json, policy.csv and policy.png to.
        compare: The policy.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below one, or a mixer or the environment unknown or of another kind.
    """
    mixers, windows, place = parse_choice("mixer", mixer, MIXERS), parse_lengths(lengths), parse_device(device)
    check_sizes(dim=dim, depth=depth, steps=steps, num_envs=num_envs, repeats=repeats)
    envs = [make(env) for _ in range(num_envs)]
    seen, done = envs[0].observation_space.shape, envs[0].action_space.shape
    if not (seen and done and len(seen) == len(done) == 1):
        raise InputError(f"{env} has no vectors of real numbers as observations and actions; give one like Hopper-v5")
    about = {"env": env, "dim": dim, "depth": depth, "steps": steps, "num_envs": num_envs, "repeats": repeats}
    report = Report("policy", ["ms", "env_steps_per_s"], about, place, output, compare)

    def task(mixer: str, layout: Any) -> PolicyTask:
        torch.manual_seed(0)
        return PolicyTask(seen[0], done[0], layout=layout, mixer=mixer, dim=dim, depth=depth).to(place).eval()

    acts: dict[str, Act] = {
        f"{name}, {layout}": RecurrentActor(task(name, layout), num_envs).act
        for name in mixers
        for layout in ("compact", "decision_transformer")
    }
    transformer = task("attention", "decision_transformer")
    with torch.inference_mode():
        for window in windows:
            acts |= {TRANSFORMER: WindowActor(transformer, num_envs, window).act}
            acts |= {ALONE: lambda *_: torch.rand(num_envs, done[0], device=place)}
            runs = {name: walk(act, envs, max(steps, window), place) for name, act in acts.items()}
            ready = warm_up(runs)
            for name, act in acts.items():
                runs[name] = walk(act, envs, steps, place)
            rows = []
            for name, seconds in in_turns({name: runs[name] for name in ready}, repeats, place).items():
                row = timing([second / steps for second in seconds], num_envs)
                row |= {"env_steps_per_s": 1e6 / row.pop("us_per_token")}
                rows.append({"name": name, "length": window, **row})
            report.add(f"A step of {num_envs} × {env}, the transformer's window {window:,}", rows, [TRANSFORMER])
    report.save()


def walk(act: Act, envs: Sequence[Environment], steps: int, device: torch.device) -> Step:
    """Steps in every environment, from its start on, again where it ends."""

    def run() -> None:
        observations = np.array([env.reset(seed=0)[0] for env in envs], dtype=np.float32)
        wanted, zero = (
            torch.full((len(envs),), 1000.0, device=device),
            torch.zeros(len(envs), dtype=torch.long, device=device),
        )
        for step in range(steps):
            actions = act(torch.from_numpy(observations).to(device), wanted, zero + step).cpu().numpy()
            for row, env in enumerate(envs):
                observation, _, ended = take(env, actions[row])
                observations[row] = env.reset()[0] if ended else observation

    return run
