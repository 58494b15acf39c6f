"""Experiments: who is compared with whom, by what, and until when."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue, model_validator

from core.settings.models.conditions import Condition
from core.settings.models.section import Fraction, Frozen, Identifier, Name, Section, Text, Weight, empty, no_bool


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


class Allocation(StrEnum):
    """How units are divided among the variants."""

    FIXED = "fixed"
    THOMPSON = "thompson"


class Method(StrEnum):
    """How results are judged."""

    SEQUENTIAL = "sequential"
    BAYESIAN = "bayesian"


class Correction(StrEnum):
    """What is done about several comparisons in one experiment."""

    HOLM = "holm"
    BENJAMINI_HOCHBERG = "benjamini_hochberg"
    NONE = "none"


Parameters = Annotated[Mapping[str, JsonValue], *Frozen]
"""Fields of a request with the values they get."""


class Variant(Section):
    """One arm of an experiment: a model, or other parameters, or both."""

    id: Identifier = Field(description="Unique within the experiment.")
    model: Name | None = Field(
        default=None, description="The model that answers; null = whichever the policy would take."
    )
    weight: Weight = Field(default=50, description="Share of the experiment's traffic, relative to the other variants.")
    set: Parameters = Field(default_factory=empty, description="Fields of the request to set, such as temperature.")
    system_prefix: Annotated[Text, Field(max_length=16_384)] | None = Field(
        default=None, description="Text put in front of the system prompt; null = none."
    )


class ExperimentMetrics(Section):
    """What an experiment is judged by."""

    primary: Name = Field(default="rating", description="The metric that decides.")
    secondary: tuple[Name, ...] = Field(default=(), description="Other metrics to look at.")
    guardrails: tuple[Name, ...] = Field(
        default=("error_rate", "displaced", "latency_p95", "cost"), description="Metrics that must not get worse."
    )
    guardrail_limit: Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=100, allow_inf_nan=False)] = Field(
        default=0.2, description="How much worse than the control, as a share of it, a guardrail may get."
    )
    stop_arms: bool = Field(
        default=True, description="Whether an arm that surely breaks a guardrail gets no more requests."
    )
    lower_is_better: tuple[Name, ...] = Field(
        default=(), description="Metrics from feedback that are better when lower; the built-in ones are known."
    )
    method: Method = Field(default=Method.SEQUENTIAL, description="sequential | bayesian.")
    alpha: Annotated[Fraction, Field(gt=0, lt=0.5)] = Field(
        default=0.05, description="How often a difference may be seen where there is none."
    )
    correction: Correction = Field(
        default=Correction.HOLM, description="holm | benjamini_hochberg | none: for several variants and metrics."
    )
    minimum_effect: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.05, description="The smallest lift worth finding, as a share of the control; for the sample size."
    )


class Namespace(Section):
    """Experiments of one namespace with ranges that do not overlap never share a unit."""

    id: Identifier = Field(description="The namespace.")
    range: tuple[Fraction, Fraction] = Field(description="The part of it that is this experiment's, such as [0, 0.5].")

    @model_validator(mode="after")
    def _from_low_to_high(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError("`range` must go from a lower to a higher share")
        return self


class RampStep(Section):
    """From a moment on, another share of the units takes part."""

    at: AwareDatetime = Field(description="When, with its time zone, such as 2026-03-01T09:00:00Z.")
    traffic: Fraction = Field(description="Share of the units that take part from then on, 0 to 1.")


class Experiment(Section):
    """A comparison of models or parameters under one policy."""

    id: Identifier = Field(description="Unique among the experiments.")
    policy: Name = Field(description="The policy whose requests take part.")
    unit: Unit = Field(default=Unit.USER, description="user | team | key | session: what keeps its variant.")
    audience: Condition | None = Field(default=None, description="Which requests take part; null = all.")
    traffic: Fraction = Field(default=1.0, description="Share of the units that take part, 0 to 1.")
    ramp: tuple[RampStep, ...] = Field(default=(), description="Later shares, the earliest first.")
    start: AwareDatetime | None = Field(default=None, description="Nobody takes part before; null = at once.")
    end: AwareDatetime | None = Field(default=None, description="Nobody takes part from then on; null = open.")
    seed: Identifier | None = Field(
        default=None, description="What assignments are drawn from; null = the id. A new one assigns everybody anew."
    )
    namespace: Namespace | None = Field(default=None, description="Keeps it apart from other experiments; null = none.")
    forced: Annotated[Mapping[str, Identifier], *Frozen] = Field(
        default_factory=empty, description="Units with the variant they always get; they are not counted."
    )
    variants: tuple[Variant, ...] = Field(min_length=2, description="The arms; the first is the control.")
    allocation: Allocation = Field(
        default=Allocation.FIXED, description="fixed | thompson: by weight, or more and more to what does better."
    )
    metrics: ExperimentMetrics = Field(default_factory=ExperimentMetrics, description="What it is judged by.")
    status: ExperimentStatus = Field(default=ExperimentStatus.DRAFT, description="draft | running | paused | stopped.")
    promote: Identifier | None = Field(
        default=None, description="With status stopped: the variant that everybody gets from now on."
    )

    @property
    def drawn_from(self) -> str:
        """What units are drawn from: two experiments of the same divide them in the same way."""
        return self.seed or self.id

    @model_validator(mode="after")
    def _can_assign(self) -> Self:
        ids = [variant.id for variant in self.variants]
        if len(set(ids)) != len(ids):
            raise ValueError("has two variants with the same id")
        if not sum(variant.weight for variant in self.variants):
            raise ValueError("has no variant with a weight above 0")
        for unit, variant in self.forced.items():
            if variant not in ids:
                raise ValueError(f"forces {unit[:40]!r} into {variant!r}, which is none of its variants")
        if self.promote is not None and self.promote not in ids:
            raise ValueError(f"promotes {self.promote!r}, which is none of its variants")
        if self.promote is not None and self.status is not ExperimentStatus.STOPPED:
            raise ValueError("promotes a variant, which takes status stopped")
        if list(self.ramp) != sorted(self.ramp, key=lambda step: step.at):
            raise ValueError("has steps in its ramp that are not in the order of time")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError("ends before it starts")
        return self


class Holdout(Section):
    """Units that no experiment touches, to compare the sum of all experiments with."""

    share: Fraction = Field(default=0.0, description="Share of the units held out, 0 to 1.")
    seed: Identifier = Field(default="holdout", description="What they are drawn from; a new one draws anew.")
