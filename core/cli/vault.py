"""Secrets for commands. The vaults are no part of the core, so they are reached by name when one is needed."""

import importlib
from collections.abc import Callable

from core.settings import Settings


def values_of(settings: Settings) -> Callable[[str], str]:
    """See secrets_manager.offline.values_of."""
    found: Callable[[Settings], Callable[[str], str]] = importlib.import_module("secrets_manager.offline").values_of
    return found(settings)
