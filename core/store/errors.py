"""Which database errors are about the database, and which about what we tried to write."""

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from core.errors import StoreError

# SQLSTATE classes of PostgreSQL that blame the values: data exception, integrity constraint violation.
_ABOUT_VALUES = ("22", "23")


class RecordRefused(StoreError):
    """The database is well, but cannot hold a value of this batch. Trying again will not help."""


def blames_the_values(error: BaseException) -> bool:
    """Whether writing the same again must fail again, however well the database is."""
    if isinstance(error, (OverflowError, ValueError, TypeError)):
        return True
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_ABOUT_VALUES)
    # asyncpg refuses a value before it sends it, with an error that is also a ValueError.
    refused_by_driver = isinstance(error.orig.__cause__, (ValueError, OverflowError, TypeError))
    return refused_by_driver or isinstance(error, (DataError, IntegrityError))


def plain_reason(error: BaseException) -> str:
    """The driver's own words on one line: no SQL, no parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(cause).strip().splitlines()
    return f"{text[0] if text else ''}".removeprefix("<class 'asyncpg.exceptions.").strip() or type(cause).__name__
