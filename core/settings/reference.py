"""References to secrets, such as `os.environ/NAME` and `os.environ/azure://name`: their syntax, and the plain ones'
values.

Nothing here asks a vault; a reference stays a reference in the settings.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import entry_points
from urllib.parse import quote, unquote

from core.errors import ConfigError

PREFIX = "os.environ/"
PROVIDERS = ("azure", "aws", "hashicorp", "env")
PROVIDERS_GROUP = "litellm_orchestration.secret_providers"
"""The entry points by which other packages add providers; an entry point's name is the scheme of its references."""

DEFAULT_SCHEME = "secret"
"""`secret://name` leaves it to `secrets.default_provider` where the secret is kept."""

LATEST = "latest"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPECTED = "os.environ/NAME or os.environ/<azure|aws|hashicorp|env>://<identifier>"
_NAMES_FIELDS = {"aws", "hashicorp"}
_AZURE_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")


class KeyVaultProvider(StrEnum):
    """The providers that come with us. A reference may also name one that another package adds."""

    AZURE_KEY_VAULT = "azure"
    AWS_SECRETS_MANAGER = "aws"
    HASHICORP_VAULT = "hashicorp"
    LOCAL_ENVIRONMENT = "env"


class MalformedReference(ValueError):
    """A reference that is written wrongly. `position` is the offset of what is wrong in the text that was given.

    The message never repeats the text: somebody may have written a secret where a reference belongs.
    """

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True, order=True)
class SecretReference:
    """Where a secret is kept: never what it is.

    `secret_identifier` is a name (Azure), a name or ARN (AWS), `<mount>/<path>` (HashiCorp Vault) or a variable's name
    (env); `version` is the vault's own name of a version, or "latest"; `field` is a field of a JSON secret.
    """

    provider: str
    secret_identifier: str
    version: str = LATEST
    field: str | None = None

    def __post_init__(self) -> None:
        # `local` is what settings and KEY_VAULT_PROVIDER call it.
        if self.provider == "local":
            object.__setattr__(self, "provider", KeyVaultProvider.LOCAL_ENVIRONMENT.value)
        elif isinstance(self.provider, KeyVaultProvider):
            object.__setattr__(self, "provider", self.provider.value)
        _check(self.provider, self.secret_identifier, self.version, self.field)

    @classmethod
    def parse(cls, text: str, default_provider: str = "local") -> "SecretReference":
        """Read `azure://name?version=v`, with or without `os.environ/` in front; a bare name, and `secret://name`, are
        one of `default_provider`.

        Raises MalformedReference.
        """
        start = len(PREFIX) if text.startswith(PREFIX) else 0
        provider, found, rest = text[start:].partition("://")
        if not found:
            provider, rest = DEFAULT_SCHEME, text[start:]
        try:
            return _parsed(provider, rest, start + (len(provider) + 3 if found else 0), default_provider)
        except MalformedReference as error:
            # What is wrong with the scheme stands at the start of it.
            error.position = max(error.position, start)
            raise

    @property
    def uri(self) -> str:
        """The reference as it is written behind `os.environ/`; parses back to itself."""
        version = "" if self.version == LATEST else f"?version={quote(self.version, safe=_SAFE)}"
        field = "" if self.field is None else f"#{quote(self.field, safe=_SAFE)}"
        return f"{self.provider}://{quote(self.secret_identifier, safe=_SAFE)}{version}{field}"

    @property
    def document(self) -> "SecretReference":
        """What one call to the vault gives: the same reference without its field."""
        return self if self.field is None else SecretReference(self.provider, self.secret_identifier, self.version)

    def __str__(self) -> str:
        return self.uri


_OIDC = f"{PREFIX}oidc/"  # LiteLLM's own: a token of the cloud it runs in, for the audience that follows
_SAFE = "/:@+=,._-~ !$&'()*"


