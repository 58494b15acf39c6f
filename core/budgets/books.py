"""What budgets have left, for one worker: accounts opened from the store, leases kept alive, costs settled in order.

Shared state (core/state) knows what is reserved, the store knows what was spent; this keeps the two in step, also when
one of them was away or lost what it had.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from core import pauses
from core.budgets.account import Account, Balance
from core.budgets.allotments import Allotments, drawn_by
from core.errors import BudgetsUnavailable, StoreError
from core.settings.models import OutageMode
from core.state.reservations import (
    OPENS_NOTHING,
    Claim,
    Lease,
    LeaseState,
    ReservationState,
    Reserved,
    Standing,
    StateAway,
    StateLost,
    TooLittle,
    Unopened,
)

_LOG = logging.getLogger("orchestration.budgets")
_AT_ONCE = 64
_TRIES = 6
_PATIENCE = 2.0
_LOOK_EVERY = 1.0
_AGAIN_AFTER = 0.25
_SPARE = 0.5
_LOG_EVERY = 60.0


class Surroundings(Protocol):
    """What the books need of the worker they are in."""

    async def balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        """The store's word on each of them, to open them with. Raises StoreError."""
        ...

    async def flush(self) -> bool:
        """Write every usage event there is into the store; False where that is not possible just now."""
        ...

    async def living(self) -> Sequence[str]:
        """The instances that may have reserved something, this one included. Raises StoreError."""
        ...


@dataclass(slots=True)
class _Held:
    """A lease of ours."""

    amounts: dict[str, int]
    state: LeaseState = LeaseState.OPEN
    cost_nano: int = 0


