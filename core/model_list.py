"""What changed between two versions of a proxy's `model_list`, and what of it a live router can take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

Entry: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelListChange:
    """`put` are entries to add or replace, `drop` ids to remove; `anonymous` says that entries without `model_info.id`
    changed, which a live router cannot tell apart."""

    put: tuple[Entry, ...] = ()
    drop: tuple[str, ...] = ()
    anonymous: bool = False


def compare(before: Sequence[Entry], after: Sequence[Entry]) -> ModelListChange:
    """The change that leads from `before` to `after`."""
    old, new = by_id(before), by_id(after)
    return ModelListChange(
        put=tuple(entry for name, entry in new.items() if old.get(name) != entry),
        drop=tuple(name for name in old if name not in new),
        anonymous=_anonymous(before) != _anonymous(after),
    )


def group_names(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(entry.get("model_name")) for entry in entries))


def _id(entry: Entry) -> str | None:
    info = cast("Entry", entry.get("model_info") or {})
    return info.get("id")


def by_id(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The entries that can be told apart."""
    return {name: entry for entry in entries if (name := _id(entry)) is not None}


def _anonymous(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if _id(entry) is None]
