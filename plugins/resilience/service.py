"""Resilience on the way of a request: what is tried, what an attempt says of its provider, what the client is told."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core.breakers import IGNORED, Outcome, Verdict, classify
from core.errors import AllModelsFailed, RequestRefused
from core.settings.models.operations import Retries
from core.usage import Attempt
from plugins.exchange import another_key_of
from plugins.failures import never_sent, retry_after_of
from plugins.resilience.degraded import Body, all_failed, answer, reason_of
from plugins.resilience.retries import AGAIN, RETRY_POLICY, CountedBudget, Course, Failed, RetryPolicy, listed
from plugins.resilience.shedding import Shedder
from plugins.resilience.turns import Turns

if TYPE_CHECKING:
    from core.runtime import Runtime
    from plugins.exchange import Exchange
    from plugins.resilience.breakers import DeploymentBreakers
    from plugins.resilience.health import HealthChecks
    from plugins.routing.candidates import Candidates

_WHOSE_RETRIES = (
    ("router_settings", "num_retries"),
    ("router_settings", "retry_policy"),
    ("router_settings", "model_group_retry_policy"),
    ("litellm_settings", "num_retries"),
)
"""Where LiteLLM's configuration says how often it tries again."""
_COOLDOWN = ("cooldown_time", "allowed_fails", "allowed_fails_policy")


