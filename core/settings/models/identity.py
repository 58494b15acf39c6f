"""Who may ask: keys, groups and tiers."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from core.settings.models.section import Count, Name, Priority, SecretRef, Section, Text


class Key(Section):
    """A caller's key where LiteLLM has no database."""

    key: SecretRef | None = Field(
        default=None, description="Reference to the key, such as os.environ/KEY_ADA; never the key itself."
    )
    key_hash: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description='"sha256:" and the 64 lower-case hex digits of the key\'s SHA-256, in place of `key`.'
    )
    user_id: Text | None = Field(default=None, description="Whose key it is.")
    team_id: Text | None = Field(default=None, description="The team the usage counts for.")
    tier: Name | None = Field(default=None, description="Name of a tier; `default_tier` when left out.")
    models: tuple[Name, ...] = Field(
        default=("*",),
        min_length=1,
        description="Models and policies the key may ask for, by name or glob. The tier limits them further.",
    )
    requests_per_minute: Count | None = Field(
        default=None, description="Requests per minute with this key; null = no limit."
    )
    tokens_per_minute: Count | None = Field(
        default=None, description="Input and output tokens per minute with this key; null = no limit."
    )
    max_parallel_requests: Count | None = Field(
        default=None, description="Requests in flight at once with this key; null = no limit."
    )
    trusted: bool = Field(
        default=False,
        description="Whether requests with this key may say on whose behalf they come (user_id, user_tier).",
    )

    @model_validator(mode="after")
    def _one_way_to_know_the_key(self) -> Self:
        if (self.key is None) == (self.key_hash is None):
            raise ValueError("needs exactly one of `key` (a reference) and `key_hash`")
        return self


class Group(Section):
    """People and teams that budgets and rules name together."""

    users: tuple[Text, ...] = Field(default=(), description="User ids.")
    teams: tuple[Text, ...] = Field(default=(), description="Team ids: everyone who asks for one of them.")


class Tier(Section):
    """A level of access."""

    models: tuple[Name, ...] = Field(
        default=("*",), description="Models and policies the tier may use, by name or glob."
    )
    requests_per_minute: Count | None = Field(
        default=None, description="Requests per minute for each user; null = no limit."
    )
    tokens_per_minute: Count | None = Field(
        default=None, description="Input and output tokens per minute for each user; null = no limit."
    )
    max_parallel_requests: Count | None = Field(
        default=None, description="Requests in flight at once for each user; null = no limit."
    )
    max_tokens: Count | None = Field(
        default=None, description="Most output tokens a request may ask for; null = the model's."
    )
    default_policy: Name | None = Field(
        default=None, description="The policy that answers a request which names no model; null = none."
    )
    priority: Priority = Field(default=2, description="From 1 to 10; 1 is served first when there is not room for all.")
