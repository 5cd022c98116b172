"""The ids of the memory environments in Gymnasium's registry."""

from __future__ import annotations

from typing import Any

import gymnasium

DECKS = {"Easy": 1, "Medium": 2, "Hard": 3}
K = {"Easy": 4, "Medium": 32, "Hard": 64}

ENVIRONMENTS: dict[str, tuple[str, dict[str, Any], int | None]] = {  # class, its arguments, and the limit of steps
    "TMaze-v0": ("tmaze:TMaze", {}, None),
    **{
        f"RepeatPrevious{name}-v0": ("cards:RepeatPrevious", {"k": K[name], "decks": DECKS[name]}, None)
        for name in DECKS
    },
    **{f"Autoencode{name}-v0": ("cards:Autoencode", {"decks": DECKS[name]}, None) for name in DECKS},
    "CartPolePosition-v0": ("positions:cart_pole", {}, 500),
    "PendulumPosition-v0": ("positions:pendulum", {}, 200),
    "MiniGridMemory-v0": ("minigrid:minigrid_memory", {}, None),
}


def register_environments() -> None:
    """Register every environment as ``minrnn/<name>``, unless it is registered already."""
    for name, (path, args, limit) in ENVIRONMENTS.items():
        if f"minrnn/{name}" not in gymnasium.registry:
            entry_point = f"minrnn_lightning.rl.memory_envs.{path}"
            gymnasium.register(f"minrnn/{name}", entry_point, kwargs=args, max_episode_steps=limit)
