"""Custom strategies for configurations in tests."""

from collections.abc import Mapping
from typing import Any


class LastOne:
    """Chooses whatever stands last."""

    async def select_model(self, context: Mapping[str, Any], models: list[str]) -> str:
        return models[-1]
