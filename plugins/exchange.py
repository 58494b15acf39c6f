"""One request and its answer, from the first byte at the edge to the event in the books."""

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

from core.asgi import Receive
from core.breakers import FAILED, IGNORED, Outcome, classify
from core.context import RequestContext
from core.errors import RequestRefused
from core.ids import new_request_id
from core.money import format_dollars
from core.usage import Attempt, UsageEvent, UsageState
from custom_router.decision import Plan
from custom_router.router import Router
from custom_router.traits import traits_of
from plugins import pricing, receipt
from plugins.budgets.enforcement import Asked
from plugins.budgets.spending import Spending
from plugins.limits import Entrance, Visit
from plugins.limits.limiter import Admission
from plugins.receipt import Receipt
from plugins.resilience.retries import Course
from plugins.routing.live import Loads

if TYPE_CHECKING:
    from plugins.arrival import Arrival
    from plugins.caching.asking import Asking

_LOG = logging.getLogger("orchestration")

current: ContextVar["Exchange | None"] = ContextVar("orchestration_exchange", default=None)
"""The exchange of the request being served; hooks run in tasks that inherit it."""


class Exchange:
    """What is known so far. The edge creates it and closes it; hooks fill it in between."""

    __slots__ = (
        "__weakref__",
        "_open",
        "admitted",
        "answer",
        "arrival",
        "asked",
        "asking",
        "attempts",
        "body_bytes",
        "bound_nano",
        "cached",
        "cached_model",
        "call",
        "call_id",
        "closed",
        "context",
        "course",
        "degraded",
        "deployment",
        "disconnected",
        "endpoint",
        "entrance",
        "error_class",
        "first_byte",
        "granted",
        "has_another_key",
        "headers",
        "hides_usage",
        "loads",
        "permits",
        "plan",
        "principal",
        "receipt",
        "receive",
        "refusal",
        "repeated",
        "reported",
        "request_id",
        "router",
        "secrets",
        "sent",
        "snapshot",
        "spending",
        "started",
        "status",
        "stream",
        "time_ms",
        "unpaid",
        "usage_seen",
        "visit",
        "written",
    )

    def __init__(self, endpoint: str, headers: list[tuple[bytes, bytes]], body_bytes: int) -> None:
        self.request_id = new_request_id()
        self.endpoint = endpoint
        self.headers = headers
        self.body_bytes = body_bytes
        self.time_ms = time.time_ns() // 1_000_000
        self.started = time.perf_counter()
        self.first_byte: float | None = None
        self.status = 0
        self.error_class: str | None = None
        self.refusal: RequestRefused | None = None
        self.unpaid: RequestRefused | None = None
        """Why nothing that was sent yet could be paid for, though it had been admitted."""
        self.context: RequestContext | None = None
        self.principal: Any = None
        self.snapshot: Any = None
        self.router: Router | None = None
        """That which has made the plan."""
        self.plan: Plan | None = None
        self.permits: dict[str, bool] = {}
        self.granted: frozenset[str] = frozenset()
        """The groups that the key may use because its policy grants them."""
        self.admitted = False
        self.written = False
        """Whether what rules and variants set is in the body."""
        self.repeated = False
        """Whether it goes through LiteLLM's pipeline once more (`plugins/second_try.py`)."""
        self.loads: Loads | None = None
        """Told of each attempt."""
        self.course: Course | None = None
        """What was tried and what may be; told of each attempt, too."""
        self.degraded = False
        """Whether the client gets something in place of an answer."""
        self.entrance: Entrance | None = None
        self.receive: Receive | None = None
        self.visit: Visit | Admission | None = None
        """What it holds of rate and parallel limits."""
        self.arrival: Arrival | None = None
        """It with its body; None where the edge has not read that."""
        self.asking: Asking | None = None
        """What the cache knows of it; None where it has nothing to do with it."""
        self.cached: str | None = None
        """hit | shared | stale | miss: what the cache had."""
        self.cached_model: str | None = None
        """The model of an answer that the cache had."""
        self.spending: Spending | None = None
        self.asked: Asked | None = None
        """The request as budgets and the tier's output limit see it."""
        self.bound_nano: int | None = None
        """What it costs at most where that is not read from its body; nano-dollars."""
        self.deployment: str | None = None
        """Where it is sent, for what does not come by LiteLLM's router."""
        self.sent = False
        """Whether the attempt under way has left for its provider."""
        self.call: Any = None
        self.call_id: str | None = None
        self.answer: Any = None
        self.stream = False
        self.hides_usage = False
        self.usage_seen: dict[str, Any] | None = None
        self.attempts: list[Attempt] = []
        self._open: tuple[Attempt, str | None, float] | None = None
        self.receipt: Receipt | None = None
        self.reported: Receipt | None = None
        self.disconnected = False
        self.closed = False
        self.secrets: tuple[Any, ...] = ()
        """What was put into the attempt under way."""
        self.has_another_key = False
        """Whether the attempt that failed did so because of a key, and there is another one now."""

    def again(self) -> None:
        """The request is made once more, from its body as it was sent; what was decided about it stands."""
        self.repeated, self.written, self.has_another_key = True, False, False
        self.answer = None

    # -- attempts ------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether an attempt has begun and neither failed nor been answered in full."""
        return self._open is not None

    def begin_attempt(self, call: Mapping[str, Any], kind: str | None) -> Attempt | None:
        """LiteLLM is about to call a deployment; returns the new attempt.

        An endpoint that LiteLLM serves by translating it into another calls this twice for one attempt, the second
        time with the kind of the inner call: that is no new attempt.
        """
        metadata = call.get("litellm_metadata") or call.get("metadata") or {}
        deployment = (metadata.get("model_info") or call.get("model_info") or {}).get("id")
        if self._open is not None:
            attempt, outer_kind, _ = self._open
            if outer_kind != kind and deployment in (attempt.deployment, None):
                return None
            self.end_attempt(0, INTERRUPTED, UsageState.UNKNOWN)
        group = metadata.get("model_group")
        if group == deployment:  # asked for by its id
            group = metadata.get("deployment_model_name") or group
        attempt = Attempt(
            number=len(self.attempts) + 1,
            model=group or call.get("model") or "",
            deployment=deployment,
            provider=call.get("custom_llm_provider") or _provider_of(call.get("model")),
            provider_model=call.get("model"),
            started_ms=time.time_ns() // 1_000_000,
        )
        self.attempts.append(attempt)
        self.secrets, self.has_another_key, self.sent = (), False, False
        self._open = (attempt, kind, time.perf_counter())
        if self.loads is not None:
            self.loads.began(attempt.model, attempt.deployment)
        if self.course is not None:
            self.course.began(attempt.model, attempt.deployment)
        return attempt

    def end_attempt(
        self, status: int, error_class: str | None, usage: str, outcome: Outcome = FAILED
    ) -> Attempt | None:
        """The open attempt failed; where its usage is unknown it is charged its upper bound. `outcome` is what that
        says of its deployment. Returns the attempt, None where none was open."""
        if self._open is None:
            return None
        if self.endpoint == "batches" and self.sent and status in _PERHAPS_BEGUN:
            usage = UsageState.UNKNOWN
        attempt, _, started = self._open
        self._open = None
        attempt.latency_ms = _ms(time.perf_counter() - started)
        attempt.status = status
        attempt.error_class = error_class
        attempt.usage = usage
        if usage == UsageState.UNKNOWN:
            attempt.cost_nano = self._upper_bound(attempt)
        if self.spending is not None:
            self.spending.settle(attempt)
        self._tell(attempt, None)
        if self.course is not None:
            self.course.ended(attempt.deployment, outcome, attempt.latency_ms / 1000)
        return attempt

    def _tell(self, attempt: Attempt, first_token_ms: int | None, cached: bool = False) -> None:
        if self.loads is not None:
            self.loads.ended(
                attempt.model,
                attempt.deployment,
                attempt.latency_ms,
                first_token_ms,
                attempt.status,
                attempt.error_class,
                cached=cached,
            )

    # -- the answer ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Read the receipt of what was answered and charge it to the attempt that answered. Happens once."""
        if self.receipt is not None or self._open is None:
            return
        attempt, _, started = self._open
        self._open = None
        found = self._read_receipt(attempt)
        self.receipt = found
        attempt.latency_ms = _ms(time.perf_counter() - started)
        # What the provider said; the client may be told otherwise, by a guardrail for one.
        attempt.status = self.status if self.answer is None and self.status else 200
        first = None if self.first_byte is None else _ms(self.first_byte - started)
        self._tell(attempt, first, found.from_cache)
        if self.course is not None:
            self.course.ended(attempt.deployment, self._outcome(attempt, first, found), attempt.latency_ms / 1000)
        if found.from_cache:
            self.attempts.remove(attempt)
            if self.spending is not None:
                self.spending.settle(None)
            return
        attempt.usage = found.usage
        attempt.input_tokens = found.input_tokens
        attempt.output_tokens = found.output_tokens
        if found.usage == UsageState.UNKNOWN:
            attempt.cost_nano = self._upper_bound(attempt)
        else:
            attempt.cost_nano = found.cost_nano or 0
        if self.spending is not None:
            self.spending.settle(attempt, cost_known=found.cost_nano is not None)

    def _outcome(self, attempt: Attempt, first_token_ms: int | None, found: Receipt) -> Outcome:
        """What an answer says of the deployment it came from; a stream may have broken off."""
        if found.from_cache:
            return IGNORED
        broke_off = self.error_class if self.stream else None
        if broke_off == INTERRUPTED:
            return FAILED
        latency = attempt.latency_ms if first_token_ms is None else first_token_ms
        slow_call = self.snapshot.settings.resilience.circuit_breaker.slow_call
        return classify(0 if broke_off else attempt.status, broke_off, None, latency / 1000, slow_call=slow_call)

    def _upper_bound(self, attempt: Attempt) -> int:
        if self.bound_nano is not None:
            return self.bound_nano
        return pricing.upper_bound(attempt, self.context) if self.context is not None else 0

    def _read_receipt(self, attempt: Attempt) -> Receipt:
        try:
            if self.usage_seen is not None:
                return receipt.of_usage(
                    self.usage_seen, attempt.provider_model, self.call, deployment=attempt.deployment
                )
            found = self._read_answer(attempt)
        except Exception:
            # Answers come in more shapes than we know; one we cannot read is charged its bound, and still delivered.
            _LOG.exception("the usage of request %s could not be read; it is recorded as unknown", self.request_id)
            found = Receipt(UsageState.UNKNOWN)
        return self.reported if found.usage == UsageState.UNKNOWN and self.reported else found

    def _read_answer(self, attempt: Attempt) -> Receipt:
        if self.answer is None:
            # Attempts that failed have ended by now: this one may go on though the client was told of an error.
            return Receipt(UsageState.UNKNOWN if self.status < 400 or self.sent else UsageState.NONE)
        if self.endpoint == "batches" or receipt.goes_on(self.answer):
            return Receipt(UsageState.UNKNOWN)  # what it costs is known when it is over (plugins/batches)
        if hasattr(self.answer, "__aiter__"):
            return receipt.of_chat_stream(self.answer, self.call, attempt.deployment)
        return receipt.of_answer(self.answer, attempt.provider_model, self.call, attempt.deployment)

    async def left(self) -> None:
        """Returns when the client has left; to be asked only once the body is read."""
        assert self.receive is not None
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def leave(self) -> None:
        """Give back what it holds, and count what it used."""
        if self.visit is not None:
            found = self.receipt
            counts = found is not None and not found.from_cache
            self.visit.done(found.input_tokens + found.output_tokens if found is not None and counts else 0)
        if self.spending is not None:
            self.spending.settle(None)  # what was reserved for an attempt that was never made
        if self.course is not None:
            self.course.give_back()

    async def count_in(self) -> None:
        """Count it to its caller's limits; what is answered at the edge takes no place inside. Raises `RequestRefused`
        where it is over one."""
        if self.visit is None and self.entrance is not None and self.context is not None:
            self.visit = await self.entrance.limiter.enter(self.context)

    def let_go(self) -> None:
        """It cannot be answered at the edge: LiteLLM's pipeline finds out by itself who asks for what."""
        self.context = self.plan = self.principal = self.snapshot = None
        self.permits, self.granted, self.admitted = {}, frozenset(), False

    def refused(self, refusal: RequestRefused) -> None:
        """We refused it: LiteLLM will make an answer of that, in whose place the edge puts our own."""
        self.refusal = refusal
        self.error_class = type(refusal).__name__

    def note_first_byte(self) -> None:
        """The first event of a stream leaves; by now the stream can be found that keeps what arrives."""
        self.first_byte = time.perf_counter()
        if self.course is not None:
            self.course.speaks(self.attempts[-1].deployment if self.attempts else None)
        self.answer = receipt.stream_behind(self.answer)

    def see_usage(self, usage: Mapping[str, Any]) -> None:
        """A stream's event reported usage. The Messages dialect reports its parts in several events: the last word
        counts."""
        known = {name: value for name, value in usage.items() if value is not None}
        self.usage_seen = {**(self.usage_seen or {}), **known}

    @property
    def cost_nano(self) -> int:
        attempts = self.attempts
        return attempts[0].cost_nano if len(attempts) == 1 else sum(attempt.cost_nano for attempt in attempts)

    @property
    def used_model(self) -> str | None:
        return self.attempts[-1].model if self.attempts else self.cached_model

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """Our headers, with what is known when the answer's headers leave; a stream's cost is not."""
        headers = [(b"x-orchestration-request-id", self.request_id.encode())]
        if self.used_model and self.status < 400 and not self.degraded:
            headers.append((b"x-orchestration-model", _header(self.used_model)))
        if self.context is not None and self.context.caller.tier:
            headers.append((b"x-orchestration-tier", _header(self.context.caller.tier)))
        if self.admitted and self.plan is not None and self.plan.assigned:
            headers.append((b"x-orchestration-experiment", _header(self.plan.variants)))
        if self.cached is not None:
            headers.append((b"x-orchestration-cache", self.cached.encode()))
        elif self.receipt is not None and self.receipt.from_cache:
            headers.append((b"x-orchestration-cache", b"hit"))
        if not self.stream and self.context is not None:
            headers.append((b"x-orchestration-cost", format_dollars(self.cost_nano).encode()))
        if self.spending is not None:
            headers += self.spending.response_headers()
        if self.degraded and (self.spending is None or not self.spending.degraded):
            headers.append((b"x-orchestration-degraded", b"true"))
        if self.asked is not None and self.asked.clamped is not None:
            headers.append((b"x-orchestration-clamped", str(self.asked.clamped).encode()))
        return headers

    def usage_event(self, instance: str, price_version: str | None) -> UsageEvent | None:
        """The event for the books, None for a request whose caller was never identified."""
        context = self.context
        if context is None:
            return None
        caller = context.caller
        final = self.receipt or Receipt(UsageState.NONE)
        last = self.attempts[-1] if self.attempts else None
        groups, unknown = 1, 0
        if last is not None:  # nearly always there is the one
            groups = 1 if len(self.attempts) == 1 else len({attempt.model for attempt in self.attempts})
            unknown = sum([a.cost_nano for a in self.attempts if a.usage == UsageState.UNKNOWN])
        cost = self.cost_nano
        return UsageEvent(
            request_id=self.request_id,
            time_ms=self.time_ms,
            endpoint=self.endpoint,
            status=self.status,
            instance=instance,
            litellm_call_id=self.call_id,
            key_hash=caller.key_hash,
            key_alias=caller.key_alias,
            user_id=caller.user_id,
            team_id=caller.team_id,
            groups=caller.groups,
            tier=caller.tier,
            task_type=context.task_type,
            priority=context.priority,
            session_id=context.session_id,
            asked_model=context.asked_model,
            used_model=self.used_model,
            deployment=last.deployment if last else None,
            provider=last.provider if last else None,
            provider_model=last.provider_model if last else None,
            input_tokens=final.input_tokens,
            output_tokens=final.output_tokens,
            cached_tokens=final.cached_tokens,
            reasoning_tokens=final.reasoning_tokens,
            usage=UsageState.UNKNOWN if unknown else final.usage,
            cost_nano=cost,
            unknown_nano=unknown,
            price_version=price_version,
            cache=(self.cached if self.cached != "miss" else None) or ("hit" if final.from_cache else None),
            fallbacks=groups - 1,
            error_class=self.error_class if self.status >= 400 or self.error_class else None,
            latency_ms=_ms(time.perf_counter() - self.started),
            first_token_ms=None if self.first_byte is None else _ms(self.first_byte - self.started),
            streamed=self.stream,
            degraded=self.degraded or (self.spending is not None and bool(self.spending.degraded)),
            clamped=None if self.asked is None else self.asked.clamped,
            **self._routed(context),
            disconnected=self.disconnected or self.status == _CLIENT_LEFT,
            attempts=self.attempts,
        )

    def _routed(self, context: RequestContext) -> dict[str, Any]:
        """What the event says of how it was decided."""
        plan = self.plan
        if plan is None:
            return {"settings": self.snapshot.digest} if self.snapshot is not None else {}
        assignments = plan.assignments if self.admitted else ()
        return {
            "policy": plan.policy,
            "route": plan.reason,
            "traits": traits_of(context),
            "settings": self.snapshot.digest,
            "variant": plan.variants if assignments else None,
            "assignments": tuple((one.experiment, one.variant, one.unit) for one in assignments if one.counted),
        }


def another_key_of(exchange: Exchange) -> Callable[[], bool]:
    """What tells whether an exchange `has_another_key`, and does not keep it alive: the exchange holds what LiteLLM
    logs of a request, and that the request's arguments."""
    asked = ref(exchange)
    return lambda: (now := asked()) is not None and now.has_another_key


INTERRUPTED = "StreamInterrupted"
"""What a stream that broke off is called where LiteLLM does not say."""

_PERHAPS_BEGUN = frozenset({408, 502, 504})
"""With these somebody on the way gave up on the provider, which may have begun the batch all the same."""

_CLIENT_LEFT = 499
"""LiteLLM's status for a client that is gone before anything was sent."""


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _provider_of(model: Any) -> str | None:
    return model.partition("/")[0] if isinstance(model, str) and "/" in model else None


def _header(value: str) -> bytes:
    """A header value that cannot break out of its line; what does not fit ASCII is replaced."""
    return value.encode("ascii", "replace").replace(b"\r", b" ").replace(b"\n", b" ")
