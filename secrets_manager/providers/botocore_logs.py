"""Keeps secrets out of what botocore logs about our calls.

At DEBUG botocore writes down whole answers, which hold secrets and the credentials of roles, and signed requests with
their security tokens. While `values_left_out` is entered, the lines of this thread that could carry them keep their
wording and lose their values; what others in this process ask of AWS is logged as ever.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_CARRY_VALUES = (
    "botocore.parsers",  # headers and bodies of answers
    "botocore.endpoint",  # requests, signed ones too
    "botocore.auth",  # what is signed: it has the security token in it
    "botocore.utils",  # answers of the instance's metadata service
)
# Their values are harmless (names of files, kinds of credentials), the exceptions they log may quote an answer.
_CARRY_EXCEPTIONS = ("botocore.credentials", "botocore.tokens", "botocore.httpsession")

_ours: ContextVar[bool] = ContextVar("a call to AWS of ours", default=False)


class _LeaveOut(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not _ours.get():
            return True
        record.exc_info = record.exc_text = None
        if record.name in _CARRY_VALUES:
            if not record.args:
                # It may be a fixed sentence, or one that was put together with its values.
                return False
            record.msg, record.args = f"{record.msg} [values left out: they may hold secrets]", None
        return True


_LEAVE_OUT = _LeaveOut()


@contextmanager
def values_left_out() -> Generator[None]:
    """Calls to botocore in here log no values."""
    for name in (*_CARRY_VALUES, *_CARRY_EXCEPTIONS):
        logging.getLogger(name).addFilter(_LEAVE_OUT)  # once: a logger takes the same filter only one time
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
