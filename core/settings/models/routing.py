"""Which model answers: policies and rules."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints, model_validator

from core.settings.models.conditions import Condition
from core.settings.models.experiments import Experiment, Holdout, Parameters
from core.settings.models.section import Frozen, Identifier, Name, Seconds, Section, Text, Weight, empty, no_bool


class Stage(StrEnum):
    """What narrows or orders the candidates."""

    EXPERIMENTS = "experiments"
    RULES = "rules"
    TIERS = "tiers"
    PRIORITY = "priority"
    COST = "cost"


class Objective(StrEnum):
    """Ways to order a policy's candidates; custom strategies add names."""

    PRIORITY = "priority"
    COST = "cost"
    LATENCY = "latency"
    BALANCED = "balanced"
    WEIGHTED = "weighted"
    LEAST_BUSY = "least_busy"
    ROUND_ROBIN = "round_robin"


class Sticky(StrEnum):
    """Who stays with a candidate."""

    SESSION = "session"
    USER = "user"


class Match(StrEnum):
    """How many of the rules that match are followed."""

    FIRST = "first"
    ALL = "all"


class Balance(Section):
    """What `objective: balanced` weighs against each other."""

    cost: Weight = Field(default=1.0, description="Weight of the expected cost.")
    latency: Weight = Field(default=1.0, description="Weight of the latency that was measured lately.")
    priority: Weight = Field(default=1.0, description="Weight of the priority.")
    load: Weight = Field(default=0.0, description="Weight of the requests in flight.")


class Policy(Section):
    """A model name that clients ask for and the models that may answer."""

    candidates: tuple[Name, ...] = Field(min_length=1, description="Models of model_list, the preferred one first.")
    objective: Name = Field(
        default="priority",
        description="priority | cost | latency | balanced | weighted | least_busy | round_robin, or the name of a "
        "custom strategy.",
    )
    weights: Annotated[Mapping[Name, Weight], *Frozen] = Field(
        default_factory=empty, description="With `objective: weighted`: shares of the candidates; 1 where left out."
    )
    balance: Balance = Field(default_factory=Balance, description="With `objective: balanced`: what weighs how much.")
    grants: bool = Field(
        default=False, description="Whether a key that lists the policy may use its candidates through it."
    )
    sticky: Sticky | None = Field(
        default=None, description="session | user: stays with its candidate; null = not sticky."
    )
    regions: tuple[Annotated[Text, AfterValidator(str.lower)], ...] = Field(
        default=(), description="Only deployments of these regions; empty = any."
    )
    fallback_response: Text | None = Field(
        default=None, description="The answer when every candidate fails; null = an error with status 503."
    )
    cache: bool = Field(default=True, description="With `caching.enabled`: whether its answers are cached and shared.")


class RoutingRule(Section):
    """When a request is like this, do that."""

    id: Identifier = Field(description="Unique among the rules.")
    when: Condition = Field(description="An expression, or fields with their wanted value or values.")
    priority: Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=1_000_000)] = Field(
        default=100, description="Lower ones are tried first; equal ones in the order they stand in."
    )
    use: tuple[Name, ...] = Field(default=(), description="Only these models.")
    prefer: tuple[Name, ...] = Field(default=(), description="These models first.")
    exclude: tuple[Name, ...] = Field(default=(), description="Not these models.")
    deny: Text | None = Field(default=None, description="Refuse the request with this message.")
    set: Parameters = Field(
        default_factory=empty, description="Fields of the request to set: temperature, max_tokens, timeout, tags."
    )
    enabled: bool = Field(default=True, description="Whether it is tried.")
    valid_from: AwareDatetime | None = Field(default=None, description="Not tried before; null = at once.")
    valid_until: AwareDatetime | None = Field(default=None, description="Not tried from then on; null = for good.")

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.use or self.prefer or self.exclude or self.deny or self.set):
            raise ValueError("needs one of use, prefer, exclude, deny, set")
        if self.valid_from is not None and self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError("ends before it starts")
        return self


DottedClass = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$")]


class Routing(Section):
    """Which model answers."""

    order: tuple[Stage, ...] = Field(default=tuple(Stage), description="The stages, in the order in which they decide.")
    policies: Annotated[Mapping[Name, Policy], *Frozen] = Field(
        default_factory=empty, description="Model names that clients ask for, and their candidates."
    )
    rules: tuple[RoutingRule, ...] = Field(default=(), description="Tried by their priority.")
    match: Match = Field(default=Match.FIRST, description="first | all: how many of the rules that match are followed.")
    headers: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")], ...] = Field(
        default=(), description="Request headers that conditions may look at, in lower case: headers['x-app']."
    )
    experiments: tuple[Experiment, ...] = Field(default=(), description="Comparisons between models.")
    holdout: Holdout = Field(default_factory=Holdout, description="Units that no experiment touches.")
    strategies: Annotated[Mapping[Name, DottedClass], *Frozen] = Field(
        default_factory=empty, description="Custom strategies: a name and the dotted path of its class."
    )
    strategy_timeout: Annotated[Seconds, Field(gt=0, le=30)] = Field(
        default=0.1, description="Seconds a custom strategy may take before the policy's order is used without it."
    )

    @model_validator(mode="after")
    def _each_stage_once(self) -> Self:
        if len(set(self.order)) != len(self.order):
            raise ValueError("names a stage twice in `order`")
        if Stage.TIERS not in self.order:
            raise ValueError("must name `tiers` in `order`: what a tier may not use is never used")
        decided = [index for index, stage in enumerate(self.order) if stage in (Stage.PRIORITY, Stage.COST)]
        for stage in (Stage.EXPERIMENTS, Stage.RULES):
            if decided and stage in self.order and self.order.index(stage) > decided[0]:
                raise ValueError(f"must name `{stage}` in `order` before `priority` and `cost`, which decide the rest")
        return self
