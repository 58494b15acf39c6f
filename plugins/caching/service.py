"""The cache of one worker on the way of a request: looked in at the edge, and once LiteLLM has let a caller in."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from core.asgi import Message, Receive, Scope, Send
from core.cache import (
    Cache,
    CacheRules,
    Flights,
    Label,
    Memory,
    RawMemo,
    Seen,
    cache_key,
    input_keys,
    owner_of,
    raw_key,
    vary,
)
from core.cache.embeddings import inputs_of
from core.cache.entry import Entry
from core.cache.flights import FlightLost
from core.cache.key import VARYING, Beside
from core.cache.rules import ENDPOINTS, Control, control_of
from core.errors import BadField, RequestRefused
from core.state.reservations import StateAway
from plugins.arrival import Foresee, whole
from plugins.caching import hits, inputs, keeping
from plugins.caching.asking import Asking, Ready
from plugins.caching.recording import Recording
from plugins.caching.sharing import ClientLeft as ClientLeft
from plugins.caching.sharing import Turn
from plugins.identities import HARMLESS, SAID, Identities, Identity, guardrails_of
from plugins.resilience.degraded import Body

if TYPE_CHECKING:
    from core.cache.locks import RedisLocks
    from core.cache.redis import RedisCache
    from core.runtime import Runtime
    from core.settings.models.caching import Caching as CachingSettings
    from core.snapshot import Snapshot
    from core.store import Store
    from plugins.exchange import Exchange

_LOG = logging.getLogger("orchestration.cache")

FORGET = "identities"
"""Kind of the signal that something was changed about keys, users or teams."""


class CachedAnswer(inputs.Sending, Protocol):
    async def found(self, found: Entry | Turn) -> None: ...


class Found(Exception):
    """LiteLLM's pipeline is left, because there is an answer already, or somebody else is getting it."""


