"""What budgets have spent and may spend, in the store: balances, adjustments, pauses, and what came before a budget."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    TableValuedAlias,
    Text,
    and_,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    union_all,
)

from core.budgets import Account, Balance, Coverage
from core.budgets.coverage import Per
from core.store.tables import (
    SCHEMA,
    budget_adjustments,
    budget_backfills,
    budget_pauses,
    budget_spend,
    usage_attempts,
    usage_events,
)
from core.store.writing import insert, upserting, without_nul

if TYPE_CHECKING:
    from core.store.engine import Store

_INT64 = 1 << 63
_spend = budget_spend.c
_BALANCE = (_spend.budget, _spend.start_ms, _spend.member, _spend.spent_nano, _spend.base_nano, _spend.extra_nano)
_COLUMNS = (*_BALANCE, _spend.version)

_Place = tuple[str, int, str]
"""The primary key of an account's row: budget, start_ms, member."""


class AdjustmentKind(StrEnum):
    """Why an account may spend more than its budget's total."""

    GRANT = "grant"
    """Somebody topped it up."""
    CARRY = "carry"
    """Unspent money of the period before."""
    RESET = "reset"
    """What it had spent was forgiven."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One change of what an account may spend beyond its budget's total, made once whatever is tried again.

    `amount_nano` is added to the account's `extra_nano`; for a reset the store works it out. `time_ms` is Unix
    milliseconds.
    """

    id: str
    account: Account
    kind: AdjustmentKind
    time_ms: int
    actor: str
    reason: str = ""
    amount_nano: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a budget admits nothing, who stopped it, and why. Unix milliseconds."""

    since_ms: int
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class SpendPage:
    """Balances, most spent first, and the cursor of the next page; None where there is none."""

    balances: tuple[Balance, ...]
    cursor: str | None


class BudgetRepository:
    """The tables of budgets. Every method raises StoreError while the database cannot be used."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    async def balances(self, accounts: Sequence[Account]) -> dict[str, Balance]:
        """The balance of each account by its key; zero for those that nobody has written to. One query."""
        keys = [account.key for account in accounts]
        if not keys:
            return {}
        return {balance.key: balance for balance in await self._store.read(partial(balances_of, keys=keys))}

    async def adjust(self, adjustment: Adjustment) -> Balance:
        """Make the adjustment, once by its id, and return the account's balance now.

        A reset forgives what the account has spent and was not forgiven before, as far as the ledger has written it:
        it starts with its whole limit again, grants and what was carried over included. It never takes anything back.
        Raises RecordRefused (a StoreError) for an id that another adjustment has.
        """

        def work(connection: Connection) -> Balance:
            self._adjust(connection, adjustment)
            [balance] = balances_of(connection, [adjustment.account.key])
            return balance

        return await self._store.write(work)

    async def adjustments(self, account: Account) -> list[Adjustment]:
        """What was adjusted in this account, oldest first."""
        columns = budget_adjustments.c
        chosen = select(budget_adjustments).where(_of_account(budget_adjustments, _place(account.key)))
        async with self._store.reading() as connection:
            rows = await connection.execute(chosen.order_by(columns.time_ms, columns.id))
            return [
                Adjustment(
                    id=row.id,
                    account=account,
                    kind=AdjustmentKind(row.kind),
                    time_ms=row.time_ms,
                    actor=row.actor,
                    reason=row.reason,
                    amount_nano=row.amount_nano,
                )
                for row in rows
            ]

    async def spend(self, budget: str, start_ms: int, limit: int = 100, cursor: str | None = None) -> SpendPage:
        """The balances of a period's members, most spent first. Raises ValueError for a cursor that is none of ours."""
        spent = _spend.spent_nano + _spend.base_nano
        chosen = select(*_COLUMNS).where(_spend.budget == budget, _spend.start_ms == start_ms)
        if cursor is not None:
            amount, member = _place_of(cursor)
            chosen = chosen.where(or_(spent < amount, and_(spent == amount, _spend.member > member)))
        async with self._store.reading() as connection:
            rows = (await connection.execute(chosen.order_by(spent.desc(), _spend.member).limit(limit + 1))).all()
        page = tuple(_balance(*row) for row in rows[:limit])
        more = len(rows) > limit and page
        return SpendPage(page, f"{page[-1].spent_nano}.{rows[limit - 1].member}" if more else None)

    async def history(self, budget: str, member: str = "", limit: int = 12) -> list[Balance]:
        """The balances of a member's periods, newest first, those without any change left out."""
        async with self._store.reading() as connection:
            rows = await connection.execute(_periods_of(budget, member).limit(limit))
            return [_balance(*row) for row in rows]

    async def pause(self, budget_id: str, actor: str, reason: str, time_ms: int) -> bool:
        """Have the budget admit nothing; False where it is paused already, which stays as it is."""
        row = (budget_id, time_ms, actor, reason)
        return await self._store.write(lambda connection: insert(connection, budget_pauses, [row])) > 0

    async def resume(self, budget_id: str) -> bool:
        """End the pause; False where there is none."""
        ending = delete(budget_pauses).where(budget_pauses.c.budget_id == budget_id)
        return await self._store.write(lambda connection: connection.execute(ending).rowcount) > 0

    async def paused(self) -> dict[str, Pause]:
        """The budgets that are paused, by their id."""
        rows = await self._store.read(lambda connection: connection.execute(select(budget_pauses)).all())
        return {row.budget_id: Pause(row.since_ms, row.actor, row.reason) for row in rows}

    async def backfill(
        self, budget: str, coverage: Coverage, start_ms: int, end_ms: int, models: Sequence[str] = ()
    ) -> list[Balance]:
        """Count what was spent in a period before the budget existed; returns the balances that this changed.

        Sums the attempts of stored events that arrived from `start_ms` up to, not including, `end_ms`, that `coverage`
        matches, and that name no account of this budget: those are charged to it by the ledger. `models` are the names
        of the groups that `coverage.models` matches. The result replaces that of an earlier call, so after events of
        workers that did not know the budget yet have arrived, call it again.
        """
        budget = _clean(budget)
        before = _Before(self._store.is_sqlite, budget, start_ms)
        done = upserting(budget_backfills, is_sqlite=self._store.is_sqlite).values(
            budget=budget, start_ms=start_ms, done_ms=self._now_ms()
        )
        of_period = [budget_backfills.c.budget, budget_backfills.c.start_ms]
        # First, for its lock on the row: of two at once, the second sees what the first found, and more events.
        noted = done.on_conflict_do_update(index_elements=of_period, set_={"done_ms": done.excluded.done_ms})
        summed = before.statement(coverage, end_ms, models)

        def work(connection: Connection) -> list[Balance]:
            connection.execute(noted)
            return [_balance(*row) for row in connection.execute(summed)]

        return await self._store.write(work)

    async def backfilled(self, budget: str, start_ms: int) -> int | None:
        """When the period was last backfilled, in Unix milliseconds; None if never."""
        columns = budget_backfills.c
        chosen = select(columns.done_ms).where(columns.budget == budget, columns.start_ms == start_ms)
        return await self._store.read(lambda connection: connection.execute(chosen).scalar())

    def _now_ms(self) -> int:
        return int(self._store.clock() * 1000)

    def _adjust(self, connection: Connection, adjustment: Adjustment) -> None:
        place = _place(adjustment.account.key)
        insert(connection, budget_spend, [(*place, 0, 0, 0, 0)])
        # Locked until the end: of two resets at once, the second finds nothing more to forgive.
        of_account = _of_account(budget_spend, place)
        spent = select(_spend.spent_nano + _spend.base_nano).where(of_account).with_for_update()
        spent_nano = connection.execute(spent).scalar_one()
        amount = adjustment.amount_nano
        if adjustment.kind == AdjustmentKind.RESET:
            amount = max(0, spent_nano - self._forgiven(connection, place))
        fields = (adjustment.kind.value, amount, adjustment.reason, adjustment.actor, adjustment.time_ms)
        if insert(connection, budget_adjustments, [(adjustment.id, *place, *fields)]):
            moved = {"extra_nano": _spend.extra_nano + amount, "version": _spend.version + 1}
            connection.execute(budget_spend.update().where(of_account).values(moved))
            return
        columns = budget_adjustments.c
        same = select(columns.kind).where(columns.id == _clean(adjustment.id), _of_account(budget_adjustments, place))
        if connection.execute(same).scalar() != adjustment.kind:
            raise ValueError(f"another adjustment has the id {adjustment.id}; give this one an id of its own")

    def _forgiven(self, connection: Connection, place: _Place) -> int:
        columns = budget_adjustments.c
        resets = and_(_of_account(budget_adjustments, place), columns.kind == AdjustmentKind.RESET.value)
        return int(connection.execute(select(func.sum(columns.amount_nano)).where(resets)).scalar() or 0)


