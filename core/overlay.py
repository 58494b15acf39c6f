"""The admin overlay: what administrators changed at run time, put over config.yaml before that is checked.

A section of the overlay holds whole entries by their id; an entry that is None was deleted. Entries are JSON and never
hold a secret. They are checked together with the file, by the same code.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

Document: TypeAlias = Mapping[str, Any]
"""A configuration as LiteLLM sees it; Any because it is YAML."""
Loc: TypeAlias = tuple[str | int, ...]

_OURS = "orchestration"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a configuration the entries of a section stand: a mapping by id, or a list whose items have their id in
    the field `id_at`."""

    path: tuple[str, ...]
    id_at: tuple[str, ...] | None = None

    def id_of(self, item: object) -> str | None:
        """The id of an item of the list; None for one that has none."""
        for name in self.id_at or ():
            item = cast("Mapping[str, object]", item).get(name) if isinstance(item, Mapping) else None
        return None if item is None or isinstance(item, Mapping | list) else str(item)


PLACES: Final[Mapping[str, Place]] = {
    "budgets": Place((_OURS, "budgets"), ("budget_id",)),
    "tiers": Place((_OURS, "tiers")),
    "groups": Place((_OURS, "groups")),
    "policies": Place((_OURS, "routing", "policies")),
    "rules": Place((_OURS, "routing", "rules"), ("id",)),
    "experiments": Place((_OURS, "routing", "experiments"), ("id",)),
    "models": Place(("model_list",), ("model_info", "id")),
}
"""The sections whose entries stand in a configuration."""

SETTINGS = "settings"
"""Single fields outside of `PLACES`, by their dotted path below `orchestration:`."""
DISABLED = "disabled"
"""Deployments that take no requests, by `model_info.id`; they stay in the configuration."""


