"""Messages to people: about what, and where they go."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import core_schema

from core.settings.models.section import Frozen, Name, Seconds, SecretRef, Section, empty
from core.settings.reference import checked_reference


class AlertEvent(StrEnum):
    """What alerts are sent about."""

    BUDGET_THRESHOLD = "budget_threshold"
    BUDGET_LIMIT = "budget_limit"
    BUDGET_REFUSED = "budget_refused"
    BUDGET_FORECAST = "budget_forecast"
    BUDGET_OVERRUN = "budget_overrun"
    CLAMPED = "clamped"
    BREAKER_OPEN = "breaker_open"
    BREAKER_CLOSED = "breaker_closed"
    SECRET_STALE = "secret_stale"  # noqa: S105 - the name of an event
    SHARED_STATE_DOWN = "shared_state_down"
    STORE_DOWN = "store_down"
    CONFIG_REFUSED = "config_refused"
    EXPERIMENT_ARM_STOPPED = "experiment_arm_stopped"
    EXPERIMENT_MISMATCH = "experiment_mismatch"


class AlertChannel(Section):
    """Where messages go. A reference alone is short for its url."""

    url: SecretRef = Field(
        description="A reference whose value is an Apprise URL (slack://, mailto://, ...) or webhook+https://."
    )
    secret: SecretRef | None = Field(
        default=None, description="A reference to the key that webhooks are signed with, where the url has no ?secret=."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_reference(cls, value: object) -> object:
        return {"url": checked_reference(value)} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        """A text or a mapping; Any because it is JSON."""
        whole = handler.resolve_ref_schema(handler(schema))
        whole["type"] = ["object", "string"]  # what is said of properties holds for objects alone
        return whole


AlertChannels = Mapping[Name, AlertChannel]


class AlertRule(Section):
    """Which events go where."""

    on: tuple[AlertEvent, ...] = Field(min_length=1, description="Events: " + ", ".join(AlertEvent) + ".")
    to: tuple[Name, ...] = Field(min_length=1, description="Names of channels.")


class Alerts(Section):
    """Messages to people."""

    channels: Annotated[AlertChannels, *Frozen] = Field(
        default_factory=empty, description="A name and a reference to the channel's URL, which is a secret."
    )
    rules: tuple[AlertRule, ...] = Field(default=(), description="Which events go where.")
    digest_seconds: Annotated[Seconds, Field(ge=1)] = Field(
        default=300, description="Seconds over which what comes in floods is counted and told in one message."
    )
    allow_private_addresses: bool = Field(
        default=False, description="Whether channels may lead to this machine and to private networks."
    )
    allowed_hosts: tuple[Name, ...] = Field(
        default=(), description="Hosts that channels may lead to whatever their address is."
    )

    def channels_of(self, event: AlertEvent) -> tuple[str, ...]:
        """The channels that some rule sends `event` to, each once."""
        return tuple(dict.fromkeys(channel for rule in self.rules if event in rule.on for channel in rule.to))