def charge(connection: Connection, charges: Mapping[str, int]) -> None:
    """Add nano-dollars to what accounts have spent, by their keys; a row is made with the first charge.

    Raises ValueError for a key that is none, or a sum that is no 64-bit integer.
    """
    sums: dict[_Place, int] = {}
    for key, amount in charges.items():
        if amount:
            place = _place(key)
            sums[place] = sums.get(place, 0) + amount
    if not sums:
        return
    if any(not -_INT64 <= amount < _INT64 for amount in sums.values()):
        raise ValueError("what is charged to an account is not a 64-bit integer")
    rows = [(*place, amount) for place, amount in sums.items()]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_CHARGE_POSTGRESQL, tuple(map(list, zip(*rows, strict=True))))
    else:
        connection.exec_driver_sql(_CHARGE_SQLITE, (orjson.dumps(rows).decode(),))


def balances_of(connection: Connection, keys: Iterable[str]) -> list[Balance]:
    """The balance of each of these accounts, in their order. Raises ValueError for a key that is none."""
    places = {key: _place(key) for key in keys}
    if not places:
        return []
    asked = list(dict.fromkeys(places.values()))
    if connection.dialect.name == "postgresql":
        rows = connection.exec_driver_sql(_READ_POSTGRESQL, tuple(map(list, zip(*asked, strict=True))))
    else:
        rows = connection.exec_driver_sql(_READ_SQLITE, (orjson.dumps(asked).decode(),))
    found = {(row[0], row[1], row[2]): row for row in rows}
    none = (0, 0, 0, 0)
    return [_named(key, *(found[place][3:] if place in found else none)) for key, place in places.items()]


