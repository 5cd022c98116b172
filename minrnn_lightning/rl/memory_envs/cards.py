"""Two memory tasks of POPGym with a deck of cards, of which only the suits are shown."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from minrnn_lightning.errors import InputError

SUITS, RANKS = 4, 13


class _Cards(gymnasium.Env[np.ndarray, np.int64]):
    """An environment with a shuffled deck, whose actions are suits.

    Args:
        decks: Number of decks of 52 cards.
        components: Of an observation.

    Raises:
        InputError: There are no decks.
    """

    def __init__(self, decks: int, components: int) -> None:
        if decks < 1:
            raise InputError(f"decks must be at least 1, got {decks}")
        self.deck = np.repeat(np.arange(SUITS), RANKS * decks)
        self.observation_space = Box(0.0, 1.0, (components,), np.float32)
        self.action_space = Discrete(SUITS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Shuffle the deck and show its first card."""
        super().reset(seed=seed)
        self.cards = self.np_random.permutation(self.deck)
        self.steps = 0
        return self._observation(), {}

    def _observation(self) -> np.ndarray:
        raise NotImplementedError


class RepeatPrevious(_Cards):
    """Name the suit of the card that was shown ``k`` steps ago.

    Every step shows the suit of the next card of a shuffled deck, one-hot, and asks for one of the four suits. From
    step ``k`` on (counted from 0) a right answer has the reward 1/n and a wrong one −1/n, with n the number of answers
    that count, so that returns are from −1 to 1; the episode ends with the deck.

    Expected returns: 1 with memory; for one deck −0.490 without, by never naming the suit that is shown (26/51 − 1; a
    card before is of another given suit with 13 of 51 cards), and −0.5 at random.

    Source: POPGym, Morad et al. 2023, https://arxiv.org/abs/2303.01859; easy, medium and hard have k = 4, 32, 64 and 1,
    2, 3 decks of 52 cards.

    Args:
        k: Steps to remember a card.
        decks: Number of decks of 52 cards.

    Raises:
        InputError: There are no decks, or k is not between 1 and the number of cards.
    """

    def __init__(self, k: int = 4, decks: int = 1) -> None:
        super().__init__(decks, SUITS)
        if not 1 <= k < len(self.deck):
            raise InputError(f"k must be at least 1 and at most {len(self.deck) - 1}, got {k}")
        self.k = k

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Score the answer and show the next card."""
        reward = 0.0
        if self.steps >= self.k:
            right = action == self.cards[self.steps - self.k]
            reward = (1.0 if right else -1.0) / (len(self.cards) - self.k)
        self.steps += 1
        return self._observation(), reward, self.steps == len(self.cards), False, {}

    def _observation(self) -> np.ndarray:
        """The suit of the card; after the last one it stays."""
        seen = np.zeros(SUITS, np.float32)
        seen[self.cards[min(self.steps, len(self.cards) - 1)]] = 1
        return seen


class Autoencode(_Cards):
    """Watch a deck of n cards, then name their suits in the order in which they were shown.

    An observation is the suit of the card, one-hot, and 1 while the agent watches. With the last card it is 0, and from
    there on n answers count, 1/n for a right one and −1/n for a wrong one; the n − 1 observations after the last card
    show no suit.

    Returns: at most 1 with memory; −0.5 without, whatever the suit that is always named, and on average at random.

    Source: POPGym, Morad et al. 2023, https://arxiv.org/abs/2303.01859; easy, medium and hard have 1, 2 and 3 decks of
    52 cards. The order is that of the text of the paper and has not been compared with its code.

    Args:
        decks: Number of decks of 52 cards.
        reverse: Ask for the last card first.

    Raises:
        InputError: There are no decks.
    """

    def __init__(self, decks: int = 1, reverse: bool = False) -> None:
        super().__init__(decks, SUITS + 1)
        self.reverse = reverse

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Show the next card, or score the answer."""
        count, reward = len(self.cards), 0.0
        answered = self.steps - (count - 1)
        if answered >= 0:
            card = self.cards[count - 1 - answered if self.reverse else answered]
            reward = (1.0 if action == card else -1.0) / count
        self.steps += 1
        return self._observation(), reward, answered == count - 1, False, {}

    def _observation(self) -> np.ndarray:
        last = len(self.cards) - 1
        seen = np.zeros(SUITS + 1, np.float32)
        if self.steps <= last:
            seen[self.cards[self.steps]] = 1
        seen[SUITS] = self.steps < last
        return seen
