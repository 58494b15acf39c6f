"""Keeps what the Azure SDK logs about our calls out of the logs.

At DEBUG it writes down exceptions that quote whole answers, and so may quote tokens; at INFO twenty lines for each
request. What matters of a call the resolver tells. Other uses of the Azure SDK in this process are logged as ever.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("azure.", "msal")

_ours: ContextVar[bool] = ContextVar("a call to Azure of ours", default=False)


class _LeaveOut(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _ours.get()


_LEAVE_OUT = _LeaveOut()


def watch_loggers() -> None:
    """Watch the loggers there are; called again when the SDK may have imported more of itself.

    A logger's filters do not see what its children log, so each has to be watched.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(_LOGGERS):
            logging.getLogger(name).addFilter(_LEAVE_OUT)  # a logger takes the same filter only once


@contextmanager
def left_out() -> Generator[None]:
    """What this thread does with the Azure SDK in here is not logged."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
