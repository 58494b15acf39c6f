"""Values for a command line, which reads one or two secrets and ends."""

import os
from collections.abc import Callable, Mapping

from core.errors import ConfigError
from core.settings import Settings
from core.settings.models import Environment
from core.settings.reference import SecretReference
from secrets_manager.provider import SecretUnavailable
from secrets_manager.providers import Providers
from secrets_manager.resolver import Resolver
from secrets_manager.value import MaskedText


def values_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> Callable[[str], str]:
    """A function from references to their values, as these settings say. It raises ConfigError with the reason."""

    def value(reference: str) -> str:
        production = settings.environment is Environment.PRODUCTION
        providers = Providers(settings.secrets, environ, production=production)
        resolver = Resolver(providers, settings.secrets.cache, background=False)
        parsed = SecretReference.parse(reference, settings.secrets.default_provider)
        try:
            return MaskedText(resolver.resolve(parsed, "the command line").value.reveal())
        except SecretUnavailable as error:
            raise ConfigError(str(error)) from None
        finally:
            resolver.close()
            providers.close()

    return value
