"""Importing the optional packages of the extra ``export``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from minrnn_lightning.errors import InputError


def extra_module(name: str) -> Any:
    """Import a module of the extra ``export``.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f'this needs the package {package}: pip install "minrnn-lightning[export]"') from error