class Caching:
    """Made before the worker starts, and next to nothing until `caching.enabled` is set."""

    def __init__(
        self,
        runtime: "Runtime",
        foresee: Foresee,
        secret: Callable[[str], str | None],
        agreed: Callable[[], object] = lambda: None,
    ) -> None:
        """`agreed` changes with whatever plans depend on besides the settings; `secret` reads a reference."""
        self._runtime = runtime
        self._foresee = foresee
        self._secret = secret
        self._agreed = agreed
        self.identities = Identities(lambda: runtime.settings.caching.identity_ttl)
        self._memo: RawMemo[Ready] = RawMemo(_MOST_READY)
        self._seen = Seen()
        self._version = 0
        self._made_of: tuple[object, object] | None = None
        self._told: frozenset[bytes] = frozenset()
        self._rules: CacheRules | None = None
        self._rules_of: CachingSettings | None = None
        self.cache: Cache | None = None
        self.flights: Flights | None = None
        self._redis: RedisCache | None = None
        self._locks: RedisLocks | None = None
        self._leading: dict[bytes, Exchange] = {}
        self._keeping: set[asyncio.Task[bool]] = set()
        self._apart: WeakValueDictionary[bytes, Ready] = WeakValueDictionary()
        """Questions of several inputs, under whose own key no answer is kept."""
        self._opened = asyncio.Event()

    # -- a request arrives -----------------------------------------------------------------------------------------

    async def ask(self, exchange: "Exchange", scope: Scope, receive: Receive) -> Asking | None:
        """What is asked, its body read; None where the cache has nothing to do with it."""
        settings = self._runtime.settings.caching
        if not settings.enabled or exchange.endpoint not in ENDPOINTS:
            return None
        cache = self._open(settings)
        asking = Asking(scope, await whole(receive), receive, self.identities, cache.generation)
        exchange.arrival = exchange.asking = asking
        return asking

    async def at_the_edge(self, exchange: "Exchange", asking: Asking, answer: "CachedAnswer") -> bool:
        """Answer where there is an answer, and LiteLLM has accepted the caller a moment ago; whether that was done."""
        settings = self._runtime.settings.caching
        if not asking.caller or not settings.edge:
            return False
        if self._redis is None and not self._seen.again(asking.sent):
            # Nobody else can have got an answer to what is new here. Should somebody have asked it in other bytes, the
            # answer is found in LiteLLM's pipeline; here the plan would be made for nothing, and then once more.
            return False
        try:
            ready = asking.ready = await self._ready(exchange, asking)
            found = None if ready is None else await self._look(exchange, asking, ready)
            if found is None or ready is None:
                exchange.let_go()
                return False
            exchange.snapshot, exchange.context, exchange.plan = ready.snapshot, asking.context, ready.plan
            exchange.admitted = True
            await exchange.count_in()
        except RequestRefused as refusal:
            exchange.refused(refusal)
            await answer.refuse(refusal)
            return True
        except ClientLeft:
            return True
        except Exception:  # whatever it is, LiteLLM can be asked
            _LOG.exception("the cache could not be asked; the request goes on without it")
            exchange.asking = None
            exchange.let_go()
            return False
        await answer.found(found)
        return True

    async def look(self, exchange: "Exchange", asking: Asking) -> None:
        """In LiteLLM's pipeline, with the plan made: raises Found where there is an answer. What goes on from here is
        recorded. Raises BadField for what is said of the cache and cannot be understood."""
        context, plan = exchange.context, exchange.plan
        assert context is not None
        assert plan is not None
        body = asking.read()
        if body is None:
            return
        control = control_of(body, asking.scope["headers"])
        before = asking.ready
        if before is not None and before.plan is plan:
            ready = before
        else:
            ready = asking.ready = self._key(exchange, asking, body, control, asking.identity)
            if before is not None and asking.turn is not None and (ready is None or ready.key != before.key):
                asking.turn.end()
                asking.turn = None
            asking.looked = asking.looked and ready is not None and before is not None and ready.key == before.key
        if ready is None:
            asking.inputs = None
            return
        if not asking.looked:
            found = await self._look(exchange, asking, ready)
            if found is not None:
                exchange.admitted = True
                await exchange.count_in()
                asking.found = found
                raise Found
        exchange.cached = hits.MISS
        if ready.control.store:
            most = self._runtime.settings.caching.max_entry_bytes
            asking.recording = Recording(most * max(1, len(ready.input_keys)))

    async def _look(self, exchange: "Exchange", asking: Asking, ready: Ready) -> Entry | Turn | None:
        """An answer, or a part in one that somebody else gets; None where it is for this one to get."""
        cache, control = self.cache, ready.control
        assert cache is not None
        asking.looked, asking.inputs = True, None
        if ready.input_keys:
            self._apart[ready.key] = ready
            asking.inputs = await inputs.find(cache, ready)
            found = asking.inputs.whole()
            if found is not None:
                return found
        elif control.read:
            found = cache.get(ready.key, ready.label, control.max_age)
            if found is not None:
                return found
            if cache.redis is None:
                cache.counters.miss(ready.label)
            else:
                found = await cache.find(ready.key, ready.label, control.max_age)
                # Somebody may have got it while we asked Redis.
                found = found or cache.get(ready.key, ready.label, control.max_age)
                if found is not None:
                    return found
        else:
            cache.counters.miss(ready.label)
        if not self._runtime.settings.caching.deduplicate or not control.shares or self.flights is None:
            return None
        turn = asking.turn = Turn(exchange, self.flights, ready.key, self._leading)
        if turn.leads:
            return None
        try:
            head = await turn.head()
        except FlightLost:
            head = None
        except BaseException:
            turn.end()
            raise
        if head is None:
            if not turn.leads:
                turn.end()
                asking.turn = None
            return None
        return turn

    # -- what is asked ---------------------------------------------------------------------------------------------

    async def _ready(self, exchange: "Exchange", asking: Asking) -> Ready | None:
        version = self._version_of(self._runtime.snapshot)
        told = [part for name, value in asking.scope["headers"] if name in self._told for part in (name, value)]
        raw = raw_key(asking.sent, asking.caller, *told)
        ready = self._memo.get(raw, version)
        if ready is not None:
            if self.identities.holds(ready.identity):
                asking.context = replace(ready.context, request_id=exchange.request_id, time_ms=exchange.time_ms)
                return ready
            return None
        body = asking.read()
        if body is None:
            return None
        identity = self.identities.of(asking.fingerprint(body))
        if identity is None:
            return None
        try:
            control = control_of(body, asking.scope["headers"])
        except BadField:
            return None
        if not await self._foresee(self._runtime, exchange, identity.auth, body):
            exchange.let_go()
            return None
        ready = self._key(exchange, asking, body, control, identity)
        asking.context = exchange.context
        exchange.let_go()
        if ready is not None and len(ready.input_keys) <= _MOST_INPUTS:
            self._memo.put(raw, version, ready)
        return ready

    def _key(
        self,
        exchange: "Exchange",
        asking: Asking,
        body: Mapping[str, Any],
        control: Control,
        identity: Identity | None,
    ) -> Ready | None:
        """None where no answer to such a request is kept or shared."""
        context, plan, snapshot = exchange.context, exchange.plan, exchange.snapshot
        assert context is not None
        assert plan is not None
        rules = self._rules_now(snapshot.settings.caching)
        policy = snapshot.policies.get(plan.policy) if plan.policy is not None else None
        if (policy is not None and not policy.cache) or not plan.candidates:
            return None
        if rules.why_not_asked(context.endpoint, body) is not None or body.get("previous_response_id") is not None:
            return None
        model = plan.candidates[0]
        ttl = rules.ttl(context.task_type, model, context.caller.tier, control.ttl)
        owner = owner_of(rules.scope(context.endpoint, body), context.caller)
        if owner is None or ttl <= 0:
            return None
        known = identity or Identity(exchange.principal, guardrails_of(exchange.principal), 0.0)
        scope = asking.scope
        beside = Beside(
            model,
            owner,
            context.stream,
            scope["path"],
            plan.variants if plan.assigned else "",
            known.guardrails,
            vary(scope["headers"], scope.get("query_string", b"")),
            _written(exchange),
            control.namespace,
        )
        key = cache_key(context.endpoint, body, beside)
        if key is None:
            return None
        several = inputs_of(body) if context.endpoint == "embeddings" else None
        keys = () if several is None else input_keys(body, several, beside)
        label = Label(context.task_type or "", model)
        permits = dict(exchange.permits)
        return Ready(known, snapshot, context, plan, permits, exchange.granted, key, label, control, ttl, keys)

    def _version_of(self, snapshot: "Snapshot") -> int:
        self.identities.under(snapshot)
        made_of = (snapshot, self._agreed())
        if self._made_of is None or made_of[0] is not self._made_of[0] or made_of[1] is not self._made_of[1]:
            self._made_of = made_of
            self._version += 1
            looked_at = {name.encode() for name in snapshot.settings.routing.headers}
            self._told = SAID | (looked_at & HARMLESS) | VARYING
        return self._version

    def _rules_now(self, settings: "CachingSettings") -> CacheRules:
        if self._rules is None or settings is not self._rules_of:
            self._rules, self._rules_of = CacheRules(settings), settings
            if self.cache is not None:
                self.cache.memory.resize(settings.max_entries, settings.max_bytes)
        return self._rules

    # -- an answer is there ----------------------------------------------------------------------------------------

    def keep(self, exchange: "Exchange") -> None:
        """The answer is over, and in the books: keep it, where it may be kept."""
        asking, cache = exchange.asking, self.cache
        if asking is None or asking.recording is None or asking.ready is None or cache is None:
            return
        recording, ready = asking.recording, asking.ready
        asking.recording = None
        if recording.chunks is None:
            return
        settings = self._runtime.settings.caching
        answer, entry = keeping.of(exchange, asking, recording, int(self._runtime.clock() * 1000), settings)
        rules = self._rules_now(settings)
        kept: list[tuple[bytes, Entry]] = []
        if not ready.input_keys:
            kept = [(ready.key, entry)] if rules.why_not_kept(answer) is None else []
        elif asking.inputs is not None:
            kept = list(asking.inputs.entries(entry, answer, rules))
        for key, one in kept:
            cache.keep(key, one, asking.since)
        if cache.redis is None or not kept:
            return
        task = asyncio.get_running_loop().create_task(_put(cache, kept, asking.since))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        if asking.turn is not None:
            asking.turn.keeping = task

    def begins(self, exchange: "Exchange", turn: Turn) -> None:
        """The answer that another request gets has begun."""
        told, ready = turn.told, exchange.asking.ready if exchange.asking is not None else None
        exchange.degraded = told is not None and told.degraded
        exchange.cached = hits.SHARED
        exchange.cached_model = (told and told.used_model) or (ready.label.model if ready is not None else None)

    def shared(self, exchange: "Exchange", turn: Turn) -> None:
        """The answer that another request got is sent to its end."""
        asking, cache = exchange.asking, self.cache
        assert asking is not None
        assert asking.ready is not None
        assert cache is not None
        told, label, status = turn.told, asking.ready.label, exchange.status
        model, tokens, saved = label.model, (0, 0), 0
        now_ms = int(self._runtime.clock() * 1000)
        entry = cache.memory.get(asking.ready.key, now_ms)
        if told is not None and told.receipt is not None:
            model = told.used_model or model
            tokens, saved = (told.receipt.input_tokens, told.receipt.output_tokens), told.cost_nano
        elif entry is not None:
            model, tokens, saved = entry.model, (entry.input_tokens, entry.output_tokens), entry.cost_nano
        elif asking.ready.input_keys:
            tokens_in, saved = inputs.in_memory(cache, asking.ready.input_keys, now_ms)
            tokens = (tokens_in, 0)
        if status < 400:
            cache.counters.shared(label, saved)
        error = told.error_class if told is not None and status >= 400 else None
        hits.answered(exchange, status, model, hits.SHARED, *tokens)
        exchange.error_class = error

    # -- an answer that is too old ---------------------------------------------------------------------------------

    async def seek_stale(self, exchange: "Exchange") -> None:
        """Every model failed: is there an answer that was good once?"""
        asking = exchange.asking
        if asking is None or asking.ready is None or self.cache is None or not asking.ready.control.read:
            return
        ready, cache = asking.ready, self.cache
        if not ready.input_keys:
            asking.stale = await cache.stale(ready.key, ready.label)
            return
        asking.stale = (await inputs.look(cache, ready, stale=True)).whole()
        if asking.stale is not None:
            cache.counters.stale(ready.label)

    def stale_answer(self, exchange: "Exchange") -> Body | None:
        """What `seek_stale` has found."""
        entry = exchange.asking.stale if exchange.asking is not None else None
        if entry is None:
            return None
        hits.note(exchange, entry, hits.STALE)
        kind = next((value for name, value in entry.headers if name == b"content-type"), b"application/json")
        return kind, list(entry.chunks())

    # -- a worker --------------------------------------------------------------------------------------------------

    def _open(self, settings: "CachingSettings") -> Cache:
        if self.cache is None:
            redis = self._open_redis(settings)
            self.cache = Cache(Memory(settings.max_entries, settings.max_bytes), redis, clock=self._runtime.clock)
            if redis is not None and self._link is not None:
                from core.cache.locks import RedisLocks

                self._locks = RedisLocks(self._link, redis, self._find)
            self.flights = Flights(elsewhere=self._locks)
            self._opened.set()
        return self.cache

    async def _find(self, key: bytes) -> Entry | None:
        """An answer that another instance may have got."""
        assert self.cache is not None
        ready = self._apart.get(key)
        if ready is None:
            return await self.cache.look(key)
        return (await inputs.look(self.cache, ready)).whole()

    _link: Any = None

    def _open_redis(self, settings: "CachingSettings") -> "RedisCache | None":
        runtime = self._runtime
        if runtime.shared_url is None or runtime.signals is None:
            return None
        from core.cache.redis import Link, RedisCache

        key: bytes | None = None
        if settings.encryption_key is not None:
            value = self._secret(settings.encryption_key)
            if value is None or len(value.encode()) < _LEAST_KEY:
                _LOG.error(
                    "caching.encryption_key has no value of at least %d bytes: answers are kept in memory alone",
                    _LEAST_KEY,
                )
                return None
            key = value.encode()
        self._link = Link(runtime.shared_url)
        self._redis = RedisCache(self._link, key=key, most_bytes=settings.max_entry_bytes, tell=runtime.signals.tell)
        return self._redis

    async def run(self, _: "Store") -> None:
        """Follow what other instances take out, until cancelled."""
        await self._opened.wait()
        try:
            if self._redis is not None:
                await self._redis.run()
            else:
                await asyncio.Event().wait()
        finally:
            if self.flights is not None:
                await self.flights.close()
            if self._locks is not None:
                await self._locks.close()
            if self._redis is not None:
                await self._redis.close()

    async def hear_invalidated(self, body: dict[str, Any]) -> None:
        """Another instance has taken something out."""
        if self._redis is not None:
            await self._redis.hear(body)

    async def hear_forget(self, _: dict[str, Any]) -> None:
        """Another instance has seen a change of keys, users or teams."""
        self.identities.forget()

    def forget(self) -> None:
        """Something may have changed about keys, users or teams."""
        self.identities.forget()
        self._memo.clear()

    def forget_everywhere(self) -> None:
        """As `forget`, on all instances; those that Redis cannot tell now find out within `identity_ttl`."""
        self.forget()
        if self._runtime.signals is not None:
            task = asyncio.get_running_loop().create_task(self._runtime.signals.tell(FORGET, {}))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    def watched(self, send: Send) -> Send:
        """The way back of a request that may change something about keys, users or teams."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.forget_everywhere()  # before its client can know of it
            await send(message)

        return watched

    async def invalidate(self, **what: Any) -> tuple[int, bool]:
        """As `Cache.invalidate`; with whether the other instances could be told."""
        cache = self._open(self._runtime.settings.caching)
        try:
            return await cache.invalidate(**what), True
        except StateAway:
            return 0, False


caching: Caching | None = None
"""That of this worker."""


def way_back(exchange: "Exchange", answer: CachedAnswer) -> Send:
    """Where LiteLLM's answer goes."""
    if exchange.endpoint != "embeddings" or exchange.asking is None or caching is None or caching.cache is None:
        return answer.send
    return inputs.PutTogether(exchange, answer, caching.cache).send


