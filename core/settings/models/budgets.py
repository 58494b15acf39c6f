"""How much may be spent, by whom, until when."""

import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Self, cast
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from core.settings.models.section import Count, Dollars, Fraction, Frozen, Identifier, Name, Section, Text, empty


class BudgetResetPeriod(StrEnum):
    """When a budget starts anew, in its own timezone."""

    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    QUARTERLY = "QUARTERLY"
    TOTAL = "TOTAL"


class Weekday(StrEnum):
    """The day a week starts with."""

    MONDAY = "MONDAY"
    TUESDAY = "TUESDAY"
    WEDNESDAY = "WEDNESDAY"
    THURSDAY = "THURSDAY"
    FRIDAY = "FRIDAY"
    SATURDAY = "SATURDAY"
    SUNDAY = "SUNDAY"


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


_KEY_HASH = re.compile(r"(sha256:)?[0-9a-f]{64}")


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError("is not the name of a timezone, such as UTC or Europe/Berlin") from None
    return name


_ANCHORS = {
    BudgetResetPeriod.WEEKLY: ("week_starts",),
    BudgetResetPeriod.MONTHLY: ("day",),
    BudgetResetPeriod.QUARTERLY: ("month", "day"),
}
"""What can be chosen about the beginning of a period."""


class Anchor(Section):
    """Where periods begin, if not on a Monday, on the first of the month, or in January."""

    week_starts: Annotated[Weekday, BeforeValidator(_upper)] | None = Field(
        default=None, description="With WEEKLY: MONDAY (where nothing is said) to SUNDAY."
    )
    month: Annotated[Count, Field(le=12)] | None = Field(
        default=None,
        description="With QUARTERLY: the first month of the fiscal year, 1 (where nothing is said) to 12.",
    )
    day: Annotated[Count, Field(le=28)] | None = Field(
        default=None, description="With MONTHLY and QUARTERLY: the day of the month, 1 (where nothing is said) to 28."
    )


class Rollover(Section):
    """What is left of one period is added to the next."""

    max: Dollars = Field(description="US dollars that are carried over at most, for each member of a `per` budget.")


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
    anchor: Anchor | None = Field(default=None, description="Where periods begin; null = as calendars have it.")
    rollover: Rollover | None = Field(
        default=None, description="Carries unspent money into the next period; null = it lapses. Not with TOTAL."
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
    user_groups: tuple[Name, ...] = Field(
        default=(), description="Scope: names of groups; one that the caller is in is enough."
    )
    models: tuple[Name, ...] = Field(
        default=(),
        description="Scope: by name or glob, models that answer, or policies that are asked for.",
    )
    keys: tuple[Text, ...] = Field(
        default=(),
        description="Scope: hashes of keys (SHA-256 in hex) or aliases, never keys. Where LiteLLM lets users make keys "
        "and rename them, `users` or `teams` hold them and this does not.",
    )
    task_types: tuple[Name, ...] = Field(default=(), description="Scope: task types, as requests state them.")
    overrides: Annotated[Mapping[Text, Dollars], *Frozen] = Field(
        default_factory=empty,
        description="With `per`: US dollars a period for single members, in place of total_budget; by user id, "
        "team id, hash of the key, or model.",
    )

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

    @field_validator("anchor")
    @classmethod
    def _anchored_where_it_matters(cls, anchor: Anchor | None, info: ValidationInfo) -> Anchor | None:
        period: BudgetResetPeriod | None = info.data.get("reset_period")
        if anchor is None or period is None:
            return anchor
        valid = _ANCHORS.get(period, ())
        for field in Anchor.names():
            if getattr(anchor, field) is not None and field not in valid:
                takes = f"takes {' and '.join(valid)}" if valid else "has no anchor"
                raise ValueError(f"{field} does nothing with reset_period: {period}, which {takes}")
        return anchor

    @field_validator("rollover")
    @classmethod
    def _into_another_period(cls, rollover: Rollover | None, info: ValidationInfo) -> Rollover | None:
        if rollover is not None and info.data.get("reset_period") is BudgetResetPeriod.TOTAL:
            raise ValueError("does nothing with reset_period: TOTAL, which has no next period")
        return rollover

    @field_validator("keys")
    @classmethod
    def _no_literal_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(key.startswith("sk-") for key in keys):
            raise ValueError("takes hashes or aliases of keys, never the keys themselves")
        return keys

    @field_validator("overrides")
    @classmethod
    def _of_members(cls, overrides: Mapping[str, Decimal], info: ValidationInfo) -> Mapping[str, Decimal]:
        if not overrides or "per" not in info.data:
            return overrides
        per: BudgetPer | None = info.data["per"]
        if per is None:
            raise ValueError("needs `per`, which says whose they are: user, team, key or model")
        # An alias would let whoever may name a key take somebody's allowance.
        if per is BudgetPer.KEY and not all(_KEY_HASH.fullmatch(member) for member in overrides):
            raise ValueError("with per: key, takes hashes of keys: the SHA-256 in 64 lower-case hex digits")
        return overrides

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
