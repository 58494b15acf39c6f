"""Which answers are kept, for how long, and who shares them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from core.settings.models.section import Count, Frozen, Name, Seconds, SecretRef, Section, empty


class CacheScope(StrEnum):
    """Who shares cached answers."""

    USER = "user"
    TEAM = "team"
    GLOBAL = "global"


class CacheTtl(Section):
    """How long answers of one kind are kept."""

    ttl: Seconds = Field(description="Seconds; 0 = not cached.")


class CacheStrategies(Section):
    """Exceptions from the default ttl. Where several fit, that of the task type counts, else the model's, else the
    tier's."""

    task_type: Annotated[Mapping[Name, CacheTtl], *Frozen] = Field(
        default_factory=empty, description="A ttl for each task type; before all others."
    )
    model: Annotated[Mapping[Name, CacheTtl], *Frozen] = Field(
        default_factory=empty, description="A ttl for each model that answers, by name or glob; before the tier's."
    )
    tier: Annotated[Mapping[Name, CacheTtl], *Frozen] = Field(default_factory=empty, description="A ttl for each tier.")


class Caching(Section):
    """Answers that exist already."""

    enabled: bool = Field(default=False, description="Whether answers are cached.")
    default_ttl: Seconds = Field(default=3600, description="Seconds an answer is kept.")
    scope: CacheScope = Field(
        default=CacheScope.TEAM,
        description="user | team | global: who shares an answer. A key without a team shares with its user alone.",
    )
    max_entries: Count = Field(default=10_000, description="Answers kept in memory; the least recently used go first.")
    max_bytes: Count = Field(default=268_435_456, description="Bytes kept in memory.")
    max_entry_bytes: Count = Field(default=1_048_576, description="Bytes of the largest answer that is kept.")
    serve_stale: Seconds = Field(
        default=0, description="Seconds an answer is kept after its ttl, for when every model fails."
    )
    deduplicate: bool = Field(default=True, description="Whether equal requests in flight share one answer.")
    edge: bool = Field(
        default=True,
        description="Whether answers that exist leave before LiteLLM's pipeline; its callbacks do not see those.",
    )
    identity_ttl: Seconds = Field(
        default=30,
        description="Seconds for which whom LiteLLM has accepted is answered at the edge without asking it again; a "
        "key that is revoked where the proxy does not see it is out after that. 0 = asked each time.",
    )
    cache_tool_calls: bool = Field(
        default=False, description="Whether answers that call tools, or used tools with effects, are cached."
    )
    cache_sampled: bool = Field(
        default=True, description="Whether answers are cached of requests that do not say temperature: 0."
    )
    encryption_key: SecretRef | None = Field(
        default=None,
        description="A reference to the key that answers in Redis are encrypted with; null = in the clear.",
    )
    cache_strategies: CacheStrategies = Field(
        default_factory=CacheStrategies, description="Other ttls: by task type, else by model, else by tier."
    )
