"""What LiteLLM writes at its debug level, without the values that we put into its calls.

It masks the headers and arguments whose names it knows; a secret in a header of any other name it would print.
"""

import logging
from collections.abc import Callable, Iterable

from secrets_manager.value import MASK

_LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
_SHORTEST = 6
"""Characters; a shorter value would blot out half a log, and is no secret."""


class Redaction(logging.Filter):
    """Puts a mask in place of every value of `values` in what passes by."""

    def __init__(self, values: Callable[[], Iterable[str]]) -> None:
        super().__init__()
        self._values = values

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
            masked = message
            # The longest first, so that none leaves the rest of another.
            for value in sorted(self._values(), key=len, reverse=True):
                if len(value) >= _SHORTEST and value in masked:
                    masked = masked.replace(value, MASK)
            if masked is not message:
                record.msg, record.args = masked, ()
        except Exception:  # logging lets what a filter raises out into the call that is logged
            record.msg, record.args = "a record could not be searched for secrets and was left out", ()
        return True


def redact_litellms_logs(values: Callable[[], Iterable[str]]) -> None:
    """Watch LiteLLM's loggers from now on."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(Redaction(values))
