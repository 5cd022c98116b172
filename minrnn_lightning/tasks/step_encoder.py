"""``StepEncoder``: the tokens of an environment's steps, three for each or one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StepEncoder(nn.Module):
    """Linear maps of return, observation and action, which become a token each or are added up in one.

    Three tokens a step, (return, observation, action), are those of Decision Transformer
    (https://arxiv.org/abs/2106.01345); the action of a step is read at its observation. In the one token of the compact
    layout, the action is that of the step before, and the action is read at the token itself.

    Args:
        observation_size: Numbers in an observation.
        action_size: Numbers in an action, or discrete actions.
        dim: Width of the tokens.
        compact: Whether a step is one token.
        discrete: Whether actions are discrete.
        returns: Whether the return is among what is embedded.
        max_timestep: Steps with an embedding of their own, which is added; 0 leaves it out.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        dim: int,
        *,
        compact: bool,
        discrete: bool,
        returns: bool,
        max_timestep: int,
    ) -> None:
        super().__init__()
        self.compact = compact
        self.tokens_per_step = 1 if compact else 2 + returns
        self.read = 0 if compact else int(returns)  # the place in a step where its action is read
        self.embed_return = nn.Linear(1, dim) if returns else None
        self.embed_observation = nn.Linear(observation_size, dim)
        self.embed_action = nn.Embedding(action_size, dim) if discrete else nn.Linear(action_size, dim)
        self.embed_timestep = nn.Embedding(max_timestep, dim) if max_timestep else None
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, observations: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor, reset: Tensor | None = None
    ) -> Tensor:
        """Tokens of whole trajectories, (batch, steps, tokens_per_step, dim).

        Args:
            observations: (batch, steps, observation_size).
            actions: (batch, steps, action_size), or int64 (batch, steps).
            returns: (batch, steps).
            timesteps: int64 (batch, steps).
            reset: Bool (batch, steps), True where no action came before, as at the first step of each row.
        """
        seen, action = self._seen(observations, returns), self.embed_action(actions)
        if self.compact:
            before = F.pad(action, (0, 0, 1, 0))[:, :-1]
            tokens = [sum(seen, before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0))]
        else:
            tokens = [*seen, action]
        return torch.stack([self._finish(token, timesteps) for token in tokens], 2)

    def step(
        self,
        observation: Tensor,
        previous_action: Tensor | None,
        returns: Tensor,
        timestep: Tensor,
        reset: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of one step, (batch, dim) each: what the step before still owes, and those up to the decision."""
        seen = self._seen(observation, returns)
        if previous_action is None:
            return [], [
                self._finish(token, timestep) for token in ([torch.stack(seen).sum(0)] if self.compact else seen)
            ]
        before = self.embed_action(previous_action)
        if self.compact:
            before = before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0)
            return [], [self._finish(sum(seen, before), timestep)]
        return [self._finish(before, timestep - 1)], [self._finish(token, timestep) for token in seen]

    def _seen(self, observations: Tensor, returns: Tensor) -> list[Tensor]:
        """What is known before the decision: return, unless it is left out, and observation."""
        seen = [self.embed_observation(observations)]
        return seen if self.embed_return is None else [self.embed_return(returns.unsqueeze(-1)), *seen]

    def _finish(self, token: Tensor, timesteps: Tensor) -> Tensor:
        if self.embed_timestep is not None:
            token = token + self.embed_timestep(timesteps.clamp(0, self.embed_timestep.num_embeddings - 1))
        normed: Tensor = self.norm(token)
        return normed