def _parsed(provider: str, rest: str, start: int, default_provider: str) -> SecretReference:
    if provider == DEFAULT_SCHEME:
        provider = default_provider
    path, hash_, field = rest.partition("#")
    name, question, query = path.partition("?")
    if any(character.isspace() for character in rest):
        position = next(index for index, character in enumerate(rest) if character.isspace())
        raise MalformedReference("has a blank in it; write %20 for one that belongs there", start + position)
    version = LATEST
    if question:
        place = start + len(name)
        match = re.fullmatch(r"version=([^&=]+)", query)
        if match is None:
            raise MalformedReference("takes ?version=<version> and nothing else after the identifier", place)
        version = unquote(match[1])
    if hash_ and not field:
        raise MalformedReference("has an empty #<field>", start + len(path))
    try:
        return SecretReference(provider, unquote(name), version, unquote(field) if hash_ else None)
    except MalformedReference as error:
        places = {"version": len(name), "field": len(path)}
        offset = next((at for word, at in places.items() if word in str(error)), 0)
        error.position = 0 if "unknown provider" in str(error) else start + offset
        raise


def _check(provider: str, identifier: str, version: str, field: str | None) -> None:
    known = provider in PROVIDERS or provider in added_providers()
    if not known:
        names = (*PROVIDERS, *added_providers())
        near = difflib.get_close_matches(provider, names, n=1)
        hint = f"; did you mean '{near[0]}://'?" if near else ""
        raise MalformedReference(f"names an unknown provider (known: {', '.join(names)}){hint}")
    if not identifier:
        raise MalformedReference(f"has no identifier that can be looked up; write {_EXPECTED}")
    if not identifier.isprintable() or not version.isprintable() or not version:
        raise MalformedReference("has characters that no vault takes")
    if field is not None and (not field or (provider in PROVIDERS and provider not in _NAMES_FIELDS)):
        raise MalformedReference("takes #<field> only with aws:// and hashicorp://, and not empty")
    if provider == "env" and (version != LATEST or not _VARIABLE.fullmatch(identifier)):
        raise MalformedReference("must be os.environ/env://<NAME> with the name of an environment variable")
    if provider == "azure" and not _AZURE_NAME.fullmatch(identifier):
        raise MalformedReference("must name a secret of Azure Key Vault: letters, digits and hyphens")
    if provider == "hashicorp" and (identifier.startswith("/") or ".." in identifier.split("/")):
        raise MalformedReference("must be hashicorp://<mount>/<path>, without .. in it")


@lru_cache(maxsize=1)
def added_providers() -> tuple[str, ...]:
    """The schemes that other installed packages add."""
    return tuple(sorted(point.name for point in entry_points(group=PROVIDERS_GROUP)))


def is_reference(value: object) -> bool:
    """Whether LiteLLM would look the value up rather than take it as written."""
    return isinstance(value, str) and value.startswith(PREFIX)


def is_vault_reference(value: object) -> bool:
    """Whether the value is a reference to more than a plain environment variable."""
    return isinstance(value, str) and "://" in value and value.startswith(PREFIX) and not value.startswith(_OIDC)


def checked_reference(value: str) -> str:
    """The reference itself; MalformedReference, a ValueError, when it is written wrongly."""
    if not value.startswith(PREFIX):
        raise MalformedReference(f"must be a reference ({_EXPECTED}), never the secret itself")
    rest = value.removeprefix(PREFIX)
    if "://" not in rest:
        if not _VARIABLE.fullmatch(rest):
            raise MalformedReference(f"is not a reference that can be looked up; write {_EXPECTED}", len(PREFIX))
        return value
    SecretReference.parse(value)
    return value


def resolve_environ(value: str, environ: Mapping[str, str]) -> str:
    """A plain setting's value: what `os.environ/NAME` stands for in `environ`, or the value as written.

    Raises ConfigError when the variable is not set, or when the reference needs a vault.
    """
    if not is_reference(value):
        return value
    name = value.removeprefix(PREFIX).removeprefix("env://")
    if not _VARIABLE.fullmatch(name):
        raise ConfigError("this setting can only refer to an environment variable: os.environ/NAME")
    resolved = environ.get(name)
    if not resolved:
        raise ConfigError(f"the environment variable {name} is not set")
    return resolved