def keep(exchange: "Exchange") -> None:
    """As `Caching.keep`."""
    if exchange.asking is not None and caching is not None:
        caching.keep(exchange)


async def seek_stale(exchange: "Exchange") -> None:
    """As `Caching.seek_stale`."""
    if exchange.asking is not None and caching is not None:
        await caching.seek_stale(exchange)


async def look(exchange: "Exchange") -> None:
    """As `Caching.look`."""
    if exchange.asking is not None and caching is not None:
        await caching.look(exchange, exchange.asking)


def over(exchange: "Exchange") -> None:
    """The exchange is over, however it ended."""
    asking = exchange.asking
    if asking is not None and (turn := asking.turn) is not None:
        asking.turn = None  # each holds the other: they would wait for the garbage collector
        if not turn.ended:
            with suppress(Exception):
                turn.end()


async def _put(cache: Cache, kept: Sequence[tuple[bytes, Entry]], since: int) -> bool:
    """Have the other instances know as well; whether all of it is kept."""
    done: list[bool] = []
    for first in range(0, len(kept), _PUT_TOGETHER):
        some = kept[first : first + _PUT_TOGETHER]
        done += await asyncio.gather(*(cache.put(key, entry, since) for key, entry in some))
    return all(done)


def _written(exchange: "Exchange") -> Mapping[str, Any] | None:
    """What the settings put into the request, or allow the caller of its answer."""
    plan, context, snapshot = exchange.plan, exchange.context, exchange.snapshot
    assert plan is not None
    assert context is not None
    tier = snapshot.settings.tiers.get(context.caller.tier) if context.caller.tier else None
    most = tier.max_tokens if tier is not None else None
    if not plan.set and plan.system_prefix is None and not plan.regions and most is None:
        return None
    found: dict[str, Any] = dict(plan.set)
    if plan.system_prefix is not None:
        found["system_prefix"] = plan.system_prefix
    if plan.regions:
        found["regions"] = plan.regions
    if most is not None:
        found["tier.max_tokens"] = most
    return found


_MOST_READY = 4096
_MOST_INPUTS = 64
_PUT_TOGETHER = 8
_LEAST_KEY = 16