@dataclass(frozen=True)
class Overlay:
    """One version of the overlay; never altered. Version 0 is the empty one that nobody has written."""

    version: int = 0
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def has(self, section: str, name: str) -> bool:
        """Whether it says something about an entry, if only that it is deleted."""
        return name in self.entries.get(section, {})

    def with_entry(self, section: str, name: str, value: Any) -> "Overlay":
        """The next version, with this entry; None: without it, whatever the file says. Any: JSON."""
        return self._next(section, {**self.entries.get(section, {}), name: value})

    def without(self, section: str, name: str) -> "Overlay":
        """The next version, which says nothing about an entry: what the file says holds."""
        return self._next(section, {key: one for key, one in self.entries.get(section, {}).items() if key != name})

    def _next(self, section: str, content: Mapping[str, Any]) -> "Overlay":
        entries = {**self.entries, section: content}
        return Overlay(self.version + 1, {name: entries[name] for name in entries if entries[name]})

    @property
    def disabled(self) -> frozenset[str]:
        """The ids of the deployments that take no requests."""
        return frozenset(self.entries.get(DISABLED, {}))

    @property
    def text(self) -> str:
        """The entries as JSON. Their order is kept: it is that of the lists they stand in."""
        return json.dumps(self.entries, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def parse(cls, version: int, text: str) -> "Overlay":
        """The inverse of `text`. Raises ValueError for what is none."""
        found: object = json.loads(text)
        if not isinstance(found, dict) or not all(
            isinstance(section, dict) for section in cast("dict[str, object]", found).values()
        ):
            raise ValueError("an overlay is a mapping of sections")
        return cls(version, cast("dict[str, dict[str, Any]]", found))

    def over(self, digest: str) -> str:
        """The digest of a configuration, `digest`, with this over it; an empty overlay changes nothing."""
        return hashlib.sha256(f"{digest}\n{self.text}".encode()).hexdigest() if self.entries else digest


class Merged:
    """A configuration with an overlay over it. Neither is altered; what is not overlaid is shared with the file."""

    def __init__(self, document: Document, overlay: Overlay) -> None:
        self._base = document
        self._overlay = overlay
        self.document: dict[str, Any] = dict(document)
        for section, place in PLACES.items():
            if entries := overlay.entries.get(section):
                self._put(place, entries)
        for name, value in overlay.entries.get(SETTINGS, {}).items():
            put_setting(self._ours(), name, value)

    def _ours(self) -> dict[str, Any]:
        """Our section, copied as far as settings are put into it."""
        section: object = self.document.get(_OURS)
        if section is None or isinstance(section, Mapping):
            self.document[_OURS] = _copied(cast("Document", section or {}))
        return cast("dict[str, Any]", self.document.get(_OURS)) if isinstance(self.document.get(_OURS), dict) else {}

    def _put(self, place: Place, entries: Mapping[str, Any]) -> None:
        holder = self.document
        for name in place.path[:-1]:
            inner: object = holder.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                return  # refused as it is
            holder[name] = dict(cast("Document", inner or {}))
            holder = holder[name]
        there: object = holder.get(place.path[-1])
        if place.id_at is None and (there is None or isinstance(there, Mapping)):
            holder[place.path[-1]] = _over_mapping(cast("Document", there or {}), entries)
        elif place.id_at is not None and (there is None or isinstance(there, list)):
            holder[place.path[-1]] = _over_list(place, cast("list[Any]", there or []), entries)

    def origin(self, loc: Loc) -> tuple[str | None, Loc]:
        """Where something of `document` comes from: the overlay's entry (`budgets/team_ai`) and the place in that, or
        None and the place in the file."""
        for section, place in PLACES.items():
            depth = len(place.path)
            if loc[:depth] != place.path or len(loc) <= depth:
                continue
            part, rest = loc[depth], loc[depth + 1 :]
            if place.id_at is None:
                return (f"{section}/{part}", rest) if self._overlay.has(section, str(part)) else (None, loc)
            items = _list_at(self.document, place.path)
            if not isinstance(part, int) or part >= len(items):
                return None, loc
            name = place.id_of(items[part])
            for index, item in enumerate(_list_at(self._base, place.path)):
                if item is items[part]:
                    return None, (*place.path, index, *rest)
            return f"{section}/{name}", rest
        for name in self._overlay.entries.get(SETTINGS, {}):
            path = (_OURS, *name.split("."))
            if loc[: len(path)] == path:
                return f"{SETTINGS}/{name}", loc[len(path) :]
        return None, loc


def merged(document: Document, overlay: Overlay) -> dict[str, Any]:
    """The configuration with the overlay over it: entries of the same id are replaced where they stand, others come
    behind, deleted ones are gone. What is not of the shape it must have is left as it is, for the check to refuse."""
    return Merged(document, overlay).document


def put_setting(section: dict[str, Any], name: str, value: Any) -> Loc | None:
    """Put one field (`limits.max_body_bytes`) into the section `orchestration:`, None: take it out. Its place there, or
    None where something stands in the way. The mappings on the way are altered; Any: JSON."""
    path = name.split(".")
    for part in path[:-1]:
        if section.get(part) is None:
            section[part] = {}
        if not isinstance(section[part], dict):
            return None
        section = section[part]
    if value is None:
        section.pop(path[-1], None)
    else:
        section[path[-1]] = value
    return tuple(path)


def entries_of(document: Document, section: str) -> dict[str, Any]:
    """The entries of a section of `PLACES` in a configuration, by id, in their order; those without an id left out."""
    place = PLACES[section]
    if place.id_at is None:
        found = _at(document, place.path)
        return {str(name): item for name, item in cast("Document", found).items()} if isinstance(found, Mapping) else {}
    return {name: item for item in _list_at(document, place.path) if (name := place.id_of(item)) is not None}


def _over_mapping(there: Document, entries: Mapping[str, Any]) -> dict[str, Any]:
    found = {**there, **entries}
    return {name: item for name, item in found.items() if name not in entries or item is not None}


def _over_list(place: Place, there: Sequence[Any], entries: Mapping[str, Any]) -> list[Any]:
    left = dict(entries)
    result: list[Any] = []
    for item in there:
        name = place.id_of(item)
        if name is None or name not in entries:
            result.append(item)
        elif (over := left.pop(name, None)) is not None:
            result.append(over)
    return [*result, *(item for item in left.values() if item is not None)]


def _copied(mapping: Document) -> dict[str, Any]:
    """A copy whose mappings can be altered; lists and values are shared. What contains itself stays so."""
    done: dict[int, dict[str, Any]] = {}

    def copy(one: Document) -> dict[str, Any]:
        if id(one) not in done:
            fresh = done[id(one)] = dict[str, Any]()
            for name, item in one.items():
                fresh[name] = copy(cast("Document", item)) if isinstance(item, Mapping) else item
        return done[id(one)]

    return copy(mapping)


def _at(document: object, path: tuple[str, ...]) -> object:
    for name in path:
        document = cast("Document", document).get(name) if isinstance(document, Mapping) else None
    return document


def _list_at(document: Document, path: tuple[str, ...]) -> list[Any]:
    found = _at(document, path)
    return cast("list[Any]", found) if isinstance(found, list) else []
