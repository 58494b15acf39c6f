"""How model groups and their deployments are doing, as this worker sees it from second to second."""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from core.breakers.outcomes import Verdict, classify

WINDOW = 300.0
"""Seconds after which a measurement is forgotten: a group that was slow is then tried again."""

_SAMPLES = 128
_ERRORS = 5
_MOST = 2000
"""Groups and deployments that are remembered: the names of wildcard models come from requests."""
_FAILED_MS = 60_000.0
"""What a failed attempt counts as where groups are compared by time. Half of them have to fail for it to show."""
_SWEEP_EVERY = 1.0
_LOOK_EVERY = 0.05
_EXPECTED_FOR = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed, by what was raised or the status it had; messages may hold content and are not kept."""

    error: str
    status: int
    at: float


@dataclass(frozen=True, slots=True)
class Load:
    """How a group or a deployment is doing. Times are milliseconds of attempts that succeeded in the last 5 minutes,
    None without any; `share` is of the requests of its kind, with a half-life of 5 minutes, and `failing` the share of
    its own that failed, not counting those that clients got wrong. `at` of failures is Unix time."""

    in_flight: int
    share: float
    failing: float
    p50_ms: float | None
    p95_ms: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    failures: tuple[Failure, ...]


class _Times:
    """The last measurements of one kind: when, milliseconds, whether it succeeded."""

    __slots__ = ("_median", "_stale", "_taken")

    def __init__(self) -> None:
        self._taken: deque[tuple[float, float, bool]] = deque(maxlen=_SAMPLES)
        self._median: float | None = None
        self._stale = False

    def add(self, at: float, ms: float, ok: bool) -> None:
        self._taken.append((at, ms, ok))
        self._stale = True

    def forget(self, before: float) -> None:
        taken = self._taken
        while taken and taken[0][0] < before:
            taken.popleft()
            self._stale = True

    @property
    def median(self) -> float | None:
        """Failures included."""
        if self._stale:
            self._median, self._stale = _quantile([ms for _, ms, _ in self._taken], 0.5), False
        return self._median

    def quantile(self, share: float) -> float | None:
        """Of those that succeeded."""
        return _quantile([ms for _, ms, ok in self._taken if ok], share)


def _quantile(values: list[float], share: float) -> float | None:
    """Between the two nearest of them; None without any."""
    if not values:
        return None
    values.sort()
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


class _Doing:
    """What is remembered of a group or a deployment; `requests` and `failed` fade."""

    __slots__ = ("failed", "failures", "first_token", "in_flight", "requests", "total")

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = 0.0
        self.failed = 0.0
        self.total = _Times()
        self.first_token = _Times()
        self.failures: deque[Failure] = deque(maxlen=_ERRORS)

    def fade(self, factor: float) -> None:
        self.requests *= factor
        self.failed *= factor

    def load(self, of_all: float) -> Load:
        return Load(
            self.in_flight,
            self.requests / of_all if of_all > 0 else 0.0,
            self.failed / self.requests if self.requests > 0 else 0.0,
            self.total.quantile(0.5),
            self.total.quantile(0.95),
            self.first_token.quantile(0.5),
            self.first_token.quantile(0.95),
            tuple(self.failures),
        )


class Loads:
    """`custom_router.candidates.Live` of this worker, told of each attempt.

    `expected_output` says how many tokens an answer of a group has for a task. `deployments_of` names a group's
    deployments, `open_breaker` says whether one of them is not to be asked, `quiet` whether none is, `disabled` which
    are switched off: until they are given, everything is available.
    """

    def __init__(
        self, expected_output: Callable[[str, str | None], int], clock: Callable[[], float] = time.time
    ) -> None:
        self._expected_output = expected_output
        self.deployments_of: Callable[[str], Sequence[str]] = lambda _: ()
        self.open_breaker: Callable[[str], bool] | None = None
        self.quiet: Callable[[], bool] = lambda: self.open_breaker is None
        self.disabled: Callable[[], Collection[str]] = lambda: ()
        self._clock = clock
        self._groups: dict[str, _Doing] = {}
        self._deployments: dict[str, _Doing] = {}
        self._turns: dict[str, int] = {}
        self._swept = clock()
        self._available: dict[str, bool] = {}
        self._looked = 0.0
        self._expected: dict[tuple[tuple[str, ...], str | None], tuple[int, ...]] = {}
        self._expected_since = 0.0

    # -- what routing asks -----------------------------------------------------------------------------------------

    def available(self, group: str) -> bool:
        """As it was at most 50 ms ago: each decision asks this of every candidate. What is shut is not called all the
        same."""
        if self.open_breaker is None and not self.disabled():
            return True
        now = self._clock()
        if not 0 <= now - self._looked < _LOOK_EVERY:
            self._available.clear()
            self._looked = now
        known = self._available.get(group)
        if known is None:
            known = self._available[group] = self._takes_requests(group)
        return known

    def away(self, groups: tuple[str, ...]) -> Collection[str]:
        if self.quiet() and not self.disabled():
            return ()
        return [group for group in groups if not self.available(group)]

    def _takes_requests(self, group: str) -> bool:
        disabled, is_open = self.disabled(), self.open_breaker
        deployments = self.deployments_of(group)
        for one in deployments:
            if one not in disabled and (is_open is None or not is_open(one)):
                return True
        return not deployments  # LiteLLM will say

    def latency_ms(self, group: str, stream: bool) -> float | None:
        doing = self._groups.get(group)
        if doing is None:
            return None
        return (doing.first_token if stream else doing.total).median

    def in_flight(self, group: str) -> int:
        doing = self._groups.get(group)
        return 0 if doing is None else doing.in_flight

    def expected_outputs(self, groups: tuple[str, ...], task_type: str | None) -> Sequence[int]:
        """As it was at most a second ago: each decision asks this of every candidate."""
        now = self._clock()
        if not 0 <= now - self._expected_since < _EXPECTED_FOR or len(self._expected) >= _MOST:
            self._expected.clear()
            self._expected_since = now
        found = self._expected.get((groups, task_type))
        if found is None:
            found = tuple([self._expected_output(group, task_type) for group in groups])
            self._expected[groups, task_type] = found
        return found

    def turn(self, policy: str) -> int:
        turns = self._turns.get(policy, 0)
        if turns or len(self._turns) < _MOST:
            self._turns[policy] = turns + 1
        return turns

    # -- what it is told -------------------------------------------------------------------------------------------

    def began(self, group: str, deployment: str | None) -> None:
        """An attempt at a group is under way; `deployment` is its id, None where LiteLLM does not say."""
        self._sweep(self._clock())
        for doing in self._both(group, deployment):
            doing.in_flight += 1
            doing.requests += 1

    def ended(
        self,
        group: str,
        deployment: str | None,
        latency_ms: float,
        first_token_ms: float | None,
        status: int,
        error: str | None,
        cached: bool = False,
    ) -> None:
        """It is over: after `latency_ms` in all, and `first_token_ms` to the first token if it was a stream. `error` is
        the name of what was raised. `cached`: LiteLLM had the answer already, so that nothing was measured."""
        now = self._clock()
        self._sweep(now)
        verdict = classify(status, error, None, latency_ms / 1000).verdict
        failed = verdict is Verdict.FAILED or status == _TOO_MANY
        failure = Failure((error or f"status {status}")[:80], status, now) if failed else None
        for doing in self._both(group, deployment):
            doing.in_flight = max(0, doing.in_flight - 1)
            if failure is not None:
                doing.failed += 1
                doing.failures.append(failure)
                # It is not known whether it would have been a stream.
                doing.total.add(now, max(latency_ms, _FAILED_MS), False)
                doing.first_token.add(now, max(latency_ms, _FAILED_MS), False)
            elif verdict is Verdict.OK and not cached:
                if first_token_ms is None:
                    doing.total.add(now, latency_ms, True)
                else:
                    doing.first_token.add(now, first_token_ms, True)

    # -- status ----------------------------------------------------------------------------------------------------

    def groups(self) -> dict[str, Load]:
        """Each group that had requests lately."""
        return self._loads(self._groups)

    def deployments(self) -> dict[str, Load]:
        """Each deployment that had requests lately, by its id."""
        return self._loads(self._deployments)

    def _loads(self, of: dict[str, _Doing]) -> dict[str, Load]:
        self._sweep(self._clock())
        together = sum(doing.requests for doing in of.values())
        return {name: doing.load(together) for name, doing in of.items()}

    # -- memory ----------------------------------------------------------------------------------------------------

    def _both(self, group: str, deployment: str | None) -> tuple[_Doing, ...]:
        doing = _remembered(self._groups, group)
        return (doing,) if deployment is None else (doing, _remembered(self._deployments, deployment))

    def _sweep(self, now: float) -> None:
        """Now and then forget what is past; the clock may have been set back."""
        passed = now - self._swept
        if 0 <= passed < _SWEEP_EVERY:
            return
        self._swept = now
        factor = 0.5 ** (max(passed, 0.0) / WINDOW)
        for table in (self._groups, self._deployments):
            for doing in table.values():
                doing.fade(factor)
                doing.total.forget(now - WINDOW)
                doing.first_token.forget(now - WINDOW)


_TOO_MANY = 429


def _remembered(table: dict[str, _Doing], name: str) -> _Doing:
    doing = table.get(name)
    if doing is None:
        if len(table) >= _MOST:
            idle = next((one for one, known in table.items() if not known.in_flight), None)
            del table[next(iter(table)) if idle is None else idle]
        doing = table[name] = _Doing()
    return doing
