"""Equal requests at the same time: one call is made, and everybody gets its answer.

The call runs in a task of its own and belongs to nobody: whoever asked first, its leader, reads the answer like the
others. So the call goes on while anybody is left, and where a leader gets an answer that is for him alone, or none, the
next one makes the call in his own name. An answer's chunks are kept while it is under way; everybody reads them at his
own pace. A call waits for the fastest reader, never for the others: whoever falls too far behind is told so.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import Context, copy_context
from typing import Protocol

from core.cache.entry import Entry, Headers, kept_headers
from core.record import record

_LOG = logging.getLogger("orchestration.cache")

MOST_BYTES = 1_048_576
"""How far a reader may fall behind; answers up to this size can be read from the beginning until they are over."""


class FlightLost(Exception):
    """The answer that was waited for will not come, or not to its end."""


class LeftBehind(FlightLost):
    """The reader took the answer too slowly, and its next part is gone."""


@record
class Head:
    """How an answer begins."""

    status: int
    headers: Headers


class Elsewhere(Protocol):
    """Other instances, which may be getting the same answer."""

    async def begin(self, key: bytes) -> Entry | None:
        """The answer that another one got; None where it is ours to get."""
        ...

    async def end(self, key: bytes) -> None:
        """It is got, or will not be."""
        ...


Call = Callable[["Leader"], Awaitable[None]]
"""Gets an answer and gives it to the leader, part by part. Runs in the context in which its reader joined."""


class Flights:
    """`handovers`: how often a call that failed before it said anything is left to the next one. `grace`: seconds that
    a call has to end by itself once nobody is left, after which it is cancelled."""

    def __init__(
        self,
        *,
        most_bytes: int = MOST_BYTES,
        handovers: int = 2,
        grace: float = 5.0,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.most_bytes = most_bytes
        self.handovers = handovers
        self.grace = grace
        self.elsewhere = elsewhere
        self._open: dict[bytes, _Flight | Leader] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def join(self, key: bytes, call: Call) -> "Follower":
        """Take part in the flight of this key, or begin one with `call`. The follower is to be left in the end:
        `async with flights.join(key, call) as follower`."""
        found = self._open.get(key)
        flight = found.flight if isinstance(found, Leader) else found
        if flight is None or not flight.can_be_joined:
            flight = self._open[key] = _Flight(self, key)
        follower = Follower(flight, call, copy_context())
        flight.followers[follower] = None
        if not flight.begun:
            flight.begun = True
            if self.elsewhere is None:
                self._lead(flight)
            else:
                flight.task = self._run(self._ask_elsewhere(flight, self.elsewhere))
        return follower

    def lead(self, key: bytes) -> "Leader | None":
        """Begin a flight whose first call its leader makes himself and says is over by `Leader.over`; None where there
        is one already, or has to be asked for elsewhere."""
        found = self._open.get(key)
        if self.elsewhere is not None or (found is not None and found.can_be_joined):
            return None
        leader = self._open[key] = Leader(self, key)
        return leader

    def opened(self, leader: "Leader") -> "tuple[_Flight, Follower]":
        """The flight of a leader who had none, with its own reader in it unless that has left."""
        flight = _Flight(self, leader.key)
        follower = Follower(flight, _done, None)
        flight.begun = follower.led = True
        if self._open.get(leader.key) is leader:
            self._open[leader.key] = flight
            flight.followers[follower] = None
        return flight, follower

    async def close(self) -> None:
        """Cancel what is under way."""
        for flight in list(self._open.values()):
            if isinstance(flight, _Flight):
                flight.handovers = self.handovers
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _lead(self, flight: "_Flight") -> None:
        """Let the first who has not yet make the call."""
        follower = next((one for one in flight.followers if not one.led), None)
        if follower is None:
            self._over(flight, FlightLost("nobody is left to ask for the answer"))
            return
        follower.led = True
        leader = Leader(self, flight.key, flight, follower)
        flight.task = self._run(self._fly(leader), follower.context)

    async def _fly(self, leader: "Leader") -> None:
        failure: Exception | None = None
        try:
            await leader.follower.call(leader)
        except asyncio.CancelledError:
            failure = FlightLost("the call was cancelled")
        except Exception as error:  # it is for whoever waits for the answer
            failure = error
        self.landed(leader, failure)

    def landed(self, leader: "Leader", failure: Exception | None) -> None:
        """A leader's call is over, by what it raised if it did."""
        flight = leader.flight
        flight.task = None
        leader.follower.call = _done
        if flight.ended:
            if failure is not None:
                _LOG.error("what follows a shared answer failed", exc_info=failure)
            self._over(flight, None)
        elif flight.head is None:
            failure = failure or FlightLost("the call gave no answer")
            leader.follower.failure = failure
            flight.followers.pop(leader.follower, None)
            flight.wake()
            flight.handovers += 1
            if flight.followers and flight.handovers <= self.handovers:
                self._lead(flight)
            else:
                self._over(flight, FlightLost(f"the call failed: {type(failure).__name__}"))
        elif failure is not None:
            leader.follower.failure_at_end = failure
            self._over(flight, FlightLost(f"the answer was cut short: {type(failure).__name__}"))
        else:
            self._over(flight, None)

    async def _ask_elsewhere(self, flight: "_Flight", elsewhere: Elsewhere) -> None:
        try:
            entry = await elsewhere.begin(flight.key)
        except asyncio.CancelledError:
            self._over(flight, FlightLost("nobody waits"))
            return
        except Exception:  # whatever it is, we can ask ourselves
            entry = None
        flight.locked = True
        flight.task = None
        if entry is None:
            self._lead(flight)
            return
        flight.head = Head(entry.status, entry.headers)
        for chunk in entry.chunks():
            flight.add(chunk)
        self._over(flight, None)

    def _over(self, flight: "_Flight", failure: FlightLost | None) -> None:
        if not flight.ended:
            flight.ended, flight.failure = True, failure
            flight.wake()
        self.forget(flight)
        if flight.locked and self.elsewhere is not None:
            flight.locked = False
            self._run(self.elsewhere.end(flight.key))

    def forget(self, flight: "_Flight | Leader") -> None:
        """Who comes from now on begins another."""
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]

    def deserted(self, flight: "_Flight") -> None:
        """Nobody is left: the call is told so, and cancelled if it goes on."""
        self.forget(flight)
        flight.wake()
        task = flight.task
        if task is None:
            return
        if flight.locked or self.elsewhere is None or flight.alone:
            task.get_loop().call_later(self.grace, task.cancel)
        else:
            task.cancel()  # nothing is asked for yet

    def _run(self, work: Awaitable[None], context: Context | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_awaited(work), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def part(self, leader: "Leader") -> None:
        """What comes is the leader's alone; the others start again without him."""
        shared = leader.flight
        own = _Flight(self, shared.key)
        own.begun = own.alone = True
        own.task, shared.task = shared.task, None
        follower = leader.follower
        leader.moved(own)
        if follower in shared.followers:
            del shared.followers[follower]
            own.followers[follower] = None
        shared.wake()
        if not own.followers:
            self.deserted(own)
        if shared.followers:
            self._lead(shared)
        else:
            self._over(shared, FlightLost("nobody waits"))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _done(_: "Leader") -> None:
    """Stands where a call was that is over, or not wanted any more: it would keep alive what keeps alive its reader."""
    raise FlightLost("the request is over")


class _Flight:
    """An answer as far as it has come, and who reads it."""

    __slots__ = (
        "_flights",
        "alone",
        "begun",
        "chunks",
        "ended",
        "failure",
        "first",
        "followers",
        "front",
        "gone",
        "handovers",
        "head",
        "key",
        "locked",
        "most_bytes",
        "room",
        "task",
        "waiting",
        "written",
    )

    def __init__(self, flights: Flights, key: bytes) -> None:
        self._flights = flights
        self.key = key
        self.most_bytes = flights.most_bytes
        self.followers: dict[Follower, None] = {}
        self.head: Head | None = None
        self.chunks: deque[bytes] = deque()
        self.first = 0
        """Number of the first chunk that is still there."""
        self.gone = 0
        """Bytes of those that are not."""
        self.written = 0
        self.front = 0
        """Bytes that the fastest reader has taken."""
        self.begun = self.ended = self.alone = self.locked = False
        self.failure: FlightLost | None = None
        self.handovers = 0
        self.task: asyncio.Task[None] | None = None
        self.waiting: set[asyncio.Future[None]] = set()
        self.room: asyncio.Future[None] | None = None

    @property
    def can_be_joined(self) -> bool:
        """Whether there is still all of it."""
        return self.first == 0 and self.failure is None and bool(self.followers or self.ended)

    def add(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.written += len(chunk)
        self._trim()
        self.wake()

    async def news(self) -> None:
        """Returns when something has changed about the flight."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        try:
            await future
        finally:
            self.waiting.discard(future)

    def wake(self) -> None:
        if self.waiting:
            waiting, self.waiting = self.waiting, set()
            for future in waiting:
                if not future.done():
                    future.set_result(None)
        if self.room is not None:
            self.make_room()

    def make_room(self) -> None:
        if self.room is not None and (not self.followers or self.written - self.front <= self.most_bytes):
            if not self.room.done():
                self.room.set_result(None)
            self.room = None

    def took(self, position: int) -> None:
        if position > self.front:
            self.front = position
            self.make_room()

    def left(self, follower: "Follower") -> None:
        if follower in self.followers:
            del self.followers[follower]
            if not self.followers:
                if not self.ended:
                    self._flights.deserted(self)
            elif not self.ended and follower.position >= self.front > 0:
                self.front = max(one.position for one in self.followers)
        self.make_room()

    def _trim(self) -> None:
        """Let go of the oldest chunks that the fastest reader has taken, and of which the others are too far."""
        while self.chunks:
            length = len(self.chunks[0])
            if self.gone + length > self.front or self.written - self.gone - length < self.most_bytes:
                break
            self.chunks.popleft()
            self.first += 1
            self.gone += length


class Leader:
    """What a call gives its answer to. One who leads alone has no flight until somebody else takes part, or the answer
    comes in parts."""

    __slots__ = ("_flight", "_flights", "_follower", "key")

    can_be_joined = True
    """As that of flights: it stands among them while it leads alone."""

    def __init__(
        self, flights: Flights, key: bytes, flight: _Flight | None = None, follower: "Follower | None" = None
    ) -> None:
        self._flights = flights
        self.key = key
        self._flight = flight
        self._follower = follower

    @property
    def flight(self) -> _Flight:
        if self._flight is None:
            self._flight, self._follower = self._flights.opened(self)
        return self._flight

    @property
    def follower(self) -> "Follower":
        """Who reads the answer in its name."""
        if self._follower is None:
            self._flight, self._follower = self._flights.opened(self)
        return self._follower

    def moved(self, flight: _Flight) -> None:
        """It goes on in a flight of its own."""
        self._flight = self.follower.flight = flight

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The answer begins. The leader's reader gets all headers, the others those that are everybody's."""
        assert self.flight.head is None
        self.flight.head = Head(status, tuple(headers))
        self.flight.wake()

    async def send(self, chunk: bytes) -> None:
        """The next part; waits while even the fastest reader is far behind."""
        flight = self.flight
        assert flight.head is not None
        assert not flight.ended
        flight.add(chunk)
        while flight.followers and flight.written - flight.front > flight.most_bytes:
            if flight.room is None:
                flight.room = asyncio.get_running_loop().create_future()
            await flight.room

    def finish(self, chunk: bytes = b"") -> None:
        """That was all of it, with a last part that nobody waits for. Until the call returns, who comes still gets the
        answer: time to put it in the cache."""
        self.flight.ended = True
        if chunk:
            self.flight.add(chunk)
        self.flight.wake()

    def leave(self) -> None:
        """Its own reader reads no further."""
        if self._follower is None:
            self._flights.forget(self)
        else:
            self._follower.leave()

    def over(self, failure: Exception | None) -> None:
        """The call that `Flights.lead` left to the leader is over, by what it raised if it did."""
        self._flights.landed(self, failure)

    def ends_alone(self) -> bool:
        """Whether it leads alone, and then it is over: the answer need not be given to it."""
        if self._flight is not None:
            return False
        self._flights.forget(self)
        return True

    def part(self) -> None:
        """The answer will be for this request alone, a refusal for one: the others start again with the next of them.
        To be said before `start`."""
        assert self.flight.head is None
        if not self.flight.alone:
            self._flights.part(self)

    @property
    def deserted(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return not self.flight.followers

    async def wait_deserted(self) -> None:
        """Returns when nobody does: to the call it is as if its client had left."""
        while self.flight.followers:
            await self.flight.news()

    def recorded(self) -> tuple[bytes, ...] | None:
        """All chunks until now; None where there were too many to keep."""
        return tuple(self.flight.chunks) if self.flight.first == 0 else None


class Follower:
    """Reads one answer. `led`: it was, or is, got in its name."""

    __slots__ = ("_next", "call", "context", "failure", "failure_at_end", "flight", "led", "position")

    def __init__(self, flight: _Flight, call: Call, context: Context | None) -> None:
        self.flight = flight
        self.call = call
        self.context = context
        self.led = False
        self.position = 0
        """Bytes that it has taken."""
        self._next = 0
        self.failure: Exception | None = None
        self.failure_at_end: Exception | None = None

    async def __aenter__(self) -> "Follower":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def head(self) -> Head:
        """How the answer begins. Raises FlightLost, and for the one whose call failed what it raised."""
        while True:
            if self.failure is not None:
                raise self.failure
            head = self.flight.head
            if head is not None:
                return head if self.led else Head(head.status, kept_headers(head.headers))
            if self.flight.ended:
                raise self.flight.failure or FlightLost("the call gave no answer")
            await self.flight.news()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer's parts as they come. Raises like `head`, and LeftBehind."""
        await self.head()
        flight = self.flight
        while True:
            at = self._next - flight.first
            if at < 0:
                raise LeftBehind(f"the client fell more than {flight.most_bytes} bytes behind its answer")
            if at < len(flight.chunks):
                chunk = flight.chunks[at]
                self._next += 1
                self.position += len(chunk)
                flight.took(self.position)
                yield chunk
            elif flight.ended:
                if flight.failure is not None:
                    raise self.failure_at_end or flight.failure
                return
            else:
                await self.flight.news()

    def leave(self) -> None:
        """Read no further; the call goes on if somebody else does."""
        if not self.led:
            self.call = _done
        self.flight.left(self)
