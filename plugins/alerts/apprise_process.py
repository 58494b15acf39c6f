"""The process in which Apprise sends one message: told by stdin, it answers on stdout, both JSON.

It does nothing else, so that it can be watched: whatever any of Apprise's services connects to, the address is looked
at in the moment of the connection, which no name that resolves differently the second time gets past.
"""

import json
import logging
import os
import socket
import sys
from typing import Any

from plugins.alerts.destination import Reach

_STARTS_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class Refused(Exception):
    """What the service wanted to do is not allowed."""


class Watch:
    """Lets through connections to addresses that may be reached, and no other programs."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._allowed: set[str] = set()
        self.refused: str | None = None
        """The first address, or kind of thing, that was refused."""

    def begin(self) -> None:
        """Watch this process from now on; there is no way back."""
        resolve = socket.getaddrinfo

        def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
            found = resolve(host, *arguments, **more)
            name = host.decode() if isinstance(host, bytes) else host
            if isinstance(name, str) and self._reach.allows_host(name):
                self._allowed.update(str(entry[4][0]) for entry in found)
            return found

        socket.getaddrinfo = getaddrinfo
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _SENDS:
            address = arguments[1]
            if address is None:
                return  # a datagram on a connection that was seen
            where = str(address[0]) if isinstance(address, tuple) else "a local socket"
            if where not in self._allowed and not self._reach.allows("", where):
                self._refuse(where)
        elif event in _STARTS_PROGRAMS and not self._reach.private:
            self._refuse("another program")

    def _refuse(self, what: str) -> None:
        self.refused = self.refused or what
        raise Refused(what)


def send(order: dict[str, Any]) -> dict[str, Any]:
    """`result` is sent | failed | unusable | refused, with the last HTTP `status` and `retry_after` where there was
    an answer, and what was `refused`."""
    import apprise
    import requests

    logging.disable(logging.CRITICAL)  # Apprise's own words may repeat the URL
    answer: dict[str, Any] = {"result": "failed", "status": None, "retry_after": None, "refused": None}

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            return None

        def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:
            response = super().send(request, **more)
            answer["status"] = response.status_code
            answer["retry_after"] = response.headers.get("retry-after")
            return response

    requests.Session = requests.sessions.Session = Session  # type: ignore[misc]
    asset = apprise.AppriseAsset(secure_logging=True, storage_mode=apprise.PersistentStoreMode.MEMORY, plugin_paths=[])
    service = apprise.Apprise(asset=asset)
    if not service.add(order["url"]):
        return {**answer, "result": "unusable"}
    watch = Watch(Reach.of(bool(order["private"]), order["hosts"]))
    watch.begin()
    try:
        taken = service.notify(body=order["body"], title=order["title"], notify_type=order["kind"])
    except Exception:  # services raise what they like
        taken = False
    if watch.refused is not None:
        return {**answer, "result": "refused", "refused": watch.refused}
    return {**answer, "result": "sent" if taken else "failed"}


def main() -> None:
    order = json.loads(sys.stdin.read())
    out = os.dup(sys.stdout.fileno())
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - what services print is not ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        answer = send(order)
    os.write(out, json.dumps(answer).encode())
    os._exit(0)  # threads of a service must not keep it


if __name__ == "__main__":
    main()
