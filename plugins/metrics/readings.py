"""What every metric is now, read from the services when somebody asks."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from core.breakers import State
from core.errors import StoreError
from core.money import to_dollars
from litellm_orchestration._version import __version__
from plugins import compat, route
from plugins.admin.standing import Standings, charge_of, service
from plugins.caching import service as caching
from plugins.metrics.catalog import Reading
from plugins.metrics.traffic import NONE, Traffic
from plugins.resilience import service as resilience
from plugins.routing.live import Load
from secrets_manager.proxy import secrets

if TYPE_CHECKING:
    from core.runtime import Runtime
    from plugins.alerts.service import Alerts
    from plugins.limits import Entrance

_PATIENCE = 2.0
_STATES = ("fresh", "stale", "reverted", "unavailable")
_BREAKERS = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


def of_requests(traffic: Traffic, entrance: "Entrance | None") -> Iterator[Reading]:
    for by, requests in traffic.requests.items():
        yield "requests_total", by, requests
    for code, refused in traffic.refused.items():
        yield "requests_refused_total", (code,), refused
    for model, spread in traffic.durations.items():
        yield "request_duration_seconds", (model,), spread
    for model, spread in traffic.first_tokens.items():
        yield "first_token_seconds", (model,), spread
    for by, attempts in traffic.attempts.items():
        yield "attempts_total", by, attempts
    for by, tokens in traffic.tokens.items():
        yield "tokens_total", by, tokens
    for model, nano in traffic.cost_nano.items():
        yield "cost_dollars_total", (model,), _dollars(nano)
    yield "requests_in_progress", (), 0 if entrance is None else entrance.gate.inside
    yield "requests_queued", (), 0 if entrance is None else entrance.gate.waiting


def of_cache(traffic: Traffic) -> Iterator[Reading]:
    cache = caching.caching.cache if caching.caching is not None else None
    if cache is None:
        return
    stats = cache.stats()
    # Several models may have one name here.
    counts: dict[tuple[str, str], Counter[str]] = {}
    for label, count in stats.by_label.items():
        by = label.task_type or NONE, traffic.label(label.model)
        counts.setdefault(by, Counter()).update(asdict(count))
    for by, counted in counts.items():
        yield "cache_hits_total", by, counted["hits"]
        yield "cache_misses_total", by, counted["misses"]
        yield "cache_partial_total", by, counted["partial"]
        yield "cache_shared_total", by, counted["shared"]
        yield "cache_stale_total", by, counted["stale"]
        yield "cache_saved_dollars_total", by, _dollars(counted["saved_nano"])
    yield "cache_found_total", ("memory",), stats.memory_hits
    yield "cache_found_total", ("redis",), stats.redis_hits
    yield "cache_evictions_total", (), stats.evictions
    yield "cache_entries", (), stats.entries
    yield "cache_bytes", (), stats.bytes
    yield "cache_max_bytes", (), stats.max_bytes


def of_routing() -> Iterator[Reading]:
    routing = route.routing
    router = routing.in_force if routing is not None else None
    if routing is None or router is None:
        return
    for rule, hits in router.rules.hits.items():
        yield "rule_hits_total", (rule,), hits
        yield "rule_failures_total", (rule,), router.rules.failures[rule]
    for experiment, failures in router.assigner.failures.items():
        yield "audience_failures_total", (experiment,), failures
    if routing.strategies is not None:
        for strategy, outcomes in routing.strategies.counts.items():
            for how, times in outcomes.items():
                yield "strategy_calls_total", (strategy, how.value), times


def of_resilience(runtime: "Runtime") -> Iterator[Reading]:
    service = resilience.resilience
    if service is None:
        return
    states = service.breakers.states()
    loads = route.loads()
    doing = loads.deployments() if loads is not None else dict[str, Load]()
    for group in compat.model_groups():
        for one in compat.deployments_of(group):
            found = (one.get("model_info") or {}).get("id")
            if found is None:
                continue
            by = str(found), group
            name = service.breakers.name_of(one)
            state = states.get(name) if name is not None else None
            yield "breaker_state", by, 0 if state is None else _BREAKERS[state.state]
            yield "deployment_enabled", by, found not in runtime.disabled_deployments
            if (checked := service.checked(found)) is not None:
                yield "deployment_healthy", by, checked["ok"]
            load = doing.get(found)
            yield "deployment_in_flight", by, 0 if load is None else load.in_flight
            yield "deployment_failing_ratio", by, 0 if load is None else round(load.failing, 4)
    yield "breaker_openings_total", (), service.breakers.openings
    yield "retries_total", (), service.retried
    yield "requests_all_failed_total", (), service.failed
    yield "degraded_answers_total", (), service.degraded
    yield "shed_total", (), service.shedder.refused
    yield "shedding_ratio", (), round(service.shedding, 4)


def of_books(runtime: "Runtime") -> Iterator[Reading]:
    journal = runtime.journal
    if runtime.ledger is not None:
        ledger = runtime.ledger.status()
        yield "ledger_backlog_events", (), ledger.backlog_events
        yield "ledger_backlog_bytes", (), ledger.backlog_bytes
        yield "ledger_oldest_seconds", (), ledger.oldest_ms / 1000
        yield "ledger_written_total", (), ledger.written
        yield "ledger_rejected_total", (), ledger.rejected
        yield "ledger_torn_total", (), ledger.torn
    yield "journal_appended_total", (), journal.counts.appended
    yield "journal_overflowed_total", (), journal.counts.overflowed
    yield "journal_lost_total", (), journal.counts.lost
    yield "journal_waiting", (), journal.waiting_in_memory
    yield "journal_accepting", (), journal.accepting


def of_worker(runtime: "Runtime", alerts: "Alerts") -> Iterator[Reading]:
    yield "store_up", (), runtime.store_error is None
    yield "shared_state_up", (), runtime.signals is None or runtime.signals.connected
    states = Counter(one.state for one in secrets().states())
    for state in _STATES:
        yield "secrets", (state,), states[state]
    yield "alerts_waiting", (), alerts.waiting
    yield "alerts_lost_total", (), alerts.lost
    yield "config_problems", (), len(runtime.config_problems)
    yield "config_loaded_timestamp_seconds", (), runtime.snapshot.loaded_at
    yield "start_time_seconds", (), runtime.started_at
    yield "build_info", (__version__,), 1


async def of_budgets(runtime: "Runtime") -> list[Reading]:
    """Those that are not given to each member. What is spent is left out where it cannot be looked up now."""
    now_ms = int(runtime.clock() * 1000)
    charges = [charge_of(terms, "", now_ms) for terms in runtime.snapshot.catalog if terms.per is None]
    if not charges:
        return []
    found = Standings({})
    with suppress(StoreError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            found = await Standings.of([charge.account for charge in charges])
    readings: list[Reading] = []
    for charge in charges:
        by = (charge.budget.budget_id,)
        readings.append(("budget_paused", by, charge.budget.budget_id in service().paused))
        standing = found.by_key.get(charge.account.key)
        if standing is not None:
            limit = charge.limit_nano + standing.extra_nano
            readings.append(("budget_limit_dollars", by, _dollars(limit)))
            readings.append(("budget_spent_dollars", by, _dollars(standing.spent_nano)))
            readings.append(("budget_reserved_dollars", by, _dollars(standing.reserved_nano)))
    return readings


def _dollars(nano: int) -> float:
    return float(to_dollars(nano))
