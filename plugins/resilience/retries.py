"""How one request gets on: what was tried, what may be tried next, and when.

LiteLLM makes the attempts. It goes from one to the next along `fallbacks`, in which a group that may be tried again
stands as often as that; before each attempt the filter hook asks whether this one is to be made.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.breakers import IGNORED, OK, Outcome, Permit, Verdict
from core.retries import Deadline, RetryBudget, delay
from core.settings.models.operations import Retries

if TYPE_CHECKING:
    from plugins.resilience.breakers import DeploymentBreakers

AGAIN = "_excluded_deployment_ids"
"""LiteLLM tries no target of its fallbacks twice. An entry with this argument of its router is another target to it,
of the same group; the router takes it out before it calls anybody."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that failed, and what that says about its provider. `asked` is what it wants to be left alone for, in
    seconds; `unsent` says that it never got the request."""

    group: str
    deployment: str | None
    status: int
    error: str
    outcome: Outcome
    asked: float | None = None
    unsent: bool = False


class CountedBudget(RetryBudget):
    """A retry budget that knows what it has paid for."""

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.paid = 0

    def retry(self) -> bool:
        paid = super().retry()
        self.paid += paid
        return paid


class Course:
    """What has become of a request so far.

    `rules` are those by which it is tried again, None where that is LiteLLM's own affair. `budget` pays for retries.
    `groups` are those it may come to, `repeats` how often each may be tried.
    """

    __slots__ = (
        *("_clock", "_sleep", "breakers", "budget", "client_timeout", "deadline", "deployments", "failed", "granted"),
        *("groups", "last", "late", "listed", "news", "permit", "rules", "sent", "shut", "tried"),
    )

    def __init__(
        self,
        breakers: "DeploymentBreakers",
        rules: Retries | None = None,
        budget: RetryBudget | None = None,
        started: float = 0.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.breakers = breakers
        self.rules = rules
        self.budget = budget
        self.deadline = Deadline() if rules is None else Deadline.begin(rules, started)
        self.groups: tuple[str, ...] = ()
        self.listed = False
        """Whether repeats stand in `fallbacks`; else LiteLLM's own loop makes them."""
        self.permit: Permit | None = None
        """Of a probe that is under way, or about to be."""
        self.tried: dict[str, int] = {}
        self.sent = 0
        self.last: str | None = None
        """The group that was tried last."""
        self.failed: list[Failed] = []
        self.news: Failed | None = None
        """The failure of the last attempt, about which nothing was decided yet."""
        self.granted: str | None = None
        """The group that may be tried once more."""
        self.deployments: Sequence[Any] = ()
        """Those that LiteLLM had for the group it tried last."""
        self.shut = False
        """Whether breakers left no deployment when it was looked for last."""
        self.late = False
        """Whether the deadline was over when it was looked for last."""
        self.client_timeout = False
        """Whether the client said how long it waits: that it was too short says nothing about a provider."""
        self._clock = clock
        self._sleep = sleep

    # -- before an attempt -----------------------------------------------------------------------------------------

    def may_try(self, group: str) -> bool:
        """Whether the group is to be tried at all, first or again."""
        if self.rules is None:
            return True
        self.late = self.sent > 0 and not self.deadline.allows(self._clock())
        if self.late:
            return False
        if group not in self.tried:
            return True
        granted, self.granted = self.granted == group, None
        return granted

    async def usable(self, deployments: list[Any]) -> list[Any]:
        """Those of the group's deployments that may be asked now; of several rather one that has not failed yet."""
        self.give_back()
        self.deployments = deployments
        found, self.permit = await self.breakers.usable(deployments)
        self.shut = bool(deployments) and not found
        if self.failed and len(found) > 1:
            failed = {one.deployment for one in self.failed}
            found = [one for one in found if _id(one) not in failed] or found
        return found

    def began(self, group: str, deployment: str | None) -> None:
        """An attempt is under way."""
        self.sent += 1
        self.last, self.news = group, None
        self.tried[group] = self.tried.get(group, 0) + 1
        if self.permit is not None and deployment is not None and self.breakers.name(deployment) != self.permit.name:
            self.give_back()

    def left(self) -> list[str]:
        """The groups that are to be tried after a failure, in this order; none when there is no time left."""
        if not self.deadline.allows(self._clock()):
            return []
        again = [] if self.granted is None else [self.granted]
        return again + [group for group in self.groups if group not in self.tried]

    # -- after it --------------------------------------------------------------------------------------------------

    def ended(self, deployment: str | None, outcome: Outcome, latency: float) -> None:
        """It is over, or its first token is there: what that says about its deployment."""
        permit, self.permit = self.permit, None
        self.breakers.ended(deployment, outcome, latency, permit)

    def speaks(self, deployment: str | None) -> None:
        """A stream has begun: as a probe it has done its part, however long it goes on."""
        if self.permit is not None:
            self.ended(deployment, OK, 0.0)

    def note(self, failed: Failed) -> None:
        """An attempt that was sent has failed."""
        self.failed.append(failed)
        self.news = failed

    def give_back(self) -> None:
        """A place for a probe that nothing came of."""
        permit, self.permit = self.permit, None
        if permit is not None:
            self.breakers.ended(None, IGNORED, 0.0, permit)

    async def decide(self, *, another_key: bool = False) -> None:
        """The last attempt has failed: decide whether its group is tried again, and wait until it should be.

        `another_key`: it failed because of a key, and there is another one now, with which it is tried at once. So is
        what the provider never got, which is no more load for it.
        """
        self.granted = self.last if another_key else None
        rules, budget = self.rules, self.budget
        failed, self.news = self.news, None
        if another_key or rules is None or budget is None or failed is None:
            return
        if failed.unsent:
            self.granted = failed.group if self.sent < rules.max_attempts else None
            return
        if failed.outcome.verdict in _SAYS_NOTHING:
            return
        elsewhere = any(group not in self.tried for group in self.groups)
        if elsewhere and self.sent + self._untried() >= rules.max_attempts:
            return  # what is left is for the others
        wait = delay(rules, self.sent, failed.asked)
        if wait is None or (elsewhere and failed.asked is not None):
            return
        if self._has_other(failed):
            wait = 0.0
        elif failed.asked is None and self._all_open():
            return
        if self.deadline.allows(self._clock(), wait) and budget.retry():
            self.granted = failed.group
            if wait:
                await self._sleep(wait)

    def _untried(self) -> int:
        return sum(group not in self.tried for group in self.groups)

    def _has_other(self, failed: Failed) -> bool:
        """Whether the group has a deployment that is well and has not failed yet."""
        known = {one.deployment for one in self.failed} | {failed.deployment}
        return any(
            known_id is not None and known_id not in known and not self.breakers.is_open(known_id)
            for known_id in map(_id, self.deployments)
        )

    def _all_open(self) -> bool:
        known = [found for found in map(_id, self.deployments) if found is not None]
        return bool(known) and all(self.breakers.is_open(one) for one in known)


