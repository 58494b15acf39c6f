"""Load shedding: a worker that falls behind refuses the least urgent requests at the door, before they have cost
anything, so that the others are answered as fast as ever.

What shows that a worker is behind is how long a task that could run has to wait for its turn (`turns.py`). As in CoDel
(RFC 8289) the shortest wait of an interval counts: a single long task makes some of them long, being behind all of
them. While it is, the share of requests that are refused grows with each interval; then it shrinks. The refused are
those of the lowest priority, and of a priority of which only a part has to go, some by chance.
"""

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable

from core.context import LOWEST_PRIORITY
from core.errors import Overloaded
from plugins.limits.gate import DEFAULT_PRIORITY

_LOG = logging.getLogger("orchestration.shedding")

_TELL_EVERY = 60.0
_PATIENCE = 3
"""Intervals behind before anything is refused: a start or a collection of garbage is no overload."""
_MORE = 0.15
_LESS = 0.005
_FAR = 4.0
"""Of the target: a wait of which no fewer are to be refused than were."""
_COLLAPSED = 40.0
"""Of the target: a wait that is worse than a refusal. Where a hundred clients wait for one worker, each of whose turns
takes a millisecond, a tenth of a second is what each of them takes for granted."""
_LAST = 40
"""Such intervals with everybody else refused before the most urgent are refused, too: what was let in takes time."""
_MOST = 0.98
"""Of the requests: what is left finds out whether it would go."""
_FADE = 0.9
"""What arrivals of the interval before still count."""
_GONE = 0.1
"""Arrivals that no longer count: a single one is forgotten after a second."""
_CREDENTIALS = 20_000
_RETRY_AFTER = "2"
_NAMES = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"ocp-apim-subscription-key",
    b"x-litellm-api-key",
)


class Shedder:
    """That of one worker. `target` is the wait in seconds above which it is behind; 0: nothing is ever refused. The
    most urgent there are wait longer before they are refused, too."""

    def __init__(
        self, target: float, clock: Callable[[], float] = time.perf_counter, chance: Callable[[], float] = random.random
    ) -> None:
        self.target = target
        self.share = 0.0
        """Of the requests that are refused."""
        self.refused = 0
        """Since the worker has started."""
        self._clock = clock
        self._chance = chance
        self._told = float("-inf")
        self._behind = 0
        self._full = 0
        """Intervals of collapse though only the most urgent are let in."""
        self._arrivals = [0.0] * (LOWEST_PRIORITY + 1)
        self._priorities: OrderedDict[int, int] = OrderedDict()

    # -- a request -------------------------------------------------------------------------------------------------

    def arrive(self, headers: list[tuple[bytes, bytes]]) -> None:
        """A request is at the door. Raises `Overloaded` for one that cannot be served in time."""
        if not self.target:
            return
        priority = self._known(headers)
        self._arrivals[priority] += 1
        if self.share and self._chance() < self._refuses(priority):
            self.refused += 1
            message = "The proxy has more to do than it can; requests of a lower priority are refused first. Try again."
            raise Overloaded(message, details={"priority": priority}, headers={"retry-after": _RETRY_AFTER})

    def learn(self, headers: list[tuple[bytes, bytes]], priority: int | None) -> None:
        """Whoever has these credentials has this priority."""
        name = credential(headers)
        if name is None or not self.target:
            return
        known = self._priorities
        known[name] = _within(priority)
        known.move_to_end(name)
        if len(known) > _CREDENTIALS:
            known.popitem(last=False)

    def _known(self, headers: list[tuple[bytes, bytes]]) -> int:
        """The priority that the caller had last; whoever never came has that of callers without one."""
        name = credential(headers)
        return DEFAULT_PRIORITY if name is None else self._priorities.get(name, DEFAULT_PRIORITY)

    def _refuses(self, priority: int) -> float:
        """The share of the requests of this priority that are refused, so that of all of them `share` are."""
        together = sum(self._arrivals)
        below = sum(self._arrivals[priority + 1 :])
        own = self._arrivals[priority]
        if self._full <= _LAST and not any(self._arrivals[:priority]):
            return 0.0  # nobody is more urgent
        return (self.share * together - below) / own if own else 0.0

    def _less_urgent(self) -> float:
        """The share of the requests that are not of the most urgent priority there is."""
        together = sum(self._arrivals)
        most_urgent = next((count for count in self._arrivals if count > 0), 0.0)
        return 1.0 - most_urgent / together if together else 0.0

    # -- how far behind --------------------------------------------------------------------------------------------

    def waited(self, shortest: float) -> None:
        """An interval is over, in which a task waited so many seconds for its turn at least."""
        if shortest > self.target > 0:
            self._behind += 1
            if self.share or self._behind >= _PATIENCE:
                self._tell()
                far = shortest > self.target * _FAR
                spared = self._less_urgent()
                collapsed = shortest > self.target * _COLLAPSED
                self._full = self._full + 1 if collapsed and self.share >= spared else 0
                most = _MOST if self._full > _LAST else max(spared, self.share - (0.0 if far else _LESS))
                self.share = min(self.share + _MORE * min(shortest / self.target - 0.5, 2.0), most, _MOST)
        else:
            self._behind = self._full = 0
            self.share = max(self.share - _LESS, 0.0)
        self._arrivals = [count * _FADE if count > _GONE else 0.0 for count in self._arrivals]

    def _tell(self) -> None:
        now = self._clock()
        if not self.share and now - self._told >= _TELL_EVERY:
            self._told = now
            _LOG.warning(
                "this worker has more to do than it can and refuses requests, those of low priority first; "
                "%d since it started",
                self.refused,
            )

    @property
    def calm(self) -> bool:
        """Whether it keeps up, and nobody is refused."""
        return not self.share and not self._behind

    def rested(self, intervals: int) -> None:
        """So many intervals are over in which nobody came."""
        self._behind = self._full = 0
        self.share = max(self.share - _LESS * intervals, 0.0)
        fade = _FADE**intervals
        self._arrivals = [count * fade if count * fade > _GONE else 0.0 for count in self._arrivals]


def credential(headers: list[tuple[bytes, bytes]]) -> int | None:
    """What tells a credential from others in this process without being of use to anybody; None without one."""
    for name, value in headers:
        if name in _NAMES:
            return hash(value)
    return None


def _within(priority: int | None) -> int:
    return min(max(priority or DEFAULT_PRIORITY, 1), LOWEST_PRIORITY)
