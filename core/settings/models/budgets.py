"""How much may be spent, by whom, until when."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, cast
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from core.settings.models.section import Dollars, Fraction, Identifier, Name, Section, Text


class BudgetResetPeriod(StrEnum):
    """When a budget starts anew, in its own timezone."""

    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    QUARTERLY = "QUARTERLY"
    TOTAL = "TOTAL"


class AtLimit(StrEnum):
    """What happens to a request that no longer fits."""

    BLOCK = "block"
    DEGRADE = "degrade"
    WARN = "warn"


class BudgetPer(StrEnum):
    """Whom a budget is given to one by one."""

    USER = "user"
    TEAM = "team"
    KEY = "key"
    MODEL = "model"


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError("is not the name of a timezone, such as UTC or Europe/Berlin") from None
    return name


class Budget(Section):
    """A budget; all the scopes that are given must match a request, none given means every request."""

    budget_id: Identifier = Field(description="Unique among the budgets.")
    name: Text | None = Field(default=None, description="What people call it.")
    total_budget: Dollars = Field(description="US dollars a period, at most nine decimals.")
    reset_period: Annotated[BudgetResetPeriod, BeforeValidator(_upper)] = Field(
        default=BudgetResetPeriod.MONTHLY, description="DAILY | WEEKLY | MONTHLY | QUARTERLY | TOTAL (never)."
    )
    timezone: Annotated[str, AfterValidator(_known_timezone)] = Field(
        default="UTC", description="IANA timezone in which periods begin."
    )
    alert_thresholds: tuple[Fraction, ...] = Field(
        default=(0.5, 0.8, 0.95), description="Shares of total_budget at which an alert is sent, rising."
    )
    at_limit: AtLimit = Field(
        default=AtLimit.BLOCK,
        description="block | degrade | warn; warn when auto_disable_at_limit is false and this is not set.",
    )
    auto_disable_at_limit: bool | None = Field(
        default=None, description="true = at_limit block, false = at_limit warn."
    )
    degrade_to: tuple[Name, ...] = Field(
        default=(), description="With at_limit degrade: the models that answer instead."
    )
    flat_reserve: Dollars | None = Field(
        default=None, description="US dollars reserved for a request whose cost cannot be bounded; null = refuse it."
    )
    per: BudgetPer | None = Field(
        default=None, description="user | team | key | model: each has its own; null = shared."
    )
    users: tuple[Text, ...] = Field(default=(), description="Scope: user ids.")
    teams: tuple[Text, ...] = Field(default=(), description="Scope: team ids.")
    user_groups: tuple[Name, ...] = Field(default=(), description="Scope: names of groups.")
    models: tuple[Name, ...] = Field(default=(), description="Scope: models, by name or glob.")
    keys: tuple[Text, ...] = Field(default=(), description="Scope: key hashes or aliases, never keys.")
    task_types: tuple[Name, ...] = Field(default=(), description="Scope: task types.")

    @model_validator(mode="before")
    @classmethod
    def _the_old_name_decides(cls, data: Any) -> Any:
        fields: Mapping[str, Any] = cast(Mapping[str, Any], data) if isinstance(data, Mapping) else {}
        if fields.get("auto_disable_at_limit") is False and "at_limit" not in fields:
            return {**fields, "at_limit": "warn"}
        return cast(Any, data)

    @field_validator("alert_thresholds")
    @classmethod
    def _rising(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if list(thresholds) != sorted(set(thresholds)):
            raise ValueError("must rise from each threshold to the next")
        return thresholds

    @field_validator("keys")
    @classmethod
    def _no_literal_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(key.startswith("sk-") for key in keys):
            raise ValueError("takes hashes or aliases of keys, never the keys themselves")
        return keys

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if self.auto_disable_at_limit is not None and self.auto_disable_at_limit != (self.at_limit is AtLimit.BLOCK):
            flag = str(self.auto_disable_at_limit).lower()
            raise ValueError(f"auto_disable_at_limit: {flag} contradicts at_limit: {self.at_limit}; leave one out")
        if self.at_limit is AtLimit.DEGRADE and not self.degrade_to:
            raise ValueError("at_limit: degrade needs degrade_to, the models that answer instead")
        if self.degrade_to and self.at_limit is not AtLimit.DEGRADE:
            raise ValueError(f"degrade_to does nothing with at_limit: {self.at_limit}; set at_limit: degrade")
        return self
