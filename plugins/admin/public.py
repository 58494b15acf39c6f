"""Configurations as administrators may see them: references as they are, values of secrets never."""

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, cast

from core.settings import is_reference, redacted
from core.settings.finding import MASK
from core.settings.secret_uses import is_credential

Loc = tuple[str | int, ...]

_NO_SECRETS = {
    *("keys", "secrets", "trust_key_metadata", "auth", "credential_name", "litellm_credential_name"),
    *("custom_auth", "custom_auth_run_common_checks", "enable_post_custom_auth_checks", "enable_jwt_auth"),
    *("key_management_system", "key_management_settings", "custom_secret_manager", "custom_tokenizer"),
    *("tokens_per_minute", "key_vault", "credential_list", "allowed_openai_params"),
}
_CERTAIN = re.compile(
    r"password|passphrase|secret|credential|(api|master|salt|private|access)_?key|authorization", re.I
)
"""Names under which even a number is a secret."""
_HEADERS = re.compile(r"headers?$", re.I)
_LOOKS_SECRET = re.compile(r"^(sk-|hvs\.|xox[abpr]-|AKIA|gh[pousr]_|AIza|eyJ|Bearer\s)")
_USER_IN_URL = re.compile(r"://[^/@\s]+@")
_PLACEHOLDERS = {"", "none", "null", "empty", "dummy", "fake", "fake-key", "not-needed", "no-key"}


def public(value: object, name: str = "", *, environment: bool = False) -> Any:  # JSON
    """A part of a configuration as JSON, with `***` in place of every secret that is written out in it.

    `name` is that of the field it stands in; `environment`: nothing but references is shown.
    """
    return _public(value, name, environment, ())


def _public(value: object, name: str, hidden: bool, around: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping | list | tuple):
        if id(value) in around:
            return "(contains itself)"
        around = (*around, id(value))
        if isinstance(value, Mapping):
            hides = hidden or name == "environment_variables" or (_secret_name(name) and not _HEADERS.search(name))
            items = cast("Mapping[object, object]", value).items()
            return {str(key): _public(item, str(key), hides, around) for key, item in items}
        return [_public(item, name, hidden, around) for item in cast("list[object]", value)]
    return _scalar(value, name, hidden)


def _scalar(value: object, name: str, hidden: bool) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool) or is_reference(value):
        return value
    if isinstance(value, int | float | Decimal):
        if hidden or (_CERTAIN.search(name) and _secret_name(name)):
            return MASK
        return _number(value)
    text = str(value)
    if text.strip().lower() in _PLACEHOLDERS:
        return text
    if hidden or _secret_name(name) or _LOOKS_SECRET.search(text):
        return MASK
    return _without_credentials(text) if "://" in text else text


def _without_credentials(url: str) -> str:
    shown = redacted(url)
    # A password with a slash in it is none that URLs can have, but somebody may have written it.
    return MASK if shown == url and "@" in url else shown


def _number(value: float | Decimal) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if isinstance(value, int) or math.isfinite(value) else str(value)


def _secret_name(name: str) -> bool:
    return name not in _NO_SECRETS and is_credential(name)


def written_secrets(value: object, loc: Loc = ()) -> Iterator[Loc]:
    """Where in the parameters of a model a secret is written out, where only a reference may stand."""
    name = str(loc[-1]) if loc else ""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from written_secrets(item, (*loc, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            yield from written_secrets(item, (*loc, index))
    elif isinstance(value, str) and not is_reference(value) and value.strip().lower() not in _PLACEHOLDERS:
        names = [str(part) for part in loc if isinstance(part, str)]
        named = any(_secret_name(one) and not _HEADERS.search(one) for one in names)
        if named or _LOOKS_SECRET.search(value) or _USER_IN_URL.search(value):
            yield loc
    elif isinstance(value, int | float) and not isinstance(value, bool) and _CERTAIN.search(name):
        yield loc
