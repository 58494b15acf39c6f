"""Where secrets come from and who may use which."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from core.settings.models.section import Fraction, Frozen, Name, Seconds, SecretRef, Section, Text, empty
from core.settings.reference import PREFIX, added_providers, is_vault_reference

_Url = Annotated[str, StringConstraints(pattern=r"^(https?://[^\s@]+|os\.environ/[A-Za-z_][A-Za-z0-9_]*)$")]


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


class AzureLogIn(StrEnum):
    """How to log in at Microsoft Entra ID for Azure Key Vault."""

    DEFAULT = "default"
    MANAGED_IDENTITY = "managed_identity"
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a method
    WORKLOAD_IDENTITY = "workload_identity"


_AZURE_FIELDS: dict[AzureLogIn, dict[str, bool]] = {
    AzureLogIn.DEFAULT: {"client_id": False, "authority": False},
    AzureLogIn.MANAGED_IDENTITY: {"client_id": False},
    AzureLogIn.CLIENT_SECRET: {"tenant_id": True, "client_id": True, "client_secret": True, "authority": False},
    AzureLogIn.WORKLOAD_IDENTITY: {"tenant_id": False, "client_id": False, "authority": False},
}
"""Which fields a method takes, and whether it needs them."""


class AzureAuth(Section):
    """The login at Microsoft Entra ID."""

    method: AzureLogIn = Field(
        default=AzureLogIn.DEFAULT,
        description="default (the Azure SDK's own search) | managed_identity | client_secret | workload_identity.",
    )
    tenant_id: Text | None = Field(
        default=None,
        description="Id of the tenant, or os.environ/NAME (methods client_secret and workload_identity; the latter: "
        "null = AZURE_TENANT_ID).",
    )
    client_id: Text | None = Field(
        default=None,
        description="Client id of the application or of the user-assigned identity, or os.environ/NAME; null = "
        "AZURE_CLIENT_ID, and for managed_identity the system-assigned one.",
    )
    client_secret: SecretRef | None = Field(
        default=None, description="Reference to the client secret, os.environ/NAME (method client_secret)."
    )
    authority: Annotated[str, StringConstraints(pattern=r"^https://[^\s@/]+/?$")] | None = Field(
        default=None,
        description="Log-in host of another cloud: https://login.microsoftonline.us, https://login.chinacloudapi.cn; "
        "null = AZURE_AUTHORITY_HOST, else the public cloud.",
    )

    @field_validator("tenant_id", "client_id", "client_secret", "authority")
    @classmethod
    def _belongs_to_the_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        method = cast(AzureLogIn | None, info.data.get("method"))  # none: it was not valid itself
        if method is None or info.field_name is None:
            return value
        needed = _AZURE_FIELDS[method].get(info.field_name)
        if value is None and needed:
            raise ValueError(f"{info.field_name} is needed with method: {method}")
        if value is not None and needed is None:
            methods = " or ".join(one for one, fields in _AZURE_FIELDS.items() if info.field_name in fields)
            raise ValueError(f"{info.field_name} is not used with method: {method}, but with {methods}; remove one")
        return value


class AzureSecrets(Section):
    """Azure Key Vault."""

    vault_url: (
        Annotated[str, StringConstraints(pattern=r"^(https://[^\s@]+|os\.environ/[A-Za-z_][A-Za-z0-9_]*)$")] | None
    ) = Field(default=None, description="https://<name>.vault.azure.net/, or os.environ/NAME.")
    auth: AzureAuth = Field(default_factory=AzureAuth, description="How to log in.")
    connect_timeout: Seconds = Field(
        default=5, gt=0, description="Seconds for a connection to the vault or to the log-in host."
    )
    read_timeout: Seconds = Field(default=10, gt=0, description="Seconds for an answer.")
    ca_bundle: Text | None = Field(
        default=None, description="PEM file of the authorities to trust instead of the public ones."
    )


class AwsSecrets(Section):
    """AWS Secrets Manager."""

    region: Text | None = Field(
        default=None, description="Region, such as eu-central-1; null = the AWS SDK's own choice."
    )
    profile: Text | None = Field(default=None, description="Profile of ~/.aws/config; null = the AWS SDK's own choice.")
    role_arn: Text | None = Field(default=None, description="ARN of a role to assume, or os.environ/NAME.")
    external_id: Text | None = Field(
        default=None, description="External id that the role's trust policy asks for, or os.environ/NAME."
    )
    session_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+=,.@-]{2,64}$")] = Field(
        default="litellm-orchestration", description="What CloudTrail calls the assumed role's session."
    )
    endpoint_url: _Url | None = Field(
        default=None, description="Endpoint of Secrets Manager in `region`, such as a VPC endpoint's; null = AWS's own."
    )
    sts_endpoint_url: _Url | None = Field(
        default=None, description="Endpoint of STS, which gives the role; null = AWS's own."
    )
    connect_timeout: Seconds = Field(default=3, gt=0, description="Seconds for a connection.")
    read_timeout: Seconds = Field(default=5, gt=0, description="Seconds for an answer.")


VaultPath = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\s/]+(/[^\s/]+)*$")]
"""A mount of HashiCorp Vault, without slashes around it."""


class VaultEngine(StrEnum):
    """What kind of secrets engine is behind a mount of HashiCorp Vault."""

    KV2 = "kv2"
    KV1 = "kv1"
    DYNAMIC = "dynamic"


def _plain(reference: str) -> str:
    if is_vault_reference(reference) and not reference.startswith(f"{PREFIX}env://"):
        raise ValueError("can only refer to an environment variable (os.environ/NAME): it is what opens the vault")
    return reference


class HashicorpAuth(Section):
    """The login at HashiCorp Vault."""

    method: AuthMethod = Field(default=AuthMethod.TOKEN, description="token | approle | kubernetes.")
    mount: VaultPath | None = Field(default=None, description="Path of the auth method; null = the method's name.")
    token: Annotated[SecretRef, AfterValidator(_plain)] | None = Field(
        default=None, description="os.environ/NAME of the token (method token); null = os.environ/VAULT_TOKEN."
    )
    role_id: Text | None = Field(default=None, description="Role id (method approle), or os.environ/NAME.")
    secret_id: Annotated[SecretRef, AfterValidator(_plain)] | None = Field(
        default=None, description="os.environ/NAME of the secret id (method approle)."
    )
    role: Text | None = Field(default=None, description="Role (method kubernetes).")
    service_account_token: Text = Field(
        default="/var/run/secrets/kubernetes.io/serviceaccount/token",
        description="File with the service account's token (method kubernetes); read at each log-in.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {AuthMethod.APPROLE: ("role_id", "secret_id"), AuthMethod.KUBERNETES: ("role",)}
        for name in needed.get(self.method, ()):
            if getattr(self, name) is None:
                raise ValueError(f"method: {self.method} needs '{name}'")
        return self


class HashicorpSecrets(Section):
    """HashiCorp Vault: KV version 2 and 1, and engines that make secrets on demand."""

    url: (
        Annotated[str, StringConstraints(pattern=r"^(https?://[^\s@]+|os\.environ/[A-Za-z_][A-Za-z0-9_]*)$")] | None
    ) = Field(default=None, description="https://vault.example.com, or os.environ/NAME.")
    namespace: Text | None = Field(default=None, description="Namespace (Vault Enterprise, HCP), or os.environ/NAME.")
    auth: HashicorpAuth = Field(default_factory=HashicorpAuth, description="How to log in.")
    mount: VaultPath = Field(default="secret", description="Mount of the KV engine that references without one mean.")
    engines: Annotated[Mapping[VaultPath, VaultEngine], *Frozen] = Field(
        default_factory=empty, description="Kind of engine by mount (kv2 | kv1 | dynamic), where Vault does not tell."
    )
    timeout: Annotated[Seconds, Field(gt=0)] = Field(default=10, description="Seconds to wait for an answer.")
    ca_cert: Text | None = Field(
        default=None, description="PEM file of the CA that signed Vault's certificate; null = the usual ones."
    )
    client_cert: Text | None = Field(default=None, description="PEM file of our certificate, where Vault asks for one.")
    client_key: Text | None = Field(default=None, description="PEM file of its key; null = it is in client_cert.")

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key does nothing without 'client_cert'")
        return self


class LocalSecrets(Section):
    """Environment variables and a file as a secret provider, for development."""

    enabled: bool | None = Field(
        default=None, description="null = yes in development, no in production, where `true` is refused."
    )
    file: Text | None = Field(
        default=None,
        description="File of NAME=value lines, mode 0600, looked into before the environment; refused in production.",
    )


def _installed(name: str) -> str:
    if name not in added_providers():
        raise PydanticKnownError("extra_forbidden")
    return name


def _only_installed(schema: dict[str, Any]) -> None:
    # Which names are valid depends on the machine; where nothing is installed, editors should know that none is.
    schema["additionalProperties"] = {"type": "object"} if added_providers() else False


_AddedName = Annotated[str, AfterValidator(_installed)]
_AddedSettings = Annotated[Mapping[str, Any], *Frozen]


class SecretProviders(Section):
    """Settings of each provider; those that other packages add take a mapping under the name of their scheme."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_only_installed)
    # This is how pydantic wants to be told; its own annotation says Any.
    __pydantic_extra__: dict[_AddedName, _AddedSettings] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    azure: AzureSecrets = Field(default_factory=AzureSecrets, description="Azure Key Vault.")
    aws: AwsSecrets = Field(default_factory=AwsSecrets, description="AWS Secrets Manager.")
    hashicorp: HashicorpSecrets = Field(default_factory=HashicorpSecrets, description="HashiCorp Vault.")
    local: LocalSecrets = Field(default_factory=LocalSecrets, description="Environment variables, for development.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*super().names(), *added_providers())

    @property
    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings of providers that other packages add; Any because only they know what these hold."""
        return self.model_extra or {}


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
