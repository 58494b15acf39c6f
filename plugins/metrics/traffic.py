"""The requests of this worker in numbers: a few additions for each usage event."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from core import errors
from core.errors import RequestRefused
from core.usage import Attempt, UsageEvent

BOUNDS_MS = (50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000)
"""Upper bounds of the buckets of a `Spread`, in milliseconds."""

OTHER = "other"
"""Every model that is no name of the configuration: clients may ask for anything."""
NONE = "none"

_REMEMBERED = 1000
_CLASSES = {0: NONE, **{first: f"{first}xx" for first in range(1, 6)}}


def _codes() -> dict[str, str]:
    known = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, RequestRefused)]
    return {one.__name__: one.code for one in known}


_CODES = _codes()


@dataclass(slots=True)
class Spread:
    """A histogram of milliseconds: one count for each of `BOUNDS_MS`, and one for what is above them all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    total_ms: int = 0

    def add(self, ms: int) -> None:
        self.counts[bisect_left(BOUNDS_MS, ms)] += 1
        self.total_ms += ms


class Traffic:
    """Counted since the worker has started. `names` gives the model groups and policies there are.

    No user, key or team is in it, and a model only by a name or wildcard of the configuration: however many there are
    of the former and whatever clients ask for, what is kept and told stays small.
    """

    def __init__(self, names: Callable[[], Collection[str]]) -> None:
        self._names = names
        self._labels: dict[str, str] = {}
        self.requests: dict[tuple[str, str, str, str], int] = {}
        """By endpoint, model, class of the status, and what the cache had."""
        self.refused: dict[str, int] = {}
        """By the error's code; only ours."""
        self.durations: dict[str, Spread] = {}
        """Of answers that a model gave in full, by model."""
        self.first_tokens: dict[str, Spread] = {}
        """Of streams among them."""
        self.attempts: dict[tuple[str, str], int] = {}
        """By model and class of the provider's status, `none` where it gave none."""
        self.tokens: dict[tuple[str, str], int] = {}
        """Billed by providers, by model and direction: input or output."""
        self.cost_nano: dict[str, int] = {}
        """Charged, by model."""

    def count(self, event: UsageEvent) -> None:
        """A request is over."""
        status, cache = event.status, event.cache
        model = self.label(event.used_model or event.asked_model or "")
        key = event.endpoint, model, _CLASSES.get(status // 100, OTHER), cache or NONE
        self.requests[key] = self.requests.get(key, 0) + 1
        if status >= 400:
            code = _CODES.get(event.error_class or "")
            if code is not None:
                self.refused[code] = self.refused.get(code, 0) + 1
        elif cache is None and event.attempts and not (event.degraded or event.disconnected):
            self._spread(self.durations, model).add(event.latency_ms)
            if event.first_token_ms is not None:
                self._spread(self.first_tokens, model).add(event.first_token_ms)
        self.attempted(event.attempts)

    def attempted(self, attempts: Iterable[Attempt]) -> None:
        """Providers were called: for a request, or to see how they are."""
        for attempt in attempts:
            tried = self.label(attempt.model)
            outcome = tried, _CLASSES.get(attempt.status // 100, OTHER)
            self.attempts[outcome] = self.attempts.get(outcome, 0) + 1
            for direction, tokens in (("input", attempt.input_tokens), ("output", attempt.output_tokens)):
                if tokens:
                    place = tried, direction
                    self.tokens[place] = self.tokens.get(place, 0) + tokens
            self.cost_nano[tried] = self.cost_nano.get(tried, 0) + attempt.cost_nano

    def label(self, model: str) -> str:
        """What a model is called in metrics: its name, the wildcard it comes under, or `other`."""
        known = self._labels.get(model)
        if known is not None:
            return known
        names = self._names()
        found = model if model in names else None
        if found is None:
            found = next((name for name in names if "*" in name and fnmatchcase(model, name)), None)
        if found is None:
            return OTHER  # not remembered: the next configuration may know it
        if len(self._labels) >= _REMEMBERED:
            self._labels.clear()
        self._labels[model] = found
        return found

    @staticmethod
    def _spread(of: dict[str, Spread], model: str) -> Spread:
        spread = of.get(model)
        if spread is None:
            spread = of[model] = Spread()
        return spread


traffic: Traffic | None = None
"""That of this worker."""


def count(event: UsageEvent) -> None:
    """As `Traffic.count`."""
    if traffic is not None:
        traffic.count(event)


def attempted(attempts: Iterable[Attempt]) -> None:
    """As `Traffic.attempted`."""
    if traffic is not None:
        traffic.attempted(attempts)
