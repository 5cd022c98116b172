"""Importing the optional packages of the extras ``export`` and ``executorch``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from minrnn_lightning.errors import missing_package


def extra_module(name: str) -> Any:
    """Import a module of the extra ``export`` or ``executorch``.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = "executorch" if package == "executorch" else "export"
        raise missing_package(package, extra) from error
