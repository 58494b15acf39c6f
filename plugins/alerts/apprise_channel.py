"""A channel by an Apprise URL: Slack, Teams, e-mail, PagerDuty and over a hundred others."""

import json
import os
import re
from collections.abc import Callable, Mapping
from time import time
from typing import Any

from core import child
from core.alerts import Severity
from plugins.alerts.destination import Reach
from plugins.alerts.message import Message, NotSent, refusal, seconds_of

TIMEOUT = 45.0
_KINDS: Mapping[Severity, str] = {"info": "info", "warning": "warning", "critical": "failure"}
_PASSED_ON = ("PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PYTHONPATH", "VIRTUAL_ENV")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_SCHEME = re.compile(r"([a-z0-9+.-]{1,32})://", re.I)


class AppriseChannel:
    """Sends by Apprise, each message in a process of its own: it can be ended when it takes too long, what it connects
    to is watched, and the URL is given to it by a pipe."""

    def __init__(self, url: str, reach: Reach, *, clock: Callable[[], float] = time, timeout: float = TIMEOUT) -> None:
        """Raises NotSent for what is no URL."""
        scheme = _SCHEME.match(url)
        if scheme is None:
            raise NotSent("the channel's value is not an Apprise URL (slack://, mailto://, ...)", retryable=False)
        self.scheme = scheme[1].lower()
        self._url = url
        self._reach = reach
        self._clock = clock
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"AppriseChannel({self.scheme})"

    async def send(self, message: Message) -> None:
        """Raises NotSent."""
        order: dict[str, Any] = {
            "url": self._url,
            "title": message.title,
            "body": message.body,
            "kind": _KINDS[message.severity],
            "private": self._reach.private,
            "hosts": sorted(self._reach.hosts),
        }
        answer = await self._run(json.dumps(order).encode())
        match answer.get("result"):
            case "sent":
                return
            case "unusable":
                raise NotSent(f"Apprise cannot use the channel's {self.scheme}:// URL", retryable=False)
            case "refused":
                message_ = (
                    f"{self.scheme}:// leads to {answer['refused']}, which is not a public address; "
                    "name the host in alerts.allowed_hosts if that is meant"
                )
                raise NotSent(message_, retryable=False)
            case _ if isinstance(answer.get("status"), int) and not 200 <= answer["status"] < 300:
                wait = seconds_of(answer["retry_after"], self._clock())
                raise refusal(f"the service of {self.scheme}://", answer["status"], wait)
            case _:
                raise NotSent(f"the service of {self.scheme}:// did not take it, or cannot be reached")

    async def _run(self, order: bytes) -> dict[str, Any]:
        try:
            answered = await child.ask(
                "plugins.alerts.apprise_process", order, environment=self._environment(), within=self._timeout
            )
        except TimeoutError:
            raise NotSent(f"the service of {self.scheme}:// did not answer within {self._timeout:g} s") from None
        try:
            return json.loads(answered.printed)
        except ValueError:
            raise NotSent(f"Apprise failed with {self.scheme}://; is the package apprise installed?") from None

    def _environment(self) -> dict[str, str]:
        """What the process may know of ours: no credentials. A proxy would hide where a connection leads."""
        names = (*_PASSED_ON, *(_PROXIES + tuple(name.lower() for name in _PROXIES) if self._reach.private else ()))
        return child.passed_on(*names) | {"HOME": os.devnull}
