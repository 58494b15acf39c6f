"""Which model answers: policies, rules, experiments."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from core.settings.models.section import Fraction, Frozen, Identifier, Name, Section, Text, Weight, empty

Condition = (
    Annotated[str, StringConstraints(min_length=1, max_length=4096)] | Annotated[Mapping[str, JsonValue], *Frozen]
)
"""An expression over the request's context, or fields with the value, or the list of values, that they must have."""


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


class Sticky(StrEnum):
    """Who stays with the candidate that answered first."""

    SESSION = "session"
    USER = "user"


class Unit(StrEnum):
    """What an experiment assigns to a variant."""

    USER = "user"
    TEAM = "team"
    KEY = "key"
    SESSION = "session"


class ExperimentStatus(StrEnum):
    """Where an experiment stands."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Policy(Section):
    """A model name that clients ask for and the models that may answer."""

    candidates: tuple[Name, ...] = Field(min_length=1, description="Models of model_list, the preferred one first.")
    objective: Name = Field(
        default="priority",
        description="priority | cost | latency | balanced | weighted, or the name of a custom strategy.",
    )
    grants: bool = Field(
        default=False, description="Whether a key that lists the policy may use its candidates through it."
    )
    sticky: Sticky | None = Field(
        default=None, description="session | user: stays with its candidate; null = not sticky."
    )
    regions: tuple[Text, ...] = Field(default=(), description="Only deployments of these regions; empty = any.")
    fallback_response: Text | None = Field(
        default=None, description="The answer when every candidate fails; null = an error with status 503."
    )


class RoutingRule(Section):
    """When a request is like this, do that."""

    id: Identifier = Field(description="Unique among the rules.")
    when: Condition = Field(description="An expression, or fields with their wanted value or values.")
    use: tuple[Name, ...] = Field(default=(), description="Only these models.")
    prefer: tuple[Name, ...] = Field(default=(), description="These models first.")
    exclude: tuple[Name, ...] = Field(default=(), description="Not these models.")
    deny: Text | None = Field(default=None, description="Refuse the request with this message.")
    set: Annotated[Mapping[str, JsonValue], *Frozen] = Field(
        default_factory=empty, description="Fields of the request to set, such as max_tokens."
    )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.use or self.prefer or self.exclude or self.deny or self.set):
            raise ValueError("needs one of use, prefer, exclude, deny, set")
        return self


class Variant(Section):
    """One arm of an experiment."""

    id: Identifier = Field(description="Unique within the experiment.")
    model: Name = Field(description="The model that answers.")
    weight: Weight = Field(default=50, description="Share of the experiment's traffic, relative to the other variants.")


class ExperimentMetrics(Section):
    """What an experiment is judged by."""

    primary: Name = Field(default="rating", description="The metric that decides.")
    guardrails: tuple[Name, ...] = Field(
        default=("error_rate", "latency_p95", "cost"), description="Metrics that must not get worse."
    )


class Experiment(Section):
    """A comparison of models under one policy."""

    id: Identifier = Field(description="Unique among the experiments.")
    policy: Name = Field(description="The policy whose requests take part.")
    unit: Unit = Field(default=Unit.USER, description="user | team | key | session: what keeps its variant.")
    audience: Condition | None = Field(default=None, description="Which requests take part; null = all.")
    traffic: Fraction = Field(default=1.0, description="Share of the units that take part, 0 to 1.")
    variants: tuple[Variant, ...] = Field(min_length=2, description="The arms; the first is the control.")
    metrics: ExperimentMetrics = Field(default_factory=ExperimentMetrics, description="What it is judged by.")
    status: ExperimentStatus = Field(default=ExperimentStatus.DRAFT, description="draft | running | paused | stopped.")

    @model_validator(mode="after")
    def _can_assign(self) -> Self:
        ids = [variant.id for variant in self.variants]
        if len(set(ids)) != len(ids):
            raise ValueError("has two variants with the same id")
        if not sum(variant.weight for variant in self.variants):
            raise ValueError("has no variant with a weight above 0")
        return self


DottedClass = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]


class Routing(Section):
    """Which model answers."""

    order: tuple[Stage, ...] = Field(default=tuple(Stage), description="The stages, in the order in which they decide.")
    policies: Annotated[Mapping[Name, Policy], *Frozen] = Field(
        default_factory=empty, description="Model names that clients ask for, and their candidates."
    )
    rules: tuple[RoutingRule, ...] = Field(default=(), description="Tried in order.")
    experiments: tuple[Experiment, ...] = Field(default=(), description="Comparisons between models.")
    strategies: Annotated[Mapping[Name, DottedClass], *Frozen] = Field(
        default_factory=empty, description="Custom strategies: a name and the dotted path of its class."
    )

    @model_validator(mode="after")
    def _each_stage_once(self) -> Self:
        if len(set(self.order)) != len(self.order):
            raise ValueError("names a stage twice in `order`")
        return self
