"""``RolloutDataModule``: minibatches of rollouts that the policy in training collects in Gymnasium environments."""

from __future__ import annotations

import statistics as statistics_of
import time
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minrnn_lightning.batches import EpisodeBatch, RolloutBatch
from minrnn_lightning.data.extra import rl_module
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import check_memory
from minrnn_lightning.nn import select_state
from minrnn_lightning.rl.collector import Collector
from minrnn_lightning.rl.rollout import rollout
from minrnn_lightning.rl.spaces import PolicySpaces, make_flat, policy_spaces
from minrnn_lightning.tasks import PPOTask

EVALUATION_SEED = 1_000_000  # of the first episode


class RolloutDataModule(BaseDataModule):
    """Rollouts of the policy in training, for ``PPOTask``, and complete episodes for its evaluation.

    The order is that of PPO: a rollout is collected when the loader is asked for a batch and the one before is used up,
    with the weights after the last step of the optimizer; then come its minibatches, ``epochs`` times all of its rows
    in a random order. Nothing is prefetched, so that no rollout is of an older policy. Where the policy diverges from
    the one that acted (``target_kl`` of the task), the rest of the minibatches is left out. Each process has
    environments of its own.

    Actions, the order of the rows and the seeds of the environments come from a generator of this module, which
    depends on the global seed and the process alone. A checkpoint has that of the first process, from which the others
    get new seeds, the number of steps so far and, in the task, the statistics; it does not have the environments, which
    no interface can save: a resumed run starts with new episodes and a new rollout, so that it does not equal one that
    was never interrupted.

    Validation and test run ``eval_episodes`` episodes of the most likely actions, from the same seeds every time.

    Args:
        env_id: A Gymnasium environment, such as ``minrnn/TMaze-v0``; ``module:Name-v0`` imports the module first.
        env_args: Arguments of the environment, such as ``{length: 50}``.
        num_envs: Environments that are stepped together, the rows of a rollout, in each process.
        length: Steps in a rollout; gradients reach as far back.
        epochs: Number of times that a rollout is used.
        minibatches: Number of minibatches into which its rows are divided.
        eval_episodes: Episodes of an evaluation.
        steps_per_epoch: Minibatches in an epoch of the Trainer; the stream is endless.

    Raises:
        InputError: A size is out of range, ``minibatches`` does not divide ``num_envs``, or the environment is unknown
            or has spaces that a policy cannot use.
    """

    batch_type = RolloutBatch

    def __init__(
        self,
        env_id: str,
        env_args: dict[str, Any] | None = None,
        num_envs: int = 16,
        length: int = 128,
        epochs: int = 4,
        minibatches: int = 4,
        eval_episodes: int = 20,
        steps_per_epoch: int = 1000,
    ) -> None:
        sizes = {"num_envs": num_envs, "epochs": epochs, "minibatches": minibatches}
        for name, value in {**sizes, "eval_episodes": eval_episodes, "steps_per_epoch": steps_per_epoch}.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if num_envs % minibatches:
            raise InputError(
                f"num_envs must be a multiple of minibatches, which consist of whole rows, got num_envs {num_envs} and "
                f"minibatches {minibatches}"
            )
        if not all(isinstance(name, str) for name in env_args or {}):
            raise InputError(f"env_args must be arguments by name, such as {{length: 50}}, got {env_args}")
        super().__init__(num_envs // minibatches, length)
        self.env_id = env_id
        self.env_args = dict(env_args or {})
        self.num_envs, self.epochs, self.minibatches = num_envs, epochs, minibatches
        self.eval_episodes, self.steps_per_epoch = eval_episodes, steps_per_epoch
        self.generator: torch.Generator | None = None
        self.collector: Collector | None = None
        self.earlier_steps = 0  # in the environments, before this run was resumed
        self.statistics: dict[str, float] = {}
        self._rollout: RolloutBatch | None = None
        self._pending: deque[Tensor] = deque()  # rows of the minibatches to come
        self._handed_over = 0.0
        self._update_seconds: list[float] = []

    @cached_property
    def spaces(self) -> PolicySpaces:
        """Sizes of the environment; one is made for it."""
        env = make_flat(self.env_id, **self.env_args)
        try:
            return policy_spaces(env, self.env_id)
        finally:
            env.close()

    @property
    def input_size(self) -> int:
        """Components of an observation."""
        return self.spaces.observation_size

    @property
    def output_size(self) -> int:
        """Number of actions, the sum over all choices, or components of an action."""
        return self.spaces.output_size

    @property
    def actions(self) -> str | list[int]:
        """The type of the actions, as the argument of ``PPOTask``."""
        return self.spaces.actions

    @property
    def action_low(self) -> Any:
        """Lower bounds of continuous actions, float32 (action_size,); None for others."""
        return self.spaces.low

    @property
    def action_high(self) -> Any:
        """Upper bounds of continuous actions, float32 (action_size,); None for others."""
        return self.spaces.high

    @property
    def env_steps(self) -> int:
        """Steps in the environments of all processes, over all resumed runs."""
        own = 0 if self.collector is None else self.collector.steps
        return self.earlier_steps + own * self.processes[1]

    @property
    def collect_seconds_per_batch(self) -> float | None:
        """Seconds that the last rollout took, for each minibatch of all its epochs; None before the first."""
        return None if self.collector is None else self.collector.seconds / (self.epochs * self.minibatches)

    def setup(self, stage: str) -> None:
        """Seed the generator, and refuse rollouts for which there is no memory."""
        size = self.num_envs * self.length * self.input_size
        check_memory(4 * size, f"a rollout of num_envs {self.num_envs} × length {self.length}")
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(self.global_seed + self.processes[0])

    def teardown(self, stage: str) -> None:
        """Close the environments."""
        if self.collector is not None:
            self.earlier_steps = self.env_steps
            self.collector.envs.close()
        self.collector, self._rollout = None, None
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """The generator and the number of steps so far."""
        assert self.generator is not None
        return {"generator": self.generator.get_state(), "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the generator and the number of steps of a checkpoint.

        The checkpoint has the generator of the first process; each other one gets a seed from it, so that no two
        processes collect the same rollouts.
        """
        assert self.generator is not None
        self.generator.set_state(state["generator"])
        rank = self.processes[0]
        if rank:
            self.generator.manual_seed(int(torch.randint(2**63 - 1, (rank,), generator=self.generator)[-1]))
        self.earlier_steps = state["env_steps"]

    def train_dataloader(self) -> DataLoader[Any]:
        """The endless stream of minibatches."""
        return self.loader(_Stream(self.next_minibatch, self.steps_per_epoch), stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """One batch of complete episodes."""
        return self.loader(_Stream(self.episodes, 1))

    def test_dataloader(self) -> DataLoader[Any]:
        """The same as for the validation."""
        return self.val_dataloader()

    @property
    def task(self) -> PPOTask:
        """The task in training.

        Raises:
            InputError: There is none, or it is another one.
        """
        task = self.trainer.lightning_module if self.trainer else None
        if not isinstance(task, PPOTask):
            raise InputError("RolloutDataModule needs a Trainer with a PPOTask, whose policy it runs")
        return task

    def next_minibatch(self) -> RolloutBatch:
        """The next minibatch; collects a rollout first where the last one is used up or the policy has diverged."""
        if self._handed_over:
            self._update_seconds.append(time.perf_counter() - self._handed_over)
        if not self._pending or self.task.diverged():
            self._collect()
        assert self._rollout is not None
        rows = self._pending.popleft()
        parts = (select_state(part, rows) for part in self._rollout)
        self._handed_over = time.perf_counter()
        return RolloutBatch(*parts)

    def _collect(self) -> None:
        assert self.generator is not None
        if self.collector is None:
            self.collector = self._new_collector()
        before = self.collector.steps
        self._rollout = self.collector.collect(self.length)
        device = self._rollout.values.device
        orders = [torch.randperm(self.num_envs, generator=self.generator).to(device) for _ in range(self.epochs)]
        self._pending = deque(rows for order in orders for rows in order.chunk(self.minibatches))
        self._report(self.collector.steps - before)
        self._update_seconds.clear()

    def _new_collector(self) -> Collector:
        vector = rl_module("gymnasium.vector")
        make: Callable[[], Any] = partial(make_flat, self.env_id, **self.env_args)
        envs = vector.SyncVectorEnv([make] * self.num_envs, autoreset_mode=vector.AutoresetMode.SAME_STEP)
        seeds = torch.randint(2**31, (self.num_envs,), generator=self.generator).tolist()
        return Collector(envs, self.task, cast("torch.Generator", self.generator), seeds)

    def _report(self, steps: int) -> None:
        """Set the figures that the task logs, after some steps in the environments of this process."""
        assert self.collector is not None
        rollout_steps = self.num_envs * self.length
        self.statistics["env_steps"] = float(self.env_steps)
        self.statistics["collect_steps_per_s"] = rollout_steps / self.collector.seconds
        if self._update_seconds:  # the median, since a validation may be in between
            seconds = statistics_of.median(self._update_seconds) * self.epochs * self.minibatches
            self.statistics["update_steps_per_s"] = rollout_steps / seconds
        if self.collector.finished:
            returns, lengths = zip(*self.collector.finished, strict=True)
            self.statistics["train/return"] = statistics_of.fmean(returns)
            self.statistics["train/length"] = statistics_of.fmean(lengths)

    def episodes(self) -> EpisodeBatch:
        """Complete episodes of the most likely actions; one of them where the Trainer tries everything out."""
        brief = self.trainer is not None and (self.trainer.sanity_checking or self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        count = 1 if brief else self.eval_episodes
        options: dict[str, Any] = {"env_args": self.env_args, "seed": EVALUATION_SEED}
        (result,) = rollout(self.task, self.env_id, count, **options)
        return EpisodeBatch(torch.tensor(result.returns), torch.tensor(result.lengths, dtype=torch.float32))


class _Stream(Dataset[Any]):
    """Batches that a function makes when they are asked for."""

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        return self.make()
