"""Garbage collection as a proxy has it (`core.memory`)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from core.memory import spare_collections


@contextmanager
def collecting_as_in_a_proxy() -> Iterator[None]:
    """Else collecting garbage is what the slowest calls consist of, and half of what a call costs that leaves much."""
    before = gc.get_threshold()
    spare_collections()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
