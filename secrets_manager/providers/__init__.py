"""The places that keep secrets: which there are, and one of each when it is first asked."""

import importlib
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from core.errors import ConfigError
from core.settings.models import Secrets
from core.settings.reference import PROVIDERS_GROUP
from secrets_manager.provider import Reason, SecretProvider, SecretUnavailable

_BUILT_IN = {
    # scheme: (module, class, section of secrets.providers); imported when first needed, for their clients are heavy
    "azure": ("secrets_manager.providers.azure", "AzureKeyVault", "azure"),
    "aws": ("secrets_manager.providers.aws", "AwsSecretsManager", "aws"),
    "hashicorp": ("secrets_manager.providers.hashicorp", "HashicorpVault", "hashicorp"),
    "env": ("secrets_manager.providers.local", "LocalSecretsProvider", "local"),
}


class Providers:
    """`providers(scheme)` is the provider of the references with that scheme: ours, or one that another package adds by
    an entry point of its scheme's name. Thread-safe.

    In production the local one is off unless the settings say otherwise, which the check of the settings refuses.
    """

    def __init__(self, settings: Secrets, environ: Mapping[str, str], *, production: bool) -> None:
        self._settings = settings
        self._environ = environ
        self._production = production
        self._lock = threading.Lock()
        self._made: dict[str, SecretProvider] = {}
        self._closed = False

    def __call__(self, scheme: str) -> SecretProvider:
        """Raises SecretUnavailable (MISCONFIGURED) each time, as long as it cannot be made."""
        found = self._made.get(scheme)
        if found is not None:
            return found
        with self._lock:
            if self._closed:
                raise SecretUnavailable(f"{scheme}:// is not read any more: the proxy stops.", Reason.UNREACHABLE)
            if scheme not in self._made:
                self._made[scheme] = self._make(scheme)
            return self._made[scheme]

    def close(self) -> None:
        """Close every provider that was made; from now on there is none."""
        with self._lock:
            self._closed = True
            made, self._made = list(self._made.values()), {}
        for provider in made:
            provider.close()

    def _make(self, scheme: str) -> SecretProvider:
        failure: SecretUnavailable
        try:
            provider = self._class_of(scheme)(self._section(scheme), self._environ)
            if isinstance(provider, SecretProvider):
                return provider
            failure = _broken(scheme, "it has not the methods of a provider")
        except SecretUnavailable:
            raise
        except (ImportError, ConfigError) as error:
            failure = _broken(scheme, str(error))
        except Exception as error:
            # Not its words: they may repeat a setting, and a setting may hold what should be a reference.
            failure = _broken(scheme, type(error).__name__)
        raise failure

    def _class_of(self, scheme: str) -> Callable[[Any, Mapping[str, str]], object]:
        """Any: each provider knows its own section of the settings."""
        if scheme in _BUILT_IN:
            module, name, _ = _BUILT_IN[scheme]
            return getattr(importlib.import_module(module), name)
        for point in entry_points(group=PROVIDERS_GROUP, name=scheme):
            return point.load()
        raise SecretUnavailable(f"No installed package reads {scheme}:// references.", Reason.MISCONFIGURED)

    def _section(self, scheme: str) -> object:
        providers = self._settings.providers
        if scheme not in _BUILT_IN:
            return providers.added.get(scheme, {})
        section = getattr(providers, _BUILT_IN[scheme][2])
        if section is providers.local and section.enabled is None:
            return section.model_copy(update={"enabled": not self._production})
        return section


def _broken(scheme: str, why: str) -> SecretUnavailable:
    return SecretUnavailable(f"The provider of {scheme}:// cannot be made: {why}.", Reason.MISCONFIGURED)