class Resilience:
    """That of one worker."""

    def __init__(self, runtime: "Runtime", breakers: "DeploymentBreakers", candidates: "Candidates") -> None:
        self._runtime = runtime
        self.breakers = breakers
        self._candidates = candidates
        self._rules = runtime.settings.resilience.retries
        self._budget = CountedBudget(self._rules.budget)
        self._paid_before = 0
        self.checks: HealthChecks | None = None
        shedder = self.shedder = Shedder(runtime.settings.limits.shed_after)
        self._turns = Turns(shedder.waited, shedder.rested, lambda: shedder.target, lambda: shedder.calm)
        self.degraded = 0
        """Answers in place of a model's, since the worker has started."""
        self.failed = 0
        """Requests all of whose models failed."""

    def checked(self, deployment: str) -> dict[str, Any] | None:
        """What the last health check of a deployment found out, None without one."""
        last = self.checks.last.get(deployment) if self.checks is not None else None
        return None if last is None else asdict(last)

    @property
    def retried(self) -> int:
        """Attempts at a group that had failed, since the worker has started."""
        return self._budget.paid + self._paid_before

    @property
    def shedding(self) -> float:
        """The share of the requests that are refused, because this worker falls behind."""
        self._turns.catch_up()
        return self.shedder.share

    def arrive(self, headers: list[tuple[bytes, bytes]]) -> None:
        """A request is at the door, of whose caller nothing is known but what was learned before. Raises `Overloaded`
        where there is more to do than can be done."""
        self.shedder.target = self._runtime.settings.limits.shed_after
        self._turns.look()
        self.shedder.arrive(headers)

    # -- a request begins ------------------------------------------------------------------------------------------

    def begin(self, exchange: "Exchange", data: dict[str, Any]) -> None:
        """Its candidates are in `data`; write down there how often each may be tried.

        Raises `AllModelsFailed` where the breakers let nobody through to any of a policy's models.
        """
        if exchange.repeated and exchange.course is not None:
            self._give_policy(exchange, exchange.course, data)
            return
        plan = exchange.plan
        policy = plan.policy if plan is not None else None
        rules = self._retries(policy)
        if rules is not None and (attempts := _attempts(rules, data)) < rules.max_attempts:
            rules = rules.model_copy(update={"max_attempts": attempts})
        course = exchange.course = Course(self.breakers, rules, self._budget, exchange.started)
        course.client_timeout = _sets_timeout(data)
        self._budget.request()
        if policy is not None:
            groups: list[str] = [data["model"], *(data.get("fallbacks") or [])]
            course.groups = tuple(groups[:1] if data.get("disable_fallbacks") is True else groups)
            shut = [group for group in groups if self.shut(group)]
            if len(shut) == len(groups):
                course.shut = True
                raise self.failure(exchange, course.groups)
            if shut:  # LiteLLM tells clients of what came of the first
                groups = [group for group in groups if group not in shut] + shut
            data["model"], data["fallbacks"] = groups[0], groups[1:]
            if rules is not None:
                course.listed = True
                data["fallbacks"] = listed(groups[0], groups[1:], rules.max_attempts)
            if data["fallbacks"]:
                data["max_fallbacks"] = len(data["fallbacks"]) + 1
        self._give_policy(exchange, course, data)

    @staticmethod
    def _give_policy(exchange: "Exchange", course: Course, data: dict[str, Any]) -> None:
        inner = data.get(RETRY_POLICY)
        if inner is not None:
            data[RETRY_POLICY] = RetryPolicy(course, inner, another_key_of(exchange))

    def _retries(self, policy: str | None) -> Retries | None:
        """The rules by which a request is tried again, None where LiteLLM's own hold."""
        settings = self._runtime.settings.resilience
        if settings.retries is not self._rules:
            self._rules = settings.retries
            self._paid_before += self._budget.paid
            self._budget = CountedBudget(self._rules.budget)
        if "retries" in settings.model_fields_set or (policy is not None and not self._litellm_retries()):
            return self._rules
        return None

    def _litellm_retries(self) -> bool:
        document = self._runtime.document
        return any((document.get(section) or {}).get(field) is not None for section, field in _WHOSE_RETRIES)

    def cools_down(self) -> bool:
        """Whether LiteLLM's configuration says when a deployment is left alone."""
        router = self._runtime.document.get("router_settings") or {}
        return any(router.get(field) is not None for field in _COOLDOWN)

    def shut(self, group: str) -> bool:
        """Whether no deployment of the group may be asked, because of breakers."""
        disabled = self._runtime.disabled_deployments
        known = [one for one in self._candidates.deployments(group) if one not in disabled]
        return bool(known) and all(self.breakers.is_open(one) for one in known)

    # -- the answer ------------------------------------------------------------------------------------------------

    def verdict(self, exchange: "Exchange") -> AllModelsFailed | None:
        """The error of a request that LiteLLM gives up: ours, where its models failed; None where LiteLLM's is told,
        because it is about the request, or about a model that was asked for by its name."""
        course, plan = exchange.course, exchange.plan
        if course is None or plan is None or not exchange.admitted:
            return None
        if not course.failed:
            return self.failure(exchange, course.groups) if course.shut else None
        if plan.policy is None or any(one.outcome.verdict not in _FAULTS for one in course.failed):
            return None
        return self.failure(exchange, course.groups, course.failed)

    def fallback(self, exchange: "Exchange", error: RequestRefused) -> Body | None:
        """The answer that the policy has for this, None where it has none or the endpoint takes none."""
        plan, context = exchange.plan, exchange.context
        if not isinstance(error, AllModelsFailed) or plan is None or context is None or plan.policy is None:
            return None
        text = exchange.snapshot.policies[plan.policy].fallback_response
        if text is None:
            return None
        reason = reason_of(exchange.course.failed if exchange.course is not None else ())
        text = text.replace("{reason}", reason.value)
        body = answer(exchange.endpoint, context.stream, context.asked_model, text, exchange.request_id)
        if body is not None:
            self.degraded += 1
        return body

    def failure(self, exchange: "Exchange", groups: Sequence[str], failed: Sequence[Failed] = ()) -> AllModelsFailed:
        """The error of a request all of whose groups are shut or have failed; none of them: the model it asks for."""
        self.failed += 1
        asked = exchange.context.asked_model if exchange.context is not None else ""
        groups = groups or ((asked,) if asked else ())
        deployments = [one for group in groups for one in self._candidates.deployments(group)]
        return all_failed(asked, failed, self.breakers.opens_at(deployments), time.time())


resilience: Resilience | None = None
"""That of this worker."""


def arrive(headers: list[tuple[bytes, bytes]]) -> None:
    """As `Resilience.arrive`."""
    if resilience is not None:
        resilience.arrive(headers)


def leave(exchange: "Exchange") -> None:
    """The request is over; who asked it has that priority the next time, too."""
    if resilience is not None and exchange.context is not None:
        resilience.shedder.learn(exchange.headers, exchange.context.priority)


def begin(exchange: "Exchange", data: dict[str, Any]) -> None:
    """As `Resilience.begin`."""
    if resilience is not None:
        resilience.begin(exchange, data)


def may_try(exchange: "Exchange | None", group: str) -> bool:
    """Whether LiteLLM is to try the group, first or again."""
    return exchange is None or exchange.course is None or exchange.course.may_try(group)


