"""`POST /orchestration/routing/simulate`: what another configuration would do with the newest recorded requests."""

import asyncio
import os
import pickle
from collections.abc import Mapping
from typing import Any, cast

import orjson
from fastapi import Request

from core import child
from core.errors import BadField, RateLimited, StoreError, Unsupported
from core.report_query import queried_ms
from core.runtime import Runtime
from core.settings import Settings, cross_check, model_names_of, store_url
from core.settings.finding import errors
from core.settings.rule_check import rule_findings
from core.settings.source import SECTION
from core.settings.validation import validated
from custom_router.recordings import Job, prepared
from custom_router.simulation import SECTIONS
from plugins import compat, route
from plugins.admin.access import ready
from plugins.admin.entries import json_body, refusal
from plugins.admin.explain import check_fields, text_of

MOST = 100_000
_SINCE = "7d"
_WITHIN = 120.0
_FRESH_SECONDS = 1.0


class Simulations:
    """Those that administrators ask this worker for: one at a time, in a process of its own."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running = asyncio.Lock()

    async def simulate(self, request: Request) -> dict[str, Any]:
        """`custom_router.comparison.compared` for the body `{config, since}`: the sections of `orchestration:` that
        would be others, and from when on the requests are taken, of which there are at most `MOST`.

        Raises BadField for a configuration that does not fit, RateLimited while another simulation runs.
        """
        runtime = self._runtime
        body = await json_body(request)
        check_fields(body, ("config", "since"))
        await ready(runtime)
        assert runtime.store is not None
        assert runtime.ledger is not None
        if runtime.store.is_sqlite and runtime.store.url.file is None:
            raise Unsupported("The store is in memory, where no other process can read it; name a file.")
        if self._running.locked():
            raise RateLimited("Another simulation is running; try again when it is over.", headers={"retry-after": "5"})
        now = runtime.clock()
        since_ms = queried_ms("since", text_of(body, "since") or _SINCE, now)
        async with self._running:
            settings, section = self._proposed(body)
            await runtime.ledger.flush(within=_FRESH_SECONDS)
            candidates = await asyncio.to_thread(_candidates, settings)
            proposal, spans = await prepared(
                runtime.store, section, candidates, since_ms, int(now * 1000) + 1, most=MOST
            )
            job = Job(proposal, store_url(runtime.settings, os.environ, compat.secret), spans)
            found = await _in_a_process(job)
        if "error" in found:
            raise StoreError(str(found["error"]))
        return found

    def _proposed(self, body: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
        """The configuration in force with the body's sections in place of its own. Raises BadField."""
        given: object = body.get("config")
        if not isinstance(given, dict):
            raise BadField(f"config: must be a mapping with some of {', '.join(SECTIONS)}.")
        config = cast("dict[str, Any]", given)
        check_fields(config, SECTIONS)
        document = self._runtime.document
        in_force: object = document.get(SECTION)
        section = dict(cast("Mapping[str, Any]", in_force)) if isinstance(in_force, Mapping) else {}
        section = {name: value for name, value in (section | config).items() if value is not None}
        settings, findings = validated(section)
        if settings is not None:
            models = {*compat.model_groups(), *model_names_of(document)}
            findings += [*cross_check(settings, models), *rule_findings(settings)]
        if settings is None or errors(findings):
            raise refusal("config", tuple(findings))
        return settings, section


def _candidates(settings: Settings) -> dict[str, Any]:
    """The model groups there are, by name."""
    assert route.routing is not None
    names = dict.fromkeys(compat.model_groups())
    for policy in settings.routing.policies.values():
        names |= dict.fromkeys(policy.candidates)
    return {name: route.routing.candidates.of(name) for name in names}


async def _in_a_process(job: Job) -> dict[str, Any]:
    """Not in a thread: it would take turns with the requests of this worker for as long as it computes."""
    try:
        answered = await child.ask("custom_router.trial", pickle.dumps(job), within=_WITHIN)
    except TimeoutError:
        raise Unsupported(
            f"The simulation took longer than {_WITHIN:g} s; take less time, or use `llm-orchestration simulate`."
        ) from None
    if answered.returncode != 0:
        raise StoreError(f"the simulation ended with {answered.returncode}")
    return cast("dict[str, Any]", orjson.loads(answered.printed))
