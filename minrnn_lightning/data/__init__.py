"""Data modules: batches from files or generators, independent of models.

The names of ``catalogue`` are looked up when one is first used, as they need Lightning; ``text.tokenizer`` does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minrnn_lightning.data.catalogue import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("minrnn_lightning.data.catalogue"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *import_module("minrnn_lightning.data.catalogue").__all__])
