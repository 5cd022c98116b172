"""``minrnn benchmark policy``: environment steps per second of policies with a state, and of ones with a window."""

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
from minrnn_lightning.rl.environments import Environment, make, step_env
from minrnn_lightning.rl.rollout import RecurrentActor, WindowActor
from minrnn_lightning.tasks import PolicyTask

Act = Callable[[Tensor, Tensor, Tensor], Tensor]  # that of a policy, as in ``RecurrentActor``

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
    """Benchmark policies in an environment: time of an environment step.

    Policies with this package's mixers carry a state, with one token a step (compact) or the three of Decision
    Transformer. The baseline is a Transformer of the same width and depth, with Decision Transformer's tokens, that
    computes a window of the last steps again at each step, as Decision Transformer does. The environment alone, with
    random actions, is timed too. The weights are random, and an episode that ends is followed by the next. The windows
    are full before the clock starts.

    Args:
        lengths: Environment steps in the Transformer's window, separated by commas.
        env: A Gymnasium environment whose observations and actions are vectors of real numbers.
        mixer: Mixers of this package, separated by commas.
        dim: Width of the models.
        depth: Number of blocks.
        steps: Environment steps that are timed together.
        num_envs: Number of environments, for which a policy acts at once.
        repeats: Number of times that each is timed, in turns.
        device: Device of the policies: cpu, cuda or cuda:N.
        output: Folder to write policy.json, policy.csv and policy.png to.
        compare: The policy.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, a mixer or the environment is unknown, or its spaces are not vectors.
    """
    mixers, windows = parse_choice("mixer", mixer, MIXERS), parse_lengths(lengths)
    torch_device = parse_device(device)
    check_sizes(dim=dim, depth=depth, steps=steps, num_envs=num_envs, repeats=repeats)
    envs = [make(env) for _ in range(num_envs)]
    observed, acted = envs[0].observation_space.shape, envs[0].action_space.shape
    if not (observed and acted and len(observed) == len(acted) == 1):
        raise InputError(
            f"env must have vectors of real numbers as observations and actions, such as Hopper-v5, got {env}"
        )
    about = {"env": env, "dim": dim, "depth": depth, "steps": steps, "num_envs": num_envs, "repeats": repeats}
    report = Report("policy", ["ms", "env_steps_per_s"], about, torch_device, output, compare)

    def task(mixer: str, layout: Any) -> PolicyTask:
        torch.manual_seed(0)
        return (
            PolicyTask(observed[0], acted[0], layout=layout, mixer=mixer, dim=dim, depth=depth).to(torch_device).eval()
        )

    acts: dict[str, Act] = {
        f"{name}, {layout}": RecurrentActor(task(name, layout), num_envs).act
        for name in mixers
        for layout in ("compact", "decision_transformer")
    }
    transformer = task("attention", "decision_transformer")
    with torch.inference_mode():
        for window in windows:
            acts |= {TRANSFORMER: WindowActor(transformer, num_envs, window).act}
            acts |= {ALONE: lambda *_: torch.rand(num_envs, acted[0], device=torch_device)}
            runs = {name: walk(act, envs, max(steps, window), torch_device) for name, act in acts.items()}
            ready = warm_up(runs)
            for name, act in acts.items():
                runs[name] = walk(act, envs, steps, torch_device)
            rows = []
            for name, seconds in in_turns({name: runs[name] for name in ready}, repeats, torch_device).items():
                row = timing([second / steps for second in seconds], num_envs)
                row |= {"env_steps_per_s": 1e6 / row.pop("us_per_token")}
                rows.append({"name": name, "length": window, **row})
            report.add(f"A step of {num_envs} × {env}, the transformer's window {window:,}", rows, [TRANSFORMER])
    report.save()


def walk(act: Act, envs: Sequence[Environment], steps: int, device: torch.device) -> Step:
    """Steps in every environment from its reset on, which is reset again at the end of an episode."""

    def run() -> None:
        observations = np.array([env.reset(seed=0)[0] for env in envs], dtype=np.float32)
        returns_to_go = torch.full((len(envs),), 1000.0, device=device)
        zero = torch.zeros(len(envs), dtype=torch.long, device=device)
        for step in range(steps):
            actions = act(torch.from_numpy(observations).to(device), returns_to_go, zero + step).cpu().numpy()
            for row, env in enumerate(envs):
                observation, _, ended = step_env(env, actions[row])
                observations[row] = env.reset()[0] if ended else observation

    return run
