"""``ObservationEncoder``: an observation, and the previous action if wanted, as one token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ObservationEncoder(nn.Module):
    """norm(W·observation + embedding of the previous action): a token of ``StepEncoder``'s compact layout.

    Its parameters have the names of that encoder, so that the weights of one can be loaded into the other.

    Args:
        observation_size: Components of an observation.
        output_size: Number of discrete actions, over all choices, or components of an action.
        dim: Width of the tokens.
        choices: Number of possible actions of each choice; none for continuous actions.
        previous_action: Whether the previous action is embedded.
    """

    offsets: Tensor

    def __init__(
        self, observation_size: int, output_size: int, dim: int, choices: Sequence[int], previous_action: bool
    ) -> None:
        super().__init__()
        self.several = len(choices) > 1
        self.embed_observation = nn.Linear(observation_size, dim)
        self.embed_action: nn.Module | None = None
        if previous_action:
            self.embed_action = nn.Embedding(output_size, dim) if choices else nn.Linear(output_size, dim)
        self.norm = nn.LayerNorm(dim)
        firsts = torch.tensor([0, *choices[:-1]]).cumsum(0)
        self.register_buffer("offsets", firsts, persistent=False)  # of the embeddings of each choice

    def forward(self, observations: Tensor, previous_actions: Tensor | None, reset: Tensor | None) -> Tensor:
        """Embed steps, with any dimensions before the last one of the observations.

        Args:
            observations: (..., observation_size).
            previous_actions: int64 (...), or (..., choices) of several, or (..., action_size) of continuous actions,
                which are clipped to −1 and 1, as the environment does; None at the first steps of episodes.
            reset: Bool (...), True at the first step of an episode, which has no previous action.

        Returns:
            (..., dim).
        """
        token = self.embed_observation(observations)
        if self.embed_action is not None and previous_actions is not None:
            token = token + self._embedded(previous_actions, reset)
        tokens: Tensor = self.norm(token)
        return tokens

    def _embedded(self, actions: Tensor, reset: Tensor | None) -> Tensor:
        assert self.embed_action is not None
        before: Tensor
        if self.several:
            before = self.embed_action(actions + self.offsets).sum(-2)
        else:
            before = self.embed_action(actions.clamp(-1, 1) if actions.is_floating_point() else actions)
        return before if reset is None else before.masked_fill(reset.unsqueeze(-1), 0)