async def usable(exchange: "Exchange | None", deployments: list[Any]) -> list[Any]:
    """The deployments that breakers let the request through to."""
    if exchange is None or exchange.course is None or not deployments:
        return deployments
    return await exchange.course.usable(deployments)


def left_alone(exchange: "Exchange") -> bool:
    """Whether breakers have just left no deployment of a group that LiteLLM wanted to try."""
    return exchange.course is not None and exchange.course.shut


def outcome(exchange: "Exchange", exception: Exception, status: int) -> Outcome:
    """What a failed attempt is to the request."""
    if never_sent(exception):
        return IGNORED
    cause = exception.__cause__ or exception.__context__
    return classify(
        status,
        type(exception).__name__,
        retry_after_of(exception),
        0.0,
        cause=None if cause is None else type(cause).__name__,
        ours=not exchange.sent,
        another_key=exchange.has_another_key,
    )


def of_deployment(exchange: "Exchange", outcome: Outcome, status: int) -> Outcome:
    """What a failed attempt says of its deployment: nothing, where its client would not wait."""
    course = exchange.course
    return IGNORED if course is not None and course.client_timeout and status in _TIMED_OUT else outcome


def failed(exchange: "Exchange", exception: Exception, attempt: Attempt, outcome: Outcome) -> None:
    """An attempt has failed and is in the books; what was never sent is none of the provider's failures."""
    if exchange.course is not None and exchange.sent and not exchange.has_another_key:
        exchange.course.note(
            Failed(
                attempt.model,
                attempt.deployment,
                attempt.status,
                attempt.error_class or "",
                outcome,
                retry_after_of(exception) if attempt.status in _ASKS_FOR_TIME else None,
                never_sent(exception),
            )
        )


def replaces_cooldown(exchange: "Exchange", call: Mapping[str, Any]) -> bool:
    """Whether breakers alone decide that the deployment of a failed call is left alone: unless the configuration says
    otherwise, LiteLLM leaves it alone for 5 seconds, after a single failure and without finding out how it is."""
    info = call.get("model_info") or {}
    own = info.get("cooldown_time") or info.get("allowed_fails") or info.get("allowed_fails_policy")
    return exchange.course is not None and not own and resilience is not None and not resilience.cools_down()


async def decide(exchange: "Exchange") -> None:
    """The last attempt has failed: wait here where it is to be made again later."""
    if exchange.course is not None:
        await exchange.course.decide(another_key=exchange.has_another_key)


def failure(exchange: "Exchange") -> AllModelsFailed | None:
    """As `Resilience.verdict`, for a request that LiteLLM answers with an error."""
    return None if resilience is None else resilience.verdict(exchange)


def instead(exchange: "Exchange", error: RequestRefused) -> Body | None:
    """What the client gets in place of an error, None where it is to be told."""
    body = stale_answer(exchange) if isinstance(error, AllModelsFailed) else None
    if body is None and resilience is not None:
        body = resilience.fallback(exchange, error)
    if body is not None:
        exchange.degraded = True
        exchange.stream = body[0].startswith(b"text/event-stream")
    return body


def nothing_stale(exchange: "Exchange") -> Body | None:
    """There is no cache."""
    return None


stale_answer: Callable[["Exchange"], Body | None] = nothing_stale
"""An answer to the same request that is too old to be a hit: where there is one it is better than none."""


def clean(call: dict[str, Any]) -> None:
    """Take out of a call what was meant for LiteLLM's router, which may leave it in."""
    call.pop(AGAIN, None)


_TIMED_OUT = (408, 504)
_TIMEOUTS = ("timeout", "stream_timeout", "request_timeout", "client_side_timeout")
_ASKS_FOR_TIME = (429, 503, 529)
_FAULTS = (Verdict.FAILED, Verdict.SLOW, Verdict.THROTTLED)


def _attempts(rules: Retries, data: Mapping[str, Any]) -> int:
    """As many as the rules allow, or fewer where the client says so."""
    wanted = data.get("num_retries")
    return min(rules.max_attempts, wanted + 1) if isinstance(wanted, int) and wanted >= 0 else rules.max_attempts


def _sets_timeout(data: Mapping[str, Any]) -> bool:
    return not data.keys().isdisjoint(_TIMEOUTS) and any(data.get(name) is not None for name in _TIMEOUTS)