# In the order of the key, so that two workers which charge the same accounts cannot wait for each other. As text, since
# they run with every batch: of any size, the statement is the same and takes one call of the driver.
_CHARGE_POSTGRESQL = (
    f"INSERT INTO {SCHEMA}.budget_spend AS kept "  # noqa: S608
    "(budget, start_ms, member, spent_nano, base_nano, extra_nano, version) "
    "SELECT budget, start_ms, member, amount, 0, 0, 1 "
    "FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[]) AS new (budget, start_ms, member, amount) "
    "ORDER BY budget, start_ms, member ON CONFLICT (budget, start_ms, member) "
    "DO UPDATE SET spent_nano = kept.spent_nano + excluded.spent_nano, version = kept.version + 1"
)
_CHARGE_SQLITE = (
    "INSERT INTO budget_spend AS kept (budget, start_ms, member, spent_nano, base_nano, extra_nano, version) "
    "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), "
    "json_extract(value, '$[3]'), 0, 0, 1 FROM json_each(?) WHERE true ON CONFLICT (budget, start_ms, member) "
    "DO UPDATE SET spent_nano = kept.spent_nano + excluded.spent_nano, version = kept.version + 1"
)
_READ = "SELECT kept.budget, kept.start_ms, kept.member, spent_nano, base_nano, extra_nano, version "
_READ_POSTGRESQL = (
    f"{_READ}FROM unnest($1::text[], $2::bigint[], $3::text[]) AS asked (budget, start_ms, member) "
    f"JOIN {SCHEMA}.budget_spend AS kept USING (budget, start_ms, member)"
)
_READ_SQLITE = (
    f"{_READ}FROM json_each(?) AS asked CROSS JOIN budget_spend AS kept "
    "ON kept.budget = json_extract(asked.value, '$[0]') AND kept.start_ms = json_extract(asked.value, '$[1]') "
    "AND kept.member = json_extract(asked.value, '$[2]')"
)


