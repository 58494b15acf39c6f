"""Every metric that is served. docs/metrics.md has the same table."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from plugins.metrics.traffic import Spread

PREFIX: Final = "llm_orchestration_"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is without the prefix, `shared` ones are the same whichever worker tells them; all others have the label
    `worker` besides theirs."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    shared: bool = False


Reading: TypeAlias = tuple[str, tuple[str, ...], float | Spread]
"""A metric's name without the prefix, its labels in the order of the catalog without the worker, its value."""


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str, shared: bool = False) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels, shared)


CATALOG: Final[tuple[Metric, ...]] = (
    # -- requests
    _counter(
        "requests_total",
        "Requests whose caller was known. cache: hit, shared, stale, partial or none.",
        *("endpoint", "model", "status", "cache"),
    ),
    _counter("requests_refused_total", "Requests that were refused with one of our own errors.", "code"),
    Metric(
        "request_duration_seconds",
        Kind.HISTOGRAM,
        "From arrival to the last byte, of answers that a model gave.",
        ("model",),
    ),
    Metric("first_token_seconds", Kind.HISTOGRAM, "From arrival to the first event of a stream.", ("model",)),
    _counter(
        "attempts_total", "Calls to providers. status: class of theirs, none without an answer.", "model", "status"
    ),
    _counter("tokens_total", "Tokens that providers reported. direction: input or output.", "model", "direction"),
    _counter("cost_dollars_total", "What calls were charged when they ended; later corrections left out.", "model"),
    _gauge("requests_in_progress", "Requests inside, as max_concurrent_requests counts them."),
    _gauge("requests_queued", "Requests that wait for a place."),
    # -- cache
    _counter("cache_hits_total", "Answers from the cache.", "task_type", "model"),
    _counter("cache_misses_total", "Requests that the cache had no answer for.", "task_type", "model"),
    _counter("cache_partial_total", "Misses with answers to some of their inputs.", "task_type", "model"),
    _counter("cache_shared_total", "Answers shared with an equal request in flight.", "task_type", "model"),
    _counter("cache_stale_total", "Answers that were too old, in place of an error.", "task_type", "model"),
    _counter("cache_saved_dollars_total", "What answers from the cache had cost.", "task_type", "model"),
    _counter("cache_found_total", "Hits by where they were found: memory or redis.", "place"),
    _counter("cache_evictions_total", "Answers that had to make room in memory."),
    _gauge("cache_entries", "Answers in memory."),
    _gauge("cache_bytes", "What they take."),
    _gauge("cache_max_bytes", "What they may take."),
    # -- routing
    _counter("rule_hits_total", "How often a rule was followed.", "rule"),
    _counter("rule_failures_total", "How often a rule's condition could not be answered.", "rule"),
    _counter("audience_failures_total", "How often an experiment's audience could not be answered.", "experiment"),
    _counter(
        "strategy_calls_total",
        "How often asking a custom strategy ended how: chose, raised, slow, unknown_model, missing, busy.",
        *("strategy", "outcome"),
    ),
    # -- resilience
    _gauge("breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.", "deployment", "model"),
    _counter("breaker_openings_total", "How often breakers opened, as this worker noticed first."),
    _gauge("deployment_enabled", "0 where administrators have switched it off.", "deployment", "model"),
    _gauge("deployment_healthy", "What its last health check said; absent without one.", "deployment", "model"),
    _gauge("deployment_in_flight", "Attempts under way.", "deployment", "model"),
    _gauge("deployment_failing_ratio", "Share of its attempts that fail, of some minutes.", "deployment", "model"),
    _counter("retries_total", "Attempts at a model that had failed."),
    _counter("requests_all_failed_total", "Requests all of whose models failed."),
    _counter("degraded_answers_total", "Fallback responses in place of a model's answer."),
    _counter("shed_total", "Requests turned away at the door under overload."),
    _gauge("shedding_ratio", "Share of requests that are turned away now."),
    # -- budgets
    _gauge("budget_limit_dollars", "What may be spent this period, top-ups included.", "budget", shared=True),
    _gauge("budget_spent_dollars", "What is spent.", "budget", shared=True),
    _gauge("budget_reserved_dollars", "What requests in flight have reserved.", "budget", shared=True),
    _gauge("budget_paused", "1 while it admits nothing.", "budget", shared=True),
    # -- books
    _gauge("ledger_backlog_events", "Usage records in the journal that are not in the store."),
    _gauge("ledger_backlog_bytes", "What they take."),
    _gauge("ledger_oldest_seconds", "Age of the oldest of them."),
    _counter("ledger_written_total", "Usage records that the store has."),
    _counter("ledger_rejected_total", "Usage records that the store would not hold; they are in rejected.jsonl."),
    _counter("ledger_torn_total", "Damaged lines of the journal."),
    _counter("journal_appended_total", "Usage records written to the journal's disk."),
    _counter("journal_overflowed_total", "Usage records that had to wait in memory."),
    _counter("journal_lost_total", "Usage records that found no room. Must be 0."),
    _gauge("journal_waiting", "Usage records that wait in memory now."),
    _gauge("journal_accepting", "0: requests are refused because usage cannot be kept."),
    # -- the worker
    _gauge("store_up", "Whether the database answered last."),
    _gauge("shared_state_up", "Whether Redis is connected; 1 without one."),
    _gauge("secrets", "References in use. state: fresh, stale, reverted or unavailable.", "state"),
    _gauge("alerts_waiting", "Alerts that are not in the store yet."),
    _counter("alerts_lost_total", "Alerts that found no room."),
    _gauge("config_problems", "What keeps the changed file or the overlay from being in force."),
    _gauge("config_loaded_timestamp_seconds", "When the configuration in force was loaded."),
    _gauge("start_time_seconds", "When the worker started."),
    _gauge("build_info", "Always 1.", "version"),
    _gauge("workers", "Workers of this machine that are in this answer.", shared=True),
)
