"""How the proxy runs: store, shared state, journal, resilience, limits, analytics."""

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from core.settings.models.section import Count, Dollars, Fraction, Frozen, Seconds, Section, Text, empty
from core.settings.urls import checked_redis_url, checked_store_url


class OutageMode(StrEnum):
    """What block budgets do while Redis is away."""

    DENY = "deny"
    LOCAL = "local"
    ALLOW = "allow"


class Store(Section):
    """The database that keeps usage and everything else that must last."""

    url: Annotated[str, AfterValidator(checked_store_url)] = Field(
        default="sqlite+aiosqlite:///orchestration.db",
        repr=False,
        description="sqlite:///<file>, postgresql://..., or os.environ/NAME. PostgreSQL tables get their own schema.",
    )


class SharedState(Section):
    """What instances share from second to second."""

    url: Annotated[str, AfterValidator(checked_redis_url)] | None = Field(
        default=None,
        repr=False,
        description="redis://, rediss:// or unix://, or os.environ/NAME; null = in memory, one worker.",
    )
    on_outage: OutageMode = Field(
        default=OutageMode.DENY,
        description="While Redis is away: deny | local (spend an allotment drawn before, then deny) | allow.",
    )


class Journal(Section):
    """Where usage is written down before an answer's last byte leaves."""

    dir: Text = Field(default=".orchestration/journal", description="Folder; production wants a mounted volume.")
    redis: Text | None = Field(
        default=None, description="Name of a Redis stream (in shared_state.url) in place of the folder."
    )


class BreakerPer(StrEnum):
    """What fails together, and is left alone together."""

    DEPLOYMENT = "deployment"
    REGION = "region"


class CircuitBreaker(Section):
    """When a deployment is left alone for a while."""

    failure_threshold: Count = Field(
        default=5, description="Failures in a row that open it, none more than `window` after the one before."
    )
    failure_ratio: Annotated[Fraction, Field(gt=0)] | None = Field(
        default=0.5, description="Share of calls within `window` whose failure opens it; null = only failures in a row."
    )
    minimum_calls: Count = Field(default=20, description="Calls within `window` before `failure_ratio` says anything.")
    window: Seconds = Field(default=60, description="Seconds over which calls and failures count.")
    slow_call: Seconds | None = Field(
        default=None,
        description="Seconds (of a stream: to its first token) after which an answer counts as failed; null = never.",
    )
    open_for: Seconds = Field(default=30, description="Seconds until it is tried again; doubles with each failed try.")
    max_open_for: Seconds = Field(default=300, description="Most seconds until it is tried again, also after a 429.")
    half_open_requests: Count = Field(
        default=1, description="Requests that try it, over all instances; that many have to succeed."
    )
    per: BreakerPer = Field(
        default=BreakerPer.DEPLOYMENT, description="deployment | region (all deployments of a provider in a region)."
    )


class Jitter(StrEnum):
    """How back-off is spread."""

    FULL = "full"
    NONE = "none"


class Retries(Section):
    """How often and how fast a model is tried again."""

    max_attempts: Count = Field(default=3, description="Attempts in all, the first included.")
    base_delay: Seconds = Field(default=0.2, description="Seconds before the second attempt; doubles from there.")
    max_delay: Seconds = Field(default=5, description="Most seconds between two attempts.")
    jitter: Jitter = Field(default=Jitter.FULL, description="full (anything from 0 to the delay) | none.")
    deadline: Seconds | None = Field(
        default=None, description="Seconds of a request after which nothing is tried again; null = none."
    )
    budget: Fraction = Field(default=0.2, description="Retries for each request, on average: the most extra load.")


class HealthChecks(Section):
    """Asking deployments whether they are well."""

    interval: Seconds = Field(
        default=60,
        description="Seconds without traffic after which a deployment is checked, and between checks; 0 = none.",
    )
    timeout: Seconds = Field(default=10, description="Seconds after which a check has failed.")
    daily_budget: Dollars = Field(
        default=Decimal("0.10"), description="Most that all checks of an instance may cost a day, in dollars."
    )


class Resilience(Section):
    """What happens when providers fail."""

    circuit_breaker: CircuitBreaker = Field(default_factory=CircuitBreaker, description="Leaves failing models alone.")
    retries: Retries = Field(default_factory=Retries, description="Tries again.")
    health_checks: HealthChecks = Field(default_factory=HealthChecks, description="Asks models whether they are well.")


QueueSize = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]


def _checked_network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not an address or a network; write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32") from None
    # Addresses of IPv4 in IPv6 are read as IPv4, so networks have to be.
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return str(IPv4Network((int(mapped), network.prefixlen - 96)))
    return str(network)


class ForwardedHeader(StrEnum):
    """The header in which proxies in front say where a request comes from."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"


class UserLimits(Section):
    """Limits of one user, over all keys and tiers."""

    requests_per_minute: Count | None = Field(default=None, description="Requests per minute; null = no limit.")
    tokens_per_minute: Count | None = Field(
        default=None, description="Input and output tokens per minute; null = no limit."
    )
    max_parallel_requests: Count | None = Field(
        default=None, description="Requests in flight at once; null = no limit."
    )


class Limits(Section):
    """Limits of the whole proxy, of users and of addresses."""

    max_concurrent_requests: Count = Field(default=1000, description="Requests in flight at once, a worker.")
    queue_size: QueueSize | None = Field(
        default=None,
        description="Requests that wait for one in flight to end, by priority; null = twice `max_concurrent_requests`.",
    )
    queue_timeout: Seconds = Field(default=10, description="Seconds a request waits before it is refused.")
    shed_after: Seconds = Field(
        default=0.005,
        description="Seconds that a task has to wait for its turn from which on requests are refused at the door, the "
        "lowest priority first and the most urgent there are after forty times that; 0 = never.",
    )
    max_body_bytes: Count = Field(default=10_485_760, description="Largest request body in bytes.")
    per_ip_requests_per_minute: Count | None = Field(
        default=None, description="Requests per minute from one address (IPv6: from one /64); null = no limit."
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_checked_network)], ...] = Field(
        default=(), description="Addresses and networks of proxies in front, whose word on a client's address counts."
    )
    forwarded_header: ForwardedHeader = Field(
        default=ForwardedHeader.X_FORWARDED_FOR,
        description="x-forwarded-for | forwarded: the header that the trusted proxies write.",
    )
    users: Annotated[Mapping[Text, UserLimits], *Frozen] = Field(
        default_factory=empty, description="Limits of single users, by user id."
    )

    @property
    def places_to_wait(self) -> int:
        """`queue_size`, or what it is where it is left out."""
        return 2 * self.max_concurrent_requests if self.queue_size is None else self.queue_size


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Analytics(Section):
    """What is measured and how long it is kept."""

    retention_days: Count = Field(default=400, description="Days that usage events are kept.")
    metrics: bool = Field(default=True, description="Whether Prometheus metrics are served.")
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default=LogLevel.INFO, description="DEBUG | INFO | WARNING | ERROR | CRITICAL."
    )