class _Before:
    """The SQL that sums what was spent before a budget existed, in one period of it."""

    def __init__(self, is_sqlite: bool, budget: str, start_ms: int) -> None:
        self._is_sqlite = is_sqlite
        self._budget = budget
        self._start_ms = start_ms

    def statement(self, coverage: Coverage, end_ms: int, models: Sequence[str]) -> Any:  # either dialect's Insert
        """Set base_nano of every member to what its events say, and return the rows that this changed."""
        found = self._found(coverage, end_ms, models).cte("found")
        kept = budget_spend.alias("kept")
        of_period = and_(kept.c.budget == self._budget, kept.c.start_ms == self._start_ms)
        # What an earlier backfill found and this one does not.
        gone = select(kept.c.member, literal(0, BigInteger)).where(
            of_period, kept.c.base_nano != 0, kept.c.member.not_in(select(found.c.member))
        )
        sums = union_all(select(found.c.member, found.c.amount), gone).subquery("sums")
        zero = literal(0, BigInteger)
        rows = (
            select(
                literal(self._budget, Text).label("budget"),
                literal(self._start_ms, BigInteger).label("start_ms"),
                sums.c.member,
                zero.label("spent_nano"),
                sums.c.amount,
                zero.label("extra_nano"),
                literal(1, BigInteger).label("version"),
            )
            .where(literal(1) == 1)  # SQLite takes the ON of ON CONFLICT for a join's where there is no WHERE
            .order_by(sums.c.member)  # the order in which the ledger locks them
        )
        names = [column.name for column in budget_spend.columns]
        new = upserting(budget_spend, is_sqlite=self._is_sqlite).from_select(names, rows)
        return new.on_conflict_do_update(
            index_elements=[_spend.budget, _spend.start_ms, _spend.member],
            set_={"base_nano": new.excluded.base_nano, "version": _spend.version + 1},
            where=_spend.base_nano != new.excluded.base_nano,
        ).returning(*_COLUMNS)

    def _found(self, coverage: Coverage, end_ms: int, models: Sequence[str]) -> Select[*tuple[Any, ...]]:
        """One row for each member that spent: `member`, `amount`."""
        events, attempts = usage_events.c, usage_attempts.c
        conditions: list[ColumnElement[bool]] = [events.time_ms >= self._start_ms, events.time_ms < end_ms]
        for column, names in (
            (events.user_id, coverage.users),
            (events.team_id, coverage.teams),
            (events.task_type, coverage.task_types),
        ):
            if names:
                conditions.append(column.in_(_cleaned(names)))
        if coverage.keys:
            keys = _cleaned(coverage.keys)
            conditions.append(or_(events.key_hash.in_(keys), events.key_alias.in_(keys)))
        if coverage.models:
            conditions.append(attempts.model.in_(_cleaned(models)))
        if coverage.groups:
            groups = self._elements(events.groups, "of_event")
            conditions.append(_any_of(groups, groups.c.value.in_(_cleaned(coverage.groups))))
        prefix = f"{self._budget}|"
        accounts = self._elements(attempts.accounts, "of_attempt")
        charged = _any_of(accounts, func.substr(accounts.c.value, 1, len(prefix)) == prefix)
        conditions.append(or_(attempts.accounts.is_(None), ~charged))
        amount = cast(func.sum(attempts.cost_nano), BigInteger)
        summed = select(usage_attempts).join_from(
            usage_events, usage_attempts, events.request_id == attempts.request_id
        )
        if coverage.per is None:
            shared = literal("", Text).label("member")
            return summed.with_only_columns(shared, amount.label("amount")).where(*conditions).having(amount != 0)
        member = {
            Per.USER: events.user_id,
            Per.TEAM: events.team_id,
            Per.KEY: events.key_hash,
            Per.MODEL: attempts.model,
        }[coverage.per]
        return (
            summed.with_only_columns(member.label("member"), amount.label("amount"))
            .where(*conditions, member != "")
            .group_by(member)
            .having(amount != 0)
        )

    def _elements(self, column: ColumnElement[Any], name: str) -> TableValuedAlias:
        """The texts of a column's JSON array, as `value`."""
        if self._is_sqlite:
            return func.json_each(column).table_valued("value", name=name)
        from sqlalchemy.dialects.postgresql import JSONB

        return func.jsonb_array_elements_text(cast(column, JSONB)).table_valued("value", name=name)


def _any_of(elements: TableValuedAlias, matches: ColumnElement[bool]) -> ColumnElement[bool]:
    return select(literal(1)).select_from(elements).where(matches).exists()


def _periods_of(budget: str, member: str) -> Select[*tuple[Any, ...]]:
    """The rows of one member, jumping from one period to the one before: it costs by period, not by member."""
    of_budget = _spend.budget == budget
    periods = select(func.max(_spend.start_ms).label("start_ms")).where(of_budget).cte("periods", recursive=True)
    before = select(func.max(_spend.start_ms)).where(of_budget, _spend.start_ms < periods.c.start_ms)
    periods = periods.union_all(select(before.scalar_subquery()).where(periods.c.start_ms.is_not(None)))
    same = and_(of_budget, _spend.start_ms == periods.c.start_ms, _spend.member == member)
    return select(*_COLUMNS).join_from(periods, budget_spend, same).order_by(_spend.start_ms.desc())


def _of_account(table: Any, place: _Place) -> ColumnElement[bool]:
    return and_(table.c.budget == place[0], table.c.start_ms == place[1], table.c.member == place[2])


def _place(key: str) -> _Place:
    account = Account.parse(_clean(key))
    return account.budget, account.start_ms, account.member


def _clean(value: str) -> str:
    return without_nul(value) or ""


def _cleaned(names: Iterable[str]) -> list[str]:
    return sorted(map(_clean, names))


def _balance(budget: str, start_ms: int, member: str, spent: int, base: int, extra: int, version: int) -> Balance:
    return _named(f"{budget}|{start_ms}|{member}", spent, base, extra, version)


def _named(key: str, spent: int, base: int, extra: int, version: int) -> Balance:
    return Balance(key, spent + base, extra, version)


def _place_of(cursor: str) -> tuple[int, str]:
    amount, dot, member = cursor.partition(".")
    if not dot or not amount.removeprefix("-").isdecimal() or len(amount) > 20:
        raise ValueError("the cursor is none that a page ended with")
    return int(amount), member
