"""How our lines look in the proxy's log."""

import logging
from contextvars import ContextVar

from core.asgi import Message, Send

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


_unlogged: ContextVar[bool] = ContextVar("orchestration_unlogged", default=False)


def _logged(_: logging.LogRecord) -> bool:
    return not _unlogged.get()


def unlogged(send: Send) -> Send:
    """An answer's sending side that leaves no line in the access log."""

    async def sent(message: Message) -> None:
        # Only while the line is written: what a server does at the end of an answer may go on with the context it has.
        token = _unlogged.set(message["type"] == "http.response.start")
        try:
            await send(message)
        finally:
            _unlogged.reset(token)

    return sent


def configure_logging(level: str) -> None:
    """Give the `orchestration` loggers a handler of their own, unless the host application already has one for them."""
    logger = logging.getLogger("orchestration")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
    leave_out_unlogged(logging.getLogger("uvicorn.access"))


def leave_out_unlogged(access: logging.Logger) -> None:
    """Have this logger write nothing of answers that are `unlogged`."""
    if _logged not in access.filters:
        access.filters.insert(0, _logged)  # LiteLLM's filters look for secrets in each line
