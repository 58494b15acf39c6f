"""Decisions made again: a recorded request as routing saw it, and how models were doing, as far as that was recorded.

Not recorded, and so taken for granted: that the key may use what its tier permits, that a model takes requests, and
that none is busy.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import orjson

from core.context import Caller, RequestContext
from core.settings import Settings
from core.usage import UsageEvent
from custom_router.traits import with_traits

_MOST_CALLERS = 50_000
_OUTPUT_TOKENS = 256
"""Of an answer where none was recorded."""


class Recorded(NamedTuple):
    """A row of `core.store.UsageRepository.replay`, its `REPLAY_COLUMNS` by name. `groups` is a JSON array."""

    time_ms: int
    endpoint: str
    key_hash: str | None
    key_alias: str | None
    user_id: str | None
    team_id: str | None
    groups: str
    tier: str | None
    task_type: str | None
    priority: int | None
    session_id: str | None
    asked_model: str | None
    used_model: str | None
    input_tokens: int
    output_tokens: int
    cost_nano: int
    status: int
    streamed: bool | int
    traits: str | None
    error_class: str | None


class Callers:
    """Who asked, as another configuration has them.

    A tier that it does not have becomes its default tier; so does having none, where `had_tiers` says that there were
    none to have. Groups are those in which it has the user or the team, and those that it does not list at all: these
    came from a team's metadata. `lost` has the tiers that are gone.
    """

    def __init__(self, settings: Settings, *, had_tiers: bool = True) -> None:
        self.lost: set[str] = set()
        self._tiers = settings.tiers
        self._default = settings.default_tier if settings.tiers else None
        self._had_tiers = had_tiers
        self._listed = frozenset(settings.groups)
        self._of_user: dict[str, list[str]] = {}
        self._of_team: dict[str, list[str]] = {}
        for name, group in settings.groups.items():
            for user in group.users:
                self._of_user.setdefault(user, []).append(name)
            for team in group.teams:
                self._of_team.setdefault(team, []).append(name)
        self._known: dict[tuple[Any, ...], Caller] = {}

    def of(self, row: Recorded) -> Caller:
        """The caller of a recorded request; remembered, since the same ones come again and again."""
        key = (row.key_hash, row.user_id, row.team_id, row.groups, row.tier, row.key_alias)
        caller = self._known.get(key)
        if caller is None:
            if len(self._known) >= _MOST_CALLERS:
                self._known.clear()
            caller = self._known[key] = self._made(row)
        return caller

    def _made(self, row: Recorded) -> Caller:
        tier = row.tier
        if not self._tiers:
            tier = None
        elif tier is None:
            tier = None if self._had_tiers else self._default
        elif tier not in self._tiers:
            self.lost.add(tier)
            tier = self._default
        groups = dict.fromkeys(self._of_user.get(row.user_id or "", ()))
        groups |= dict.fromkeys(self._of_team.get(row.team_id or "", ()))
        recorded = cast("list[str]", orjson.loads(row.groups))
        groups |= dict.fromkeys(name for name in recorded if name not in self._listed)
        return Caller(
            key_hash=row.key_hash,
            key_alias=row.key_alias,
            user_id=row.user_id,
            team_id=row.team_id,
            groups=tuple(groups),
            tier=tier,
            tiers=() if tier is None else (tier,),
        )


def context_of(row: Recorded, caller: Caller, request_id: str) -> RequestContext:
    """A recorded request, from `caller`. Raises ValueError for traits that are none.

    Where the configuration of then had no need to look into requests, the tokens that were billed stand for the
    estimate.
    """
    context = RequestContext(
        request_id=request_id,
        endpoint=row.endpoint,
        caller=caller,
        asked_model=row.asked_model or "",
        task_type=row.task_type,
        priority=row.priority,
        session_id=row.session_id,
        stream=bool(row.streamed),
        input_tokens=row.input_tokens,
        time_ms=row.time_ms,
    )
    return with_traits(context, row.traits) if row.traits else context


def context_of_event(event: UsageEvent) -> RequestContext:
    """A recorded request as it was decided about. Raises ValueError for traits that are none."""
    caller = Caller(
        key_hash=event.key_hash,
        key_alias=event.key_alias,
        user_id=event.user_id,
        team_id=event.team_id,
        groups=event.groups,
        tier=event.tier,
        tiers=() if event.tier is None else (event.tier,),
    )
    context = RequestContext(
        request_id=event.request_id,
        endpoint=event.endpoint,
        caller=caller,
        asked_model=event.asked_model or "",
        task_type=event.task_type,
        priority=event.priority,
        session_id=event.session_id,
        stream=event.streamed,
        time_ms=event.time_ms,
    )
    return with_traits(context, event.traits)


def left_out_of(route: str | None) -> tuple[str, ...]:
    """The models that a recorded `route` (`Plan.reason`) names as left out."""
    _, said, names = f" {route or ''}".rpartition(" not ")
    return tuple(names.partition(" (")[0].split(",")) if said else ()


class Measured:
    """`custom_router.candidates.Live` of a time that is over.

    `latency_ms` are medians by group and whether it was a stream, `output_tokens` means by group and task type, with
    None for all its tasks.
    """

    def __init__(
        self,
        latency_ms: Mapping[tuple[str, bool], float] | None = None,
        output_tokens: Mapping[tuple[str, str | None], int] | None = None,
    ) -> None:
        self._latency_ms = latency_ms or {}
        self._output_tokens = output_tokens or {}
        self._turns: dict[str, int] = {}

    def available(self, group: str) -> bool:
        return True

    def away(self, groups: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def latency_ms(self, group: str, stream: bool) -> float | None:
        return self._latency_ms.get((group, stream))

    def in_flight(self, group: str) -> int:
        return 0

    def expected_outputs(self, groups: tuple[str, ...], task_type: str | None) -> list[int]:
        known = self._output_tokens
        return [known.get((group, task_type)) or known.get((group, None), _OUTPUT_TOKENS) for group in groups]

    def turn(self, policy: str) -> int:
        turn = self._turns.get(policy, 0)
        self._turns[policy] = turn + 1
        return turn
