"""What becomes of a test whose machine lacks what it is about."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def untested(needs: str, reason: object) -> NoReturn:
    """Skip, loudly; on a CI machine, where everything is supposed to be, fail instead, with what it `needs`."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs {needs}: {reason}")
    pytest.skip(f"NOT TESTED: {reason}")
