"""Many rows at once, in the way each database takes them fastest; a row whose key exists is left as it is."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Integer, Table, Text

_INT64 = 1 << 63
# Rows of one SQLite statement: a few sizes, so that each is compiled once. One by one (executemany) the lock of the
# interpreter would change hands for every row, for which this thread waits up to 5 ms where the event loop is busy, and
# then the event loop for this thread.
_ROWS = (200, 25, 5, 1)


def insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows (values in the order of the table's columns); returns how many were new.

    NUL characters, which PostgreSQL cannot keep in a text, become U+FFFD in both databases. Raises ValueError for a
    number that is no 64-bit integer.
    """
    if not rows:
        return 0
    columns = _clean(table, rows)
    if connection.dialect.name == "postgresql":
        return connection.exec_driver_sql(_from_arrays(table), tuple(columns)).rowcount
    inserted, start = 0, 0
    values = list(zip(*columns, strict=True))
    for size in _ROWS:
        while len(values) - start >= size:
            flat = tuple(chain.from_iterable(values[start : start + size]))
            inserted += connection.exec_driver_sql(_from_values(table, size), flat).rowcount
            start += size
    return inserted


def upserting(table: Table, *, is_sqlite: bool) -> Any:  # the Insert of either dialect
    """An INSERT that can say what is to be done ON CONFLICT. A dialect takes two megabytes: only the one in use is
    loaded."""
    if is_sqlite:
        from sqlalchemy.dialects import sqlite as dialect
    else:
        from sqlalchemy.dialects import postgresql as dialect
    return dialect.insert(table)


def _clean(table: Table, rows: Sequence[tuple[Any, ...]]) -> list[Sequence[Any]]:
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for number, column in enumerate(table.columns):
        values = columns[number]
        if isinstance(column.type, Text):
            # JSON (groups) carries a NUL as an escape, which PostgreSQL's JSON functions refuse as well.
            joined = "\n".join(filter(None, values))
            if "\0" in joined or "\\u0000" in joined:
                columns[number] = [without_nul(value) for value in values]
        elif not isinstance(column.type, Boolean):
            _check_integers(column.name, values)
    return columns


def without_nul(value: str | None) -> str | None:
    """The text as both databases can keep it."""
    return value and value.replace("\0", "\ufffd").replace("\\u0000", "\ufffd")


def _check_integers(name: str, values: Iterable[int | None]) -> None:
    # SQLite would store 1e30 in an integer column without a word. A sum of integers is one; a float spoils it.
    present = [value for value in values if value is not None]
    if not present:
        return
    if type(sum(present)) is not int or max(present) >= _INT64 or min(present) < -_INT64:
        raise ValueError(f"{name} is not a 64-bit integer")


@cache
def _from_values(table: Table, size: int) -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    places = f"({', '.join('?' for _ in table.columns)})"
    return (
        f"INSERT INTO {table.name} ({names}) VALUES {', '.join([places] * size)} "  # noqa: S608
        "ON CONFLICT DO NOTHING"
    )


@cache
def _from_arrays(table: Table) -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    arrays = ", ".join(f"${number}::{_array(column.type)}" for number, column in enumerate(table.columns, 1))
    # In the order of the key, so that two workers with the same events cannot wait for each other.
    key = ", ".join(f'"{column.name}"' for column in table.primary_key)
    return (
        f"INSERT INTO {table.fullname} ({names}) SELECT * FROM unnest({arrays}) AS new ({names}) "  # noqa: S608
        f"ORDER BY {key} ON CONFLICT DO NOTHING"
    )


def _array(kind: object) -> str:
    for sql_type, name in ((BigInteger, "bigint[]"), (Integer, "integer[]"), (Boolean, "boolean[]"), (Text, "text[]")):
        if isinstance(kind, sql_type):
            return name
    raise TypeError(f"no array for {kind!r}")
