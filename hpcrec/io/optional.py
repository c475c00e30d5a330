"""Libraries that only some file formats need: the extra ``formats``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hpcrec.errors import ConfigError


def optional_library(module: str, purpose: str) -> Any:
    """Return a module of the extra ``formats``; raises :class:`ConfigError` saying how to install it."""
    try:
        return import_module(module)
    except ImportError as fault:
        raise ConfigError(
            f"{purpose} needs the library {module.partition('.')[0]}, which is not installed: "
            "pip install 'hpcrec[formats]'"
        ) from fault
