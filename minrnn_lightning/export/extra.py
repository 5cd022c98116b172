"""Importing the optional packages that write or run exported models."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from minrnn_lightning.errors import missing_package

EXTRAS = {"executorch": "executorch", "openvino": "benchmark"}  # by package; all others are in the extra export


def extra_module(name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise missing_package(package, EXTRAS.get(package, "export")) from error
