"""The whole `orchestration:` section."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from core.settings.models.alerts import Alerts
from core.settings.models.budgets import Budget
from core.settings.models.caching import Caching
from core.settings.models.identity import Group, Key, Tier
from core.settings.models.operations import Analytics, Journal, Limits, Resilience, SharedState, Store
from core.settings.models.reservations import Reservations
from core.settings.models.routing import Routing
from core.settings.models.secrets import Secrets
from core.settings.models.section import Frozen, Name, Section, empty


class Environment(StrEnum):
    """How careful the configuration has to be."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Settings(Section):
    """Everything under `orchestration:`; all of it is optional."""

    environment: Environment = Field(
        default=Environment.DEVELOPMENT, description="development | production, which refuses unsafe defaults."
    )
    store: Store = Field(default_factory=Store, description="The database.")
    shared_state: SharedState = Field(default_factory=SharedState, description="What instances share.")
    journal: Journal = Field(default_factory=Journal, description="Where usage is written down first.")
    secrets: Secrets = Field(default_factory=Secrets, description="Secrets by reference.")
    keys: tuple[Key, ...] = Field(default=(), description="Callers' keys where LiteLLM has no database.")
    trust_key_metadata: bool = Field(
        default=False,
        description="Whether metadata of LiteLLM's keys and users may grant a tier or groups, not only narrow.",
    )
    groups: Annotated[Mapping[Name, Group], *Frozen] = Field(
        default_factory=empty, description="Users and teams under one name."
    )
    tiers: Annotated[Mapping[Name, Tier], *Frozen] = Field(default_factory=empty, description="Levels of access.")
    default_tier: Name | None = Field(
        default=None, description="The tier of callers without one; null = no tier's limits."
    )
    routing: Routing = Field(default_factory=Routing, description="Which model answers.")
    budgets: tuple[Budget, ...] = Field(default=(), description="How much may be spent.")
    reservations: Reservations = Field(
        default_factory=Reservations, description="What budgets set aside for requests under way."
    )
    alerts: Alerts = Field(default_factory=Alerts, description="Messages to people.")
    caching: Caching = Field(default_factory=Caching, description="Answers that exist already.")
    resilience: Resilience = Field(default_factory=Resilience, description="What happens when providers fail.")
    limits: Limits = Field(default_factory=Limits, description="Limits of the whole proxy.")
    analytics: Analytics = Field(default_factory=Analytics, description="What is measured and kept.")
