"""The table of every LiteLLM route: which cost money and are enforced, which cost it later, which cost none, and
which are refused.

The table is `routes.txt`, a line a route: handling, methods, template, and the endpoint's name for those that are
enforced or cost money later. A route that stands nowhere in it, such as one that a newer LiteLLM brings, counts as
refused until someone classifies it.
"""

import re
from enum import StrEnum
from importlib.resources import files
from typing import NamedTuple


class Handling(StrEnum):
    ENFORCED = "enforced"
    """Models cost money here: identity, limits, permissions and the books apply."""
    FREE = "free"
    """No model is called, or only by an administrator checking the proxy."""
    REFUSED = "refused"
    """Spends in a way that cannot be bounded: closed while tiers or budgets are configured."""
    LATER = "later"
    """Files and batches, which spend when their request is over: `plugins/batches` while tiers or budgets are
    configured, else LiteLLM's own affair."""


class Route(NamedTuple):
    handling: Handling
    endpoint: str = ""
    listed: bool = True


UNLISTED = Route(Handling.REFUSED, listed=False)


class RouteTable:
    """Finds a route by method and path: a look-up for plain paths, a few patterns of the same beginning for the
    others."""

    def __init__(self, lines: list[str]) -> None:
        self._plain: dict[tuple[str, str], Route] = {}
        self._templates: dict[str, list[tuple[str, frozenset[str], Route]]] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}
        for line in lines:
            handling, methods, template, *endpoint = line.split()
            route = Route(Handling(handling), endpoint[0] if endpoint else "")
            verbs = frozenset(methods.split(","))
            if "{" in template or "MOUNT" in verbs:
                self._templates.setdefault(_beginning(template), []).append((template, verbs, route))
            else:
                self._plain.update({(verb, template): route for verb in verbs})

        for templates in self._templates.values():
            # The more a template fixes before its first parameter, the more it means just this path.
            templates.sort(key=lambda entry: entry[0].find("{") if "{" in entry[0] else len(entry[0]), reverse=True)

    def of(self, method: str, path: str) -> Route:
        """The route that serves `method path`; method is WEBSOCKET for a websocket."""
        route = self._plain.get((method, path))
        if route is not None:
            return route
        if method == "HEAD":
            return self.of("GET", path)
        for beginning in (_beginning(path), ""):
            for template, verbs, route in self._templates.get(beginning, ()):
                if (method in verbs or "MOUNT" in verbs) and self._pattern(template).fullmatch(path):
                    return route
        return UNLISTED

    def _pattern(self, template: str) -> re.Pattern[str]:
        pattern = self._patterns.get(template)
        if pattern is None:
            pattern = self._patterns[template] = re.compile(_regex(template))
        return pattern


def _beginning(path: str) -> str:
    first = path[1:].partition("/")[0]
    return "" if "{" in first else first


def _regex(template: str) -> str:
    parts = re.split(r"({[^}]+})", template)
    return "".join(
        ("(.+)" if part.endswith(":path}") else "([^/]+)") if part.startswith("{") else re.escape(part)
        for part in parts
    ) + ("(/.*)?" if "{" not in template else "")


def _load() -> RouteTable:
    text = files("plugins").joinpath("routes.txt").read_text(encoding="utf-8")
    return RouteTable([line for line in text.splitlines() if line and not line.startswith("#")])


ROUTES = _load()
