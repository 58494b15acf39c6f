"""What an error of LiteLLM's says about the call that it ended."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from core.retries import retry_after_seconds
from core.usage import UsageState


def status_of(exception: Exception) -> int:
    """The status that a provider answered with, 0 where it gave none."""
    status = getattr(exception, "status_code", None)
    return status if isinstance(status, int) else 0


def retry_after_of(exception: BaseException | None) -> float | None:
    """The seconds that a provider asks for, None where it does not."""
    headers: Any = getattr(exception, "litellm_response_headers", None)
    if headers is None:
        headers = getattr(getattr(exception, "response", None), "headers", None)
    if not isinstance(headers, Mapping | httpx.Headers):
        return None
    text = headers.get("retry-after")
    return None if text is None else retry_after_seconds(str(text), time.time())


def name_of(exception: Exception) -> str:
    """The class of an error, or for LiteLLM's own refusals, which are all of one class, what they call themselves."""
    name = type(exception).__name__
    return str(getattr(exception, "type", name)) if name == "ProxyException" else name


def from_provider(exception: Exception) -> bool:
    """Whether it is about a call to a model; LiteLLM's errors of these are those of OpenAI's client."""
    return any(base.__module__.startswith("openai") for base in type(exception).__mro__)


def usage_after(exception: Exception, status: int) -> str:
    """Whether a failed attempt can have been billed.

    A provider that answers with an error status bills nothing, and neither does one that was never reached. Whatever
    else went wrong after the request was sent, it may have run to its end: a timeout, a connection that broke off, an
    answer nobody could read.
    """
    if 400 <= status < 500 and status != _TIMED_OUT:
        return UsageState.NONE
    if never_sent(exception):
        return UsageState.NONE
    for cause in _causes(exception):
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return UsageState.NONE if _never_connected(cause) else UsageState.UNKNOWN
        if isinstance(cause, httpx.HTTPStatusError) or (
            type(cause).__module__.startswith("openai") and hasattr(cause, "status_code")
        ):
            return UsageState.NONE
    return UsageState.UNKNOWN


def never_sent(exception: Exception) -> bool:
    """Whether the connection was found closed before all of the request was written.

    A provider closes connections that nobody uses, some servers after five seconds, and whoever takes up one of these
    at that moment learns of it while he writes: of a burst of requests many do. It says nothing about how the provider
    is.
    """
    return any(_is_aiohttps(cause) and str(cause) == _CLOSED_BEFORE for cause in _causes(exception))


_TIMED_OUT = 408
_CLOSED_BEFORE = "Cannot write to closing transport"
"""What aiohttp says where it cannot write. An error of the same class says that a connection was lost afterwards."""


def _never_connected(error: Exception) -> bool:
    """LiteLLM's aiohttp transport calls every error of the socket a failure to connect; what it came from tells them
    apart."""
    causes = [cause for cause in _causes(error) if _is_aiohttps(cause)]
    names = {base.__name__ for cause in causes for base in type(cause).__mro__}
    return not causes or not names.isdisjoint({"ClientConnectorError", "ConnectionTimeoutError"})


def _is_aiohttps(error: BaseException) -> bool:
    return type(error).__module__.startswith("aiohttp")


def _causes(exception: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exception is not None and id(exception) not in seen:
        seen.add(id(exception))
        yield exception
        exception = exception.__cause__ or exception.__context__
