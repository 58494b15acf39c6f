"""What is put right in LiteLLM itself."""

import contextvars
import gc
import sys
from typing import Any

import pytest
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper

from plugins import compat

told = contextvars.ContextVar[str | None]("told", default=None)


class Logging:
    """As much of LiteLLM's as the finalizer of a stream looks at."""

    def _restore_correlation_context_if_unclaimed(self) -> None:
        told.set("by a finalizer")


def abandoned() -> None:
    """A stream that only the garbage collector will find."""
    stream: Any = CustomStreamWrapper.__new__(CustomStreamWrapper)
    stream.logging_obj = Logging()
    stream.itself = stream


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="collections wait for a safe moment since Python 3.12")
def test_a_stream_that_is_collected_sets_no_context_variable():
    compat.spare_contexts()
    compat.spare_contexts()  # of two wirings in a process
    abandoned()
    assert gc.collect() > 0
    assert told.get() is None
