"""Where secrets come from and who may use which."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from core.settings.models.section import Fraction, Name, Seconds, SecretRef, Section, Text


class SecretProvider(StrEnum):
    """A place that keeps secrets."""

    LOCAL = "local"
    AZURE = "azure"
    AWS = "aws"
    HASHICORP = "hashicorp"


class AuthMethod(StrEnum):
    """How to log in at HashiCorp Vault."""

    TOKEN = "token"  # noqa: S105 - the name of a method
    APPROLE = "approle"
    KUBERNETES = "kubernetes"


class SecretCache(Section):
    """How long a secret's value is kept in memory."""

    ttl: Seconds = Field(default=300, description="Seconds until a value is read again.")
    refresh_ahead: Fraction = Field(
        default=0.8, description="Share of `ttl` after which a value in use is read ahead of time."
    )
    stale_while_error: Seconds = Field(
        default=3600, description="Seconds that an expired value may still be used while its provider does not answer."
    )


class AzureSecrets(Section):
    """Azure Key Vault."""

    vault_url: Annotated[str, StringConstraints(pattern=r"^(https://[^\s@]+|os\.environ/[A-Za-z_]\w*)$")] | None = (
        Field(default=None, description="https://<name>.vault.azure.net/, or os.environ/NAME.")
    )


class AwsSecrets(Section):
    """AWS Secrets Manager."""

    region: Text | None = Field(
        default=None, description="Region, such as eu-central-1; null = the AWS SDK's own choice."
    )


class HashicorpAuth(Section):
    """The login at HashiCorp Vault."""

    method: AuthMethod = Field(default=AuthMethod.TOKEN, description="token | approle | kubernetes.")
    token: SecretRef | None = Field(default=None, description="Reference to the token (method token).")
    role_id: Text | None = Field(default=None, description="Role id (method approle), or os.environ/NAME.")
    secret_id: SecretRef | None = Field(default=None, description="Reference to the secret id (method approle).")
    role: Text | None = Field(default=None, description="Role (method kubernetes).")


class HashicorpSecrets(Section):
    """HashiCorp Vault, KV version 2."""

    url: Annotated[str, StringConstraints(pattern=r"^(https?://[^\s@]+|os\.environ/[A-Za-z_]\w*)$")] | None = Field(
        default=None, description="https://vault.example.com, or os.environ/NAME."
    )
    auth: HashicorpAuth = Field(default_factory=HashicorpAuth, description="How to log in.")
    mount: Text = Field(default="secret", description="Mount of the KV engine that references without one mean.")


class LocalSecrets(Section):
    """Environment variables as a secret provider, for development."""

    enabled: bool | None = Field(
        default=None, description="null = yes in development, no in production, where `true` is refused."
    )


class SecretProviders(Section):
    """Settings of each provider."""

    azure: AzureSecrets = Field(default_factory=AzureSecrets, description="Azure Key Vault.")
    aws: AwsSecrets = Field(default_factory=AwsSecrets, description="AWS Secrets Manager.")
    hashicorp: HashicorpSecrets = Field(default_factory=HashicorpSecrets, description="HashiCorp Vault.")
    local: LocalSecrets = Field(default_factory=LocalSecrets, description="Environment variables, for development.")


class SecretAccess(Section):
    """Which models may use which references."""

    models: tuple[Name, ...] = Field(default=("*",), description="Models, by name or glob.")
    allow: tuple[Text, ...] = Field(
        default=(), description="References without os.environ/, as globs: azure://openai-*."
    )


class Secrets(Section):
    """Secrets by reference."""

    default_provider: SecretProvider = Field(
        default=SecretProvider.LOCAL, description="local | azure | aws | hashicorp."
    )
    cache: SecretCache = Field(default_factory=SecretCache, description="How long values are kept.")
    providers: SecretProviders = Field(default_factory=SecretProviders, description="Settings of each provider.")
    access: tuple[SecretAccess, ...] = Field(
        default=(), description="Who may use which reference; empty = any model any."
    )