def listed(first: str, rest: Sequence[Any], attempts: int) -> list[Any]:
    """`fallbacks` for LiteLLM: behind `first`, `rest` (names of groups), each again as often as `attempts` in all
    leave room for, the earlier ones first.

    `attempts` 3 of a and b are a, a, b.
    """
    groups: list[Any] = [first, *rest]
    repeats = max(attempts - len(groups), 0)
    if not repeats:
        return list(rest)
    row: list[Any] = []
    for place, group in enumerate(groups):
        row.append({"model": group})  # LiteLLM takes names or mappings, not both
        more = repeats // len(groups) + (place < repeats % len(groups))
        row += [{"model": group, AGAIN: [f"try {number}"]} for number in range(2, more + 2)]
    return row[1:]


RETRY_POLICY = "model_group_retry_policy"
"""The argument of LiteLLM's router by which a request has a retry policy of its own."""


class RetryPolicy(Mapping[str, Any]):
    """A `model_group_retry_policy` for one request, round the one it has.

    LiteLLM looks into it when the first attempt at a group has failed. None of LiteLLM's own retries are made where the
    course says what is tried, nor of a group that no breaker lets through.
    """

    def __init__(self, course: Course, inner: Mapping[str, Any], another_key: Callable[[], bool]) -> None:
        self._course = course
        self._inner = inner
        self._another_key = another_key

    def __contains__(self, group: object) -> bool:
        return self._course.rules is not None or self._course.shut or group in self._inner

    def __getitem__(self, group: str) -> Any:
        course = self._course
        if self._another_key():
            return self._inner[group]
        if course.shut or course.listed:
            return _times(0)
        if course.rules is None:
            return self._inner[group]
        return _times(course.rules.max_attempts - course.sent if course.granted == group else 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __copy__(self) -> "RetryPolicy":
        return self

    def __deepcopy__(self, memo: Any) -> "RetryPolicy":
        return self


def _times(number: int) -> dict[str, int]:
    return dict.fromkeys(_RETRIES_OF, max(number, 0))


_RETRIES_OF = (
    *("BadRequestErrorRetries", "AuthenticationErrorRetries", "TimeoutErrorRetries", "RateLimitErrorRetries"),
    *("ContentPolicyViolationErrorRetries", "InternalServerErrorRetries", "DefaultRetries"),
)
_SAYS_NOTHING = (Verdict.IGNORED, Verdict.OK)


def _id(deployment: Mapping[str, Any]) -> str | None:
    return (deployment.get("model_info") or {}).get("id")
