"""`general_settings.custom_auth`: the keys of `orchestration.keys`, for a proxy without LiteLLM's database."""

from typing import Any

from fastapi import Request

from plugins import compat
from plugins.wiring import wiring


async def authenticate(request: Request, api_key: str | None) -> Any:
    """The identity behind `api_key`, limited to the models its entry lists.

    The master key, and with a database every key that is not one of ours, goes on to LiteLLM's own check (None says
    so). Raises a 401 for any other key.
    """
    presented = (api_key or "").removeprefix("Bearer ")
    directory = wiring().runtime.snapshot.directory
    found = directory.key(presented)
    if found is not None:
        key_hash, entry = found
        return compat.key_identity(
            key_hash,
            user_id=entry.user_id,
            team_id=entry.team_id,
            models=directory.models_of(entry),
            alias=entry.user_id,
        )
    if compat.is_master_key(presented) or compat.database_connected() or compat.uses_jwt():
        return None
    raise compat.unauthorized(
        "This key is not known. Keys are listed under orchestration.keys in the proxy's config.yaml."
        if presented
        else "No key was sent. Send one as `Authorization: Bearer <key>`."
    )
