"""``StepEncoder``: three tokens for each time step of an environment, or one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StepEncoder(nn.Module):
    """Embeds return-to-go, observation and action, each as a token or all summed in one token.

    Three tokens a step, (return, observation, action), are those of Decision Transformer
    (https://arxiv.org/abs/2106.01345); the action of a step is predicted at its observation. The one token of the
    compact layout is the sum of return, observation and previous action; the action is predicted at this token.

    Args:
        observation_size: Components of an observation.
        action_size: Components of an action, or number of discrete actions.
        dim: Width of the tokens.
        compact: Whether a step is one token.
        discrete: Whether actions are discrete.
        returns: Whether the return-to-go is embedded.
        max_timestep: Number of timestep embeddings, which are added to the tokens; later steps share the last. 0 for
            none.
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
        self.output_position = 0 if compact else int(returns)  # of the token at which the action is predicted
        self.embed_return = nn.Linear(1, dim) if returns else None
        self.embed_observation = nn.Linear(observation_size, dim)
        self.embed_action = nn.Embedding(action_size, dim) if discrete else nn.Linear(action_size, dim)
        self.embed_timestep = nn.Embedding(max_timestep, dim) if max_timestep else None
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns: Tensor,
        timesteps: Tensor,
        reset: Tensor | None = None,
        previous_action: Tensor | None = None,
    ) -> Tensor:
        """Embed trajectories.

        Args:
            observations: (batch, steps, observation_size).
            actions: (batch, steps, action_size), or int64 (batch, steps).
            returns: (batch, steps).
            timesteps: int64 (batch, steps).
            reset: Bool (batch, steps), True where an episode starts, so that there is no previous action; not needed
                at the first step of a row.
            previous_action: That before the first step, (batch, action_size), or int64 (batch,); None for none.

        Returns:
            Tokens, (batch, steps, tokens_per_step, dim).
        """
        inputs, action = self._inputs(observations, returns), self.embed_action(actions)
        if self.compact:
            before = F.pad(action, (0, 0, 1, 0))[:, :-1]
            if previous_action is not None:
                before = torch.cat([self.embed_action(previous_action).unsqueeze(1), before[:, 1:]], 1)
            tokens = [sum(inputs, before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0))]
        else:
            tokens = [*inputs, action]
        return torch.stack([self._normalize(token, timesteps) for token in tokens], 2)

    def step(
        self,
        observation: Tensor,
        previous_action: Tensor | None,
        returns: Tensor,
        timestep: Tensor,
        reset: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Embed one time step.

        Returns:
            Tokens (batch, dim): the previous action if it has not been fed yet, then the tokens up to the one at which
            the action is predicted.
        """
        inputs = self._inputs(observation, returns)
        if previous_action is None:
            return [], [
                self._normalize(token, timestep) for token in ([torch.stack(inputs).sum(0)] if self.compact else inputs)
            ]
        before = self.embed_action(previous_action)
        if self.compact:
            before = before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0)
            return [], [self._normalize(sum(inputs, before), timestep)]
        return [self._normalize(before, timestep - 1)], [self._normalize(token, timestep) for token in inputs]

    def _inputs(self, observations: Tensor, returns: Tensor) -> list[Tensor]:
        """Embed what is known before the action: the return, unless it is left out, and the observation."""
        observation = self.embed_observation(observations)
        return [observation] if self.embed_return is None else [self.embed_return(returns.unsqueeze(-1)), observation]

    def _normalize(self, token: Tensor, timesteps: Tensor) -> Tensor:
        if self.embed_timestep is not None:
            token = token + self.embed_timestep(timesteps.clamp(0, self.embed_timestep.num_embeddings - 1))
        normed: Tensor = self.norm(token)
        return normed
