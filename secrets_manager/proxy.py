"""What LiteLLM asks for secrets: the class that `orchestration_secrets.py` beside a config names.

With a manager configured, LiteLLM asks it for every variable it might want (some 80 at start, nine a request), logs an
error with a traceback for each that has no value, and reads `FLAG=false` as the text "false" where without a manager
it reads False. So the manager admits references alone, and gives what is not one the meaning it has without a manager.

One difference is left: a value that only Python takes for a bool, such as `(True)`, becomes one.
"""

import logging
import os
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx
import litellm
from litellm.integrations.custom_secret_manager import CustomSecretManager
from litellm.secret_managers.main import str_to_bool  # pyright: ignore[reportMissingTypeStubs]

from core.errors import ConfigError
from core.settings import load
from core.settings.models import Settings
from core.settings.reference import PREFIX, MalformedReference
from secrets_manager.provider import SecretUnavailable
from secrets_manager.redaction import redact_litellms_logs
from secrets_manager.service import PLACEHOLDER, SecretService, malformed

_LOG = logging.getLogger("orchestration.secrets")
# `in os.environ` raises and catches a KeyError for each name that is not set: 1 µs, nine times a request.
_VARIABLES = cast("Container[bytes]", os.environ._data)  # pyright: ignore
# LiteLLM reads anything but a text as "no value" in silence, and logs None with a traceback.
_NO_VALUE = cast("str", object())

_secrets: SecretService | None = None


def secrets() -> SecretService:
    """The secrets of this process. The first who asks, LiteLLM while it loads its configuration or our callback, has
    every reference of the configuration read.

    Raises ConfigError, after saying so on stderr, where it must not be started with.
    """
    global _secrets
    if _secrets is None:
        service = SecretService()
        try:
            _configure(service)
        except ConfigError as error:
            # LiteLLM would bury this under a traceback; whoever starts the proxy needs the lines alone.
            print(f"\nThe proxy cannot start:\n{error}\n", file=sys.stderr)  # noqa: T201
            raise
        redact_litellms_logs(service.texts)
        _secrets = service
    return _secrets


def _configure(service: SecretService) -> None:
    # Where a program uses LiteLLM without its proxy, there is no configuration to read.
    path: str | None = getattr(sys.modules.get("litellm.proxy.proxy_server"), "user_config_file_path", None)
    if path is None:
        service.configure(Settings(), {})
        return
    loaded = load(Path(path))
    service.configure(loaded.settings, loaded.document)


class SecretManager(CustomSecretManager):
    """Resolves secret references for LiteLLM, and leaves every other name to LiteLLM itself.

    What belongs to a model becomes a placeholder, which our hook replaces in every call. A reference without a value
    gets a line in the log, once a process, and is None to LiteLLM, as a variable is that is not set.
    """

    _said: ClassVar[set[str]] = set()  # LiteLLM builds several of us while it starts

    def __init__(self) -> None:
        # LiteLLM leaves its **kwargs without a type.
        super().__init__("litellm-orchestration")  # pyright: ignore[reportUnknownMemberType]
        _admit_references_only()
        secrets()

    def sync_read_secret(
        self,
        secret_name: str,
        optional_params: dict[str, Any] | None = None,  # LiteLLM's settings, whatever they hold
        timeout: float | httpx.Timeout | None = None,
    ) -> str | None:
        if "://" in secret_name:
            value = self._resolved(secret_name)
        else:
            _admit_references_only()  # a plain name comes when LiteLLM has made its settings anew
            value = os.environ.get(secret_name)
        return _NO_VALUE if value is None else _as_without_a_manager(value)

    async def async_read_secret(
        self,
        secret_name: str,
        optional_params: dict[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,  # noqa: ASYNC109 # LiteLLM's signature
    ) -> str | None:
        return self._resolved(secret_name) if "://" in secret_name else os.environ.get(secret_name)

    def _resolved(self, reference: str) -> str | None:
        try:
            return secrets().for_litellm(reference)
        except MalformedReference as error:
            # What is no reference of any kind may be a secret that stands in the wrong place.
            message = malformed(reference, error)
        except SecretUnavailable as error:
            message = f"{PREFIX}{reference} has no value: {error}"
        if message not in self._said:
            self._said.add(message)
            _LOG.error("%s", message)
        return None


class _AdmittedNames(list[str]):
    """LiteLLM's `hosted_keys`: which names are asked for, by what they are instead of by a list of them."""

    def __contains__(self, name: object) -> bool:
        name = cast(str, name)
        if "://" in name:
            return True
        return name.encode(errors="surrogateescape") in _VARIABLES and str_to_bool(os.environ.get(name)) is not None


def _admit_references_only() -> None:
    settings = litellm._key_management_settings  # pyright: ignore[reportPrivateUsage] # no other way to them
    if not isinstance(settings.hosted_keys, _AdmittedNames):  # pyright: ignore[reportUnknownMemberType] # a bare `list`
        settings.hosted_keys = _AdmittedNames()


def _as_without_a_manager(value: str) -> str:
    """The value in the spelling that LiteLLM takes from a manager for what it makes of `value` itself."""
    if value.startswith(PLACEHOLDER):
        return value
    meaning = str_to_bool(value)
    return value if meaning is None else str(meaning)
