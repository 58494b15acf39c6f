"""Masks the values of secrets in log lines, by whatever logger they come.

LiteLLM's debug log writes out the request it sends, headers included, and masks what has the shape of a key it knows
(`sk-…`, `Authorization`). A secret in another header, or of another shape, stands there in plain text. What we know is
the values, so they are what is looked for.
"""

import logging
import threading
from collections.abc import Iterable
from typing import Any

from secrets_manager.value import MASK

_SHORTEST = 8
"""Characters; masking a shorter text would garble ordinary words, and hide nothing that cannot be guessed."""
_MOST = 4096
_FORMATTER = logging.Formatter()


class Redaction:
    """The values to mask. `install` it once a process; everything may be called from any thread.

    A rotated value stays known, since requests with it may be under way, until `_MOST` newer ones have come or `clear`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: tuple[str, ...] = ()
        self._installed = False

    def learn(self, values: Iterable[str]) -> None:
        """Mask these from now on."""
        with self._lock:
            fresh = {value for value in values if len(value) >= _SHORTEST}.difference(self._values)
            # The oldest are let go of.
            kept = (*self._values[-(_MOST - len(fresh)) :], *fresh) if len(fresh) < _MOST else tuple(fresh)
            self._values = kept

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values = ()

    def masked(self, text: str) -> str:
        """The text with every value in it masked; the text itself where there is none."""
        found = [value for value in self._values if value in text]
        # The longest first: one may hold another, and its rest would stay readable.
        for value in sorted(found, key=len, reverse=True):
            text = text.replace(value, MASK)
        return text

    def install(self) -> None:
        """Mask every record that is made from now on.

        Where records are made, and not in a filter of handlers: LiteLLM and uvicorn replace theirs while they start.
        """
        with self._lock:
            if self._installed:
                return
            self._installed = True
        make = logging.getLogRecordFactory()

        # Any: this is called as LogRecord is, whatever a Python version passes to it.
        def make_masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = make(*args, **kwargs)
            if self._values:
                self._mask(record)
            return record

        logging.setLogRecordFactory(make_masked)

    def _mask(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            masked = self.masked(text)
            if masked is not text:
                record.msg, record.args = masked, None
            if record.exc_info:
                trace = _FORMATTER.formatException(record.exc_info)
                masked = self.masked(trace)
                if masked is not trace:
                    record.exc_text = masked  # what formatters take in place of the exception
                    record.exc_info = None
        except Exception:  # a wrong format is logging's own to report
            return


REDACTION = Redaction()
"""This process's."""
