"""``PPOTask``: proximal policy optimisation of a recurrent policy, in parallel over whole rollouts."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from minrnn_lightning.batches import EpisodeBatch, RolloutBatch, data_facts
from minrnn_lightning.errors import InputError
from minrnn_lightning.lightning_internals import logs_step
from minrnn_lightning.nn.state import State
from minrnn_lightning.tasks.action_bounds import exact
from minrnn_lightning.tasks.action_distributions import CategoricalActions, GaussianActions, choices_of
from minrnn_lightning.tasks.metrics import Mean
from minrnn_lightning.tasks.observation_encoder import ObservationEncoder
from minrnn_lightning.tasks.ppo_functional import approximate_kl, normalized, policy_loss, value_loss
from minrnn_lightning.tasks.running_moments import Moments, divisor, moments, update
from minrnn_lightning.tasks.task import Task

LARGEST = 10.0  # of normalised observations and rewards, either way
OFFLINE_STEPS = 1_000_000  # weight of statistics that came with the weights of a PolicyTask, in steps
BOUNDS = ("action_low", "action_high")


class PPOTask(Task):
    """A recurrent policy and its value function, which share a backbone, trained by proximal policy optimisation.

    A batch is a ``RolloutBatch``: rows of time steps in environments, the state of the policy before the first of
    them, and ``reset`` where episodes start. The new probabilities of its actions come from one parallel pass over the
    rows; they equal those of the steps in the environment, as long as the weights are the same. ``RolloutDataModule``
    collects the rows and says when. Evaluation reports complete episodes of the most likely actions.

    Observations are normalised with their mean and deviation so far, rewards with the deviation of their discounted
    sums; both are kept in the checkpoint and constant within a rollout and the training on it.

    Logged: ``train/loss`` and its parts ``train/policy_loss``, ``train/value_loss`` and ``train/entropy``; ``train/kl``
    and ``train/clip_fraction``; ``train/return`` and ``train/length``, means over the episodes that ended in the last
    rollout, with random actions; ``env_steps`` so far, ``collect_steps_per_s`` and ``update_steps_per_s``, steps in the
    environments per second of collecting them and of all the training on them; ``val/return`` and ``val/length``.

    Sources: Schulman et al. 2017, https://arxiv.org/abs/1707.06347; see ``ppo_functional`` for the equations.

    Args:
        input_size: Components of an observation; the data module sets it on the command line.
        output_size: Number of discrete actions, the sum over several choices, or components of an action; the data
            module sets it on the command line.
        actions: ``discrete`` for one choice, ``continuous`` for vectors within bounds, or the numbers of possible
            actions of several choices (multi-discrete).
        previous_action: Whether the previous action is an input too, as in the compact layout of ``PolicyTask``.
        gamma: Discount of later rewards.
        gae_lambda: Weight of longer estimates of the advantage.
        clip: Ratio of new to old probability beyond 1 ± clip at which the loss no longer changes.
        value_clip: Change of a value at which its loss no longer falls; null for none.
        value_coefficient: Weight of the loss of the values.
        entropy_coefficient: Weight of the entropy of the policy, which is to stay high.
        normalize_advantages: Whether advantages have mean 0 and deviation 1 in a minibatch.
        normalize_observations: Whether observations are normalised.
        normalize_rewards: Whether rewards are scaled.
        target_kl: Divergence from the policy that acted at which the rest of the training on a rollout is left out;
            null for none.
        options: Of ``Task``; with ``init_from``, also a ``PolicyTask``, whose encoder, backbone, head and statistics of
            observations are loaded where they fit. One of the compact layout, with neither returns nor timesteps as
            inputs, then acts as before if ``previous_action`` is set. ``dropout`` is not possible.

    Raises:
        InputError: A size or coefficient is out of range, or the mixer or the type of actions unknown.
    """

    batch_type = RolloutBatch
    observation_mean: Tensor
    observation_std: Tensor
    observation_count: Tensor
    return_mean: Tensor
    return_std: Tensor
    return_count: Tensor
    distribution: CategoricalActions | GaussianActions
    condition_on_return = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        actions: Literal["discrete", "continuous"] | list[int] = "discrete",
        previous_action: bool = False,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.01,
        normalize_advantages: bool = True,
        normalize_observations: bool = True,
        normalize_rewards: bool = True,
        target_kl: float | None = None,
        **options: Any,
    ) -> None:
        _check_shares(gamma=gamma, gae_lambda=gae_lambda)
        _check_positive(clip=clip, value_clip=value_clip, target_kl=target_kl)
        if not (0 <= value_coefficient < math.inf and 0 <= entropy_coefficient < math.inf):
            raise InputError(
                "value_coefficient and entropy_coefficient must be at least 0 and finite, "
                f"got value_coefficient {value_coefficient}, entropy_coefficient {entropy_coefficient}"
            )
        sizes = choices_of(actions, output_size)
        super().__init__(input_size, output_size, **options)
        if self.hparams["dropout"]:
            raise InputError("dropout must be 0 in a PPOTask: the probabilities of its actions would be random")
        self.actions = actions
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.clip, self.value_clip, self.target_kl = clip, value_clip, target_kl
        self.value_coefficient, self.entropy_coefficient = value_coefficient, entropy_coefficient
        self.normalize_advantages = normalize_advantages
        self.normalize_observations, self.normalize_rewards = normalize_observations, normalize_rewards
        self.encoder = ObservationEncoder(input_size, output_size, self.dim, sizes, previous_action)
        self.backbone = self.make_backbone()
        linear = nn.Linear(self.dim, output_size)
        with torch.no_grad():  # at first, all actions are about equally likely
            linear.weight.mul_(0.01)
            linear.bias.zero_()
        self.head = linear if sizes else nn.Sequential(linear, nn.Tanh())
        self.critic = nn.Linear(self.dim, 1)
        self.distribution = CategoricalActions(sizes) if sizes else GaussianActions(output_size)
        self.environment: dict[str, Any] = {}
        self.register_buffer("observation_mean", torch.zeros(input_size))
        self.register_buffer("observation_std", torch.ones(input_size))
        self.register_buffer("observation_count", torch.tensor(0))
        self.register_buffer("return_mean", torch.zeros(1))
        self.register_buffer("return_std", torch.ones(1))
        self.register_buffer("return_count", torch.tensor(0))
        self.last_kl = torch.tensor(0.0)

    def forward(
        self,
        observations: Tensor,
        state: State = None,
        reset: Tensor | None = None,
        previous_actions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Logits or mean actions, and values, of every step, in parallel over the length.

        Args:
            observations: (batch, length, input_size), not normalised.
            state: That of ``initial_state``, or what an earlier call or ``step`` returned.
            reset: Bool (batch, length), True at the first step of an episode.
            previous_actions: As those of ``RolloutBatch``, for a policy with ``previous_action``.

        Returns:
            Outputs (batch, length, output_size), values (batch, length), and the state after the last step.
        """
        tokens = self.encoder(self.normalized(observations), previous_actions, reset)
        hidden, state = self.backbone(tokens, state, reset)
        return self.head(hidden), self.critic(hidden).squeeze(-1), state

    def step(
        self, observation: Tensor, state: State, reset: Tensor | None = None, previous_action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """One step of ``forward`` at constant cost: (batch, input_size) to (batch, output_size) and (batch,)."""
        token = self.encoder(self.normalized(observation), previous_action, reset)
        hidden, state = self.backbone.step(token, state, reset)
        return self.head(hidden), self.critic(hidden).squeeze(-1), state

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step of an episode."""
        return self.backbone.initial_state(batch_size)

    def decide(self, outputs: Tensor) -> Tensor:
        """The most likely actions, in the units of the environment, for outputs (..., output_size)."""
        return self.distribution.to_environment(self.distribution.mode(outputs))

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations (..., input_size) with mean 0 and standard deviation 1 over those before, constants with 0."""
        x = (observations - self.observation_mean) / divisor(self.observation_std)
        return x.clamp(-LARGEST, LARGEST) if self.normalize_observations else x

    def losses(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """The loss (PPO, equation 9) and its parts by name, scalars."""
        outputs, values, _ = self(batch.observations, batch.state, batch.reset, batch.previous_actions)
        values = values.float()
        log_ratio = self.distribution.log_prob(outputs, batch.actions) - batch.log_probs
        advantages = normalized(batch.advantages) if self.normalize_advantages else batch.advantages
        policy = policy_loss(log_ratio, advantages, self.clip)
        value = value_loss(values, batch.values, batch.advantages + batch.values, self.value_clip)
        entropy = self.distribution.entropy(outputs).mean()
        return {
            "loss": policy + self.value_coefficient * value - self.entropy_coefficient * entropy,
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy,
            "kl": approximate_kl(log_ratio.detach()),
            "clip_fraction": ((log_ratio.detach().exp() - 1).abs() > self.clip).float().mean(),
        }

    def batch_loss(self, batch: RolloutBatch) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.losses(batch)["loss"]

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """The loss of a minibatch, a scalar, logged with its parts and what the data module reports of the rollouts."""
        losses = self.losses(batch)
        self.last_kl = losses["kl"]
        self.log("train/loss", losses["loss"], prog_bar=True)
        if logs_step(self.trainer):  # to log so much in every step would take longer than the step of a small model
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items() if name != "loss"})
            self.log_dict(data_facts(self._trainer).statistics or {})
        return losses["loss"]

    def diverged(self) -> bool:
        """Whether the policy is further from the one that acted than ``target_kl``, in any process."""
        if self.target_kl is None:
            return False
        further = bool(self.last_kl > self.target_kl)
        return self.trainer.strategy.reduce_boolean_decision(further, all=False)

    def make_metrics(self) -> dict[str, Metric]:
        """Means over complete episodes."""
        return {"return": Mean(), "length": Mean()}

    def evaluate(self, batch: EpisodeBatch) -> None:
        """Add episodes to the means."""
        self.metrics["return"].update(batch.returns.mean(), len(batch.returns))
        self.metrics["length"].update(batch.lengths.mean(), len(batch.lengths))

    def log_metrics(self, part: str) -> None:
        """Log the means, and at validations the figures of the rollouts, those of the first process."""
        super().log_metrics(part)
        if part == "val":
            self.log_dict(data_facts(self._trainer).statistics or {}, rank_zero_only=True)

    def predict_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """The returns (episodes,)."""
        return batch.returns

    def update_observations(self, observations: Tensor) -> None:
        """Add observations (..., input_size) to their statistics, those of all processes."""
        if self.normalize_observations:
            self._update("observation", observations.flatten(0, -2))

    def scaled_rewards(self, rewards: Tensor, returns: Tensor) -> Tensor:
        """Scale rewards, after adding discounted sums of them to the statistics; (batch, length) each."""
        if not self.normalize_rewards:
            return rewards
        self._update("return", returns.flatten().unsqueeze(-1))
        return (rewards / divisor(self.return_std)).clamp(-LARGEST, LARGEST)

    def _update(self, name: str, values: Tensor) -> None:
        count, mean, std = (getattr(self, f"{name}_{each}") for each in ("count", "mean", "std"))
        update(count, mean, std, self._of_all_processes(moments(values.cpu())))

    def _of_all_processes(self, own: Moments) -> Sequence[Moments]:
        if self._trainer is None or self._trainer.world_size == 1:
            return [own]
        parts = [cast("Tensor", self.all_gather(each.float().to(self.device))).cpu().double() for each in own]
        return list(zip(parts[0], parts[1], parts[2], strict=True))

    def setup(self, stage: str) -> None:
        """Take the environment from the data module, and load the weights of ``init_from``.

        Raises:
            InputError: The environment has another type or number of actions.
        """
        data = data_facts(self._trainer)
        if data.actions is not None:
            if data.actions != self.actions:
                given = str(data.actions).replace(" ", "")
                raise InputError(f"the actions of {data.env_id} are {data.actions}: give --model.actions {given}")
            self._set_environment(self._environment_of_data())
        super().setup(stage)
        if stage == "fit" and self.init_from and not self.observation_count and (self.observation_std != 1).any():
            self.observation_count.fill_(OFFLINE_STEPS)

    def _environment_of_data(self) -> dict[str, Any]:
        """The environment of the data module and the bounds of its actions, as the checkpoint contains them."""
        data = data_facts(self._trainer)
        if data.actions is None:
            return {}
        environment: dict[str, Any] = {"env_id": data.env_id, "env_args": dict(data.env_args or {})}
        if data.action_low is not None:
            ends = zip(BOUNDS, (data.action_low, data.action_high), strict=True)
            environment |= {name: exact(end).tolist() for name, end in ends}
        return environment

    def _set_environment(self, environment: dict[str, Any]) -> None:
        self.environment = environment
        if BOUNDS[0] in environment:
            assert isinstance(self.distribution, GaussianActions)
            self.distribution.bounds.set(*(environment[name] for name in BOUNDS))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the environment and the bounds of its actions."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["environment"] = self.environment

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` saved, except in a run whose data module has an environment."""
        super().on_load_checkpoint(checkpoint)
        self._set_environment(self._environment_of_data() or dict(checkpoint.get("environment", {})))


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be at least 0 and at most 1, got {value}")


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} must be above 0, got {value}")