class Books:
    """Reserve, say that it was sent, settle; and what has to go on meanwhile (`run`).

    `on_outage` says what a reservation is while shared state is away: refused, paid from what this worker has drawn
    ahead (`allotment`, a share of each account's limit), or granted without looking.
    """

    def __init__(
        self,
        state: ReservationState,
        surroundings: Surroundings,
        instance: str,
        *,
        on_outage: OutageMode = OutageMode.DENY,
        allotment: float = 0.0,
        lease_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._state = state
        self._around = surroundings
        self._instance = instance
        self._on_outage = on_outage
        self._allotments = Allotments(state, instance, allotment if on_outage is OutageMode.LOCAL else 0.0, clock)
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._sleep = sleep
        self._held: dict[str, _Held] = {}
        self._unsure: set[str] = set()
        """Those of them of which the state may not know what we do: it was away when they were granted, or sent."""
        self._next_term = 0.0
        self._ends: dict[str, int | None] = {}
        self._opening: dict[str, asyncio.Future[None]] = {}
        self._known = asyncio.Event()
        """Set while the state is whole and has what we hold."""
        self._registered = ""
        self._look = asyncio.Event()
        self._calls = 0
        self._quiet = asyncio.Condition()
        self._settling: dict[str, tuple[tuple[str, ...], int]] = {}
        self._balances: dict[str, Balance] = {}
        self._written: dict[str, None] = {}
        self._work = asyncio.Event()
        self._moving = asyncio.Lock()
        self._away_since: float | None = None
        self._spared_until = 0.0
        self._next_complaint = 0.0
        self.trouble: str | None = None
        """Why nothing can be reserved at the moment, for whoever looks after the proxy."""

    # -- a request ------------------------------------------------------------------------------------------------

    async def reserve(self, lease: str, claims: Sequence[Claim], *, slack: int = 1) -> Reserved | TooLittle:
        """Reserve in all accounts or in none; see `ReservationState.reserve`.

        `standings` are empty where the reservation was granted unseen. Raises `BudgetsUnavailable` where it is not
        known what is left.
        """
        if not claims:
            return Reserved(0, ())
        for _ in range(_TRIES):
            asked = False
            try:
                await self._until_known()
                while lease in self._settling:  # what had the name before comes to its end first
                    await self._move_some()
                asked = True
                with self._calling():
                    outcome = await self._state.reserve(lease, claims, slack=slack)
                if isinstance(outcome, Unopened):
                    await self._open(outcome.accounts)
                    continue
                self._allotments.saw(claims, outcome.standings)
                if isinstance(outcome, TooLittle) and await self._allotments.make_room(claims):
                    continue
            except StateLost:
                self._lose()
                continue
            except StateAway as error:
                self._miss(error)
                return self._unseen(lease, claims, str(error), asked)
            except StoreError as error:
                return self._unseen(lease, claims, str(error))
            except asyncio.CancelledError:
                # It may have been made: nobody will need it.
                self._settle(lease, tuple(claim.account.key for claim in claims), 0)
                raise
            if isinstance(outcome, Reserved):
                self._hold(lease, claims, outcome.level)
            return outcome
        return self._unseen(lease, claims, "shared state is being built anew")

    async def sent(self, lease: str) -> bool:
        """The attempt is about to be sent. False where the reservation has run out: then it must not be sent."""
        held = self._held.get(lease)
        if held is None:
            return False
        held.state = LeaseState.SENT
        while lease not in self._unsure:
            try:
                if not self._known.is_set():
                    await self._until_known()
                with self._calling():
                    there = await self._state.sent(lease)
            except StateLost:
                self._lose()  # what we hold may be registered already, as it was before
                continue
            except StateAway as error:
                self._miss(error)
                # Not known to be sent, it may run out meanwhile, and somebody else be given what was reserved.
                if self._on_outage is not OutageMode.ALLOW and not self._allotments.spend(lease, held.amounts):
                    self.settle(lease, 0)
                    return False
                self._unsure.add(lease)
                break
            if not there:
                self._held.pop(lease, None)
            return there
        return True

    def settle(self, lease: str, cost_nano: int) -> None:
        """The attempt is over and cost this much; 0 for one that was not sent or not billed. Never waits."""
        held = self._held.get(lease)
        if held is None or held.state is LeaseState.SETTLED:
            return
        held.state, held.cost_nano = LeaseState.SETTLED, cost_nano
        self._unsure.discard(lease)
        self._allotments.settle(lease, cost_nano)
        if not cost_nano:
            del self._held[lease]
        self._settle(lease, tuple(held.amounts), cost_nano)

    async def release(self, lease: str) -> None:
        """Give back what was reserved for an attempt that is not made, before something else is reserved for it."""
        if lease not in self._held:
            return
        self.settle(lease, 0)
        with suppress(StateAway):
            while lease in self._settling:
                await self._move_some()

    def written(self, leases: Iterable[str], balances: Sequence[Balance]) -> None:
        """The costs of these attempts are in the store, which says this of the accounts. Never waits."""
        for lease in leases:
            self._held.pop(lease, None)
            self._settling.pop(lease, None)  # the store's word is worth as much, and releases it as well
            self._written[lease] = None
        for balance in balances:
            known = self._balances.get(balance.key)
            if known is None or known.version < balance.version:
                self._balances[balance.key] = balance
        self._work.set()

    async def told(self, account: Account, balance: Balance) -> None:
        """Somebody adjusted the account, of which the store says this now: in force when this returns, or, while shared
        state is away, when it is there again."""
        self._ends[account.key] = account.end_ms
        self.written((), [balance])
        with suppress(StateAway):
            await self._state.put([balance], {account.key: account.end_ms}, opens=OPENS_NOTHING)

    async def standings(self, accounts: Sequence[Account], *, opening: bool = True) -> dict[str, Standing]:
        """What these accounts have; those that are not open are opened, or with `opening` false left out.

        Raises `BudgetsUnavailable` while it is not known.
        """
        try:
            found = await self._state.standings([account.key for account in accounts])
            missing = [account for account in accounts if account.key not in found] if opening else []
            if missing:
                await self._open(missing)
                found |= await self._state.standings([account.key for account in missing])
        except (StateAway, StoreError) as error:
            raise BudgetsUnavailable(f"What is left of the budgets is not known: {error}") from error
        return found

    async def reconcile(
        self, before: str, present: Callable[[Iterable[str]], Awaitable[set[str]]], ended: Container[str] = ()
    ) -> int:
        """Let go of settled leases, of requests named before `before`, whose events the store has: their worker died
        when it had written them and not yet said so. `present` knows which requests are stored.

        `ended` are instances that are no more and left nothing that is not in the store: what was spent of their
        allotments is in it. Of any other that is not heard of, an allotment may be in use. Returns how many.
        """
        attempts: list[Lease] = []
        over: list[Lease] = []
        for lease in await self._state.settled(before):
            instance = drawn_by(lease.id)
            if instance is None and lease.id not in self._held:
                attempts.append(lease)
            elif instance is not None and instance != self._instance and instance in ended:
                over.append(lease)
        stored = await present({request_of(lease.id) for lease in attempts})
        over += [lease for lease in attempts if request_of(lease.id) in stored]
        if over:
            accounts = [Account.parse(key) for key in {key for lease in over for key in lease.amounts}]
            balances = await self._around.balances(accounts)
            await self._state.put(balances, self._ends, [lease.id for lease in over], opens=OPENS_NOTHING)
        return len(over)

    # -- beside the requests ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: know the state, keep leases alive, settle."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after())
            tasks.create_task(self._move())

    async def close(self, within: float = 5.0) -> None:
        """Settle what is left, for at most `within` seconds; `run` has ended."""
        for lease, held in list(self._held.items()):
            if held.state is LeaseState.OPEN:
                self.settle(lease, 0)
        with suppress(TimeoutError, StateAway, StateLost):
            async with asyncio.timeout(within):
                while await self._move_some():
                    pass
                await self._make_up()
                await self._allotments.give_back_unspent()
        await self._state.close()

    async def look(self) -> None:
        """One round of `run`: does the state have what we hold? Raises `StateAway`, `StateLost`, StoreError."""
        await self._know()
        if self._known.is_set():
            await self._make_up()
            await self._allotments.tend()
        if self._clock() >= self._next_term:
            self._next_term = self._clock() + self._lease_seconds / 4
            await self._renew_and_reap()
        self._found()

    async def _look_after(self) -> None:
        while True:
            try:
                await self.look()
            except StateLost:
                self._known.clear()
            except (StateAway, StoreError) as error:
                self._miss(error)
            except Exception as error:
                _LOG.exception("the books failed in a way they should not")
                self.trouble = str(error)
            await pauses.wait(self._look, _LOOK_EVERY if self._known.is_set() else _AGAIN_AFTER)
            self._look.clear()

    async def _know(self) -> None:
        """One look at the state: is it whole, and does it have what we hold?"""
        whole = await self._state.recover()
        if self._state.epoch != self._registered:
            self._known.clear()
            await self._register(whole)
        if not whole:
            living = await self._around.living()
            await self._flush()  # with what those who died since then have left
            missing = await self._state.finish(living)
            self.trouble = f"waiting for {', '.join(missing)} to say what is reserved" if missing else None
            if missing or not await self._state.recover():
                return
        if self._state.epoch == self._registered:
            self.trouble = None
            self._known.set()

    async def _register(self, whole: bool) -> None:
        if self._registered:
            _LOG.warning("shared state was lost; what is reserved and settled is put in again")
        if not whole:
            await self._flush()
        async with self._quiet:
            await self._quiet.wait_for(lambda: not self._calls)
        async with self._moving:
            ours = [
                Lease(name, held.state, dict.fromkeys(held.amounts, held.cost_nano))
                if held.state is LeaseState.SETTLED
                else Lease(name, held.state, held.amounts)
                for name, held in self._held.items()
            ] + self._allotments.leases()
            if await self._state.register(self._instance, ours):
                self._registered = self._state.epoch

    async def _make_up(self) -> None:
        """Tell the state of what went on without it, and only then give back the allotments that paid for that."""
        with self._allotments.standing_still() as paid:
            await self._tell_unsure()
            while not paid.isdisjoint(self._unsure):
                await self._tell_unsure()
            while any(lease in self._settling or lease in self._written for lease in paid):
                await self._move_some()
            await self._allotments.give_back_spent()

    async def _tell_unsure(self) -> None:
        if not self._unsure:
            return
        async with self._moving:
            self._unsure.intersection_update(self._held)
            told = {name: self._held[name].state for name in self._unsure}
            sent = [name for name, state in told.items() if state is LeaseState.SENT]
            for start in range(0, len(sent), _AT_ONCE):
                await asyncio.gather(*(self._state.sent(name) for name in sent[start : start + _AT_ONCE]))
            ours = [
                Lease(name, told[name], held.amounts) for name in told if (held := self._held.get(name)) is not None
            ]
            if not await self._state.register(self._instance, ours):
                raise StateLost
            for name, state in told.items():
                held = self._held.get(name)
                if held is None or held.state is state:
                    self._unsure.discard(name)

    async def _flush(self) -> None:
        if not await self._around.flush():
            raise StoreError("usage events cannot be written to the store yet")

    async def _renew_and_reap(self) -> None:
        alive = [name for name, held in self._held.items() if held.state is not LeaseState.SETTLED]
        alive += [lease.id for lease in self._allotments.leases()]
        if alive:
            await self._state.renew(alive)
        for lease in await self._state.reap():
            whose = "the worker of" if drawn_by(lease.id) else "the sent attempt"
            _LOG.warning("nothing was heard of %s %s; it counts as spent at what was reserved", whose, lease.id)

    async def _move(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while await self._move_some():
                    pass
            except StateAway as error:
                self._miss(error)
                await self._sleep(_AGAIN_AFTER)
                self._work.set()
            except Exception:
                _LOG.exception("what is settled could not be told in a way it should")
                await self._sleep(_AGAIN_AFTER)
                self._work.set()

    async def _move_some(self) -> bool:
        """Tell the state what was settled and what is written; whether there was anything."""
        async with self._moving:
            batch = list(self._settling.items())[:_AT_ONCE]
            if batch:
                await asyncio.gather(*(self._state.settle(name, keys, cost) for name, (keys, cost) in batch))
                for name, told in batch:
                    if self._settling.get(name) is told:
                        del self._settling[name]
                return True
            if not self._balances and not self._written:
                return False
            balances, written = list(self._balances.values()), list(self._written)
            await self._state.put(balances, self._ends, written, opens=OPENS_NOTHING)
            for balance in balances:
                if self._balances.get(balance.key) is balance:
                    del self._balances[balance.key]
            for name in written:
                self._written.pop(name, None)
            return True

    # -- details ---------------------------------------------------------------------------------------------------

    async def _until_known(self) -> None:
        if self._known.is_set():
            if self._away_since is not None and self._clock() < self._spared_until:
                raise StateAway(self.trouble or "shared state is away")
            return
        self._look.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._known.wait()
                return
        raise StateAway(self.trouble or "shared state is being built anew")

    async def _open(self, accounts: Sequence[Account]) -> None:
        """Put the store's word on these accounts into the state; whoever else needs one waits for the first."""
        loop = asyncio.get_running_loop()
        others = [self._opening[account.key] for account in accounts if account.key in self._opening]
        mine = [account for account in accounts if account.key not in self._opening]
        promise: asyncio.Future[None] = loop.create_future()
        for account in mine:
            self._opening[account.key] = promise
        try:
            if mine:
                epoch = self._state.epoch
                balances = await self._around.balances(mine)
                await self._state.put(balances, {account.key: account.end_ms for account in mine}, opens=epoch)
        finally:
            for account in mine:
                del self._opening[account.key]
            promise.set_result(None)  # those who waited ask for themselves, should it have failed
        for other in others:
            await other

    def _hold(self, lease: str, claims: Sequence[Claim], level: int) -> None:
        self._held[lease] = _Held({claim.account.key: claim.amounts[level] for claim in claims})
        for claim in claims:
            if claim.account.key not in self._ends:
                if len(self._ends) >= _MOST_ENDS:
                    self._ends.clear()
                self._ends[claim.account.key] = claim.account.end_ms

    def _unseen(self, lease: str, claims: Sequence[Claim], why: str, asked: bool = False) -> Reserved:
        """What becomes of a reservation that cannot be looked up; `asked` where it may have been made nevertheless."""
        level = 0
        if self._on_outage is OutageMode.ALLOW:
            granted = True
        else:
            # The least that will do: should it have been made after all, then with no less than that.
            level = len(claims[0].amounts) - 1
            amounts = {claim.account.key: claim.amounts[level] for claim in claims}
            granted = lease not in self._settling and self._allotments.spend(lease, amounts)
        if not granted:
            if asked:
                self._settle(lease, tuple(claim.account.key for claim in claims), 0)
            meanwhile = (
                "and what was drawn ahead does not pay for this request"
                if self._on_outage is OutageMode.LOCAL
                else "so nothing may be spent"
            )
            raise BudgetsUnavailable(
                f"What is left of the budgets is not known, {meanwhile}: {why}.", headers={"retry-after": "5"}
            )
        self._hold(lease, claims, level)
        self._unsure.add(lease)
        return Reserved(level, ())

    def _settle(self, lease: str, keys: tuple[str, ...], cost_nano: int) -> None:
        self._settling[lease] = (keys, cost_nano)
        self._work.set()

    @contextmanager
    def _calling(self) -> Generator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls and not self._known.is_set():
                asyncio.get_running_loop().create_task(self._hush())

    async def _hush(self) -> None:
        async with self._quiet:
            self._quiet.notify_all()

    def _lose(self) -> None:
        self._known.clear()
        self._look.set()

    def _miss(self, error: Exception) -> None:
        now = self._clock()
        self.trouble = str(error)
        self._away_since = now if self._away_since is None else self._away_since
        self._spared_until = now + _SPARE
        if now >= self._next_complaint:
            self._next_complaint = now + _LOG_EVERY
            _LOG.error(
                "budgets cannot be looked up (%s); what they limit is %s meanwhile", error, _MEANWHILE[self._on_outage]
            )

    def _found(self) -> None:
        if self._away_since is not None:
            _LOG.warning("shared state is there again after %.0f s", self._clock() - self._away_since)
            self._away_since = None
            self._next_complaint = 0.0
            self._work.set()


_MEANWHILE = {
    OutageMode.DENY: "refused",
    OutageMode.LOCAL: "refused beyond what was drawn ahead",
    OutageMode.ALLOW: "allowed",
}


def request_of(lease: str) -> str:
    """The request whose attempt a lease is for."""
    return lease.rpartition(":")[0]


_MOST_ENDS = 100_000
