"""Which buckets of an experiment's units are whose, and how they change hands when the weights change."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Generic, TypeVar, cast

from pydantic import JsonValue

from core.errors import ConfigError
from core.settings.models.experiments import Allocation, Experiment
from custom_router.experiments.hashing import BUCKETS

Ranges = tuple[tuple[str, tuple[tuple[int, int], ...]], ...]
"""Variants with their buckets, each range from its first bucket to the one after its last. Together they are all the
buckets from 0 to `BUCKETS`, each of them once; a variant may have none."""


Owner = TypeVar("Owner")


def bucket_counts(weights: Mapping[str, float]) -> dict[str, int]:
    """How many buckets each variant gets: its share of the weights, the odd ones where GrowthBook has them.

    A variant with any weight gets at least one. Raises `ConfigError` where no weight is above 0.
    """
    # Weights count as they are written, a tenth for 0.1: GrowthBook's sums in floating point can be a bucket off.
    exact = {variant: Fraction(repr(weight)) for variant, weight in weights.items()}
    total = sum(exact.values())
    if total <= 0 or len([weight for weight in exact.values() if weight]) > BUCKETS:
        raise ConfigError(f"Variants need weights above 0 to share {BUCKETS} buckets; the weights are {dict(weights)}.")
    counts: dict[str, int] = {}
    reached, cumulative = 0, Fraction(0)
    for variant, weight in exact.items():
        cumulative += weight
        end = ceil(cumulative * BUCKETS / total)
        counts[variant] = end - reached
        reached = end
    for variant, weight in exact.items():
        if weight and not counts[variant]:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[variant] = 1
    return counts


def first_ranges(weights: Mapping[str, float]) -> Ranges:
    """The ranges of an experiment that starts: one a variant, in their order, as GrowthBook has them."""
    found: list[tuple[str, tuple[tuple[int, int], ...]]] = []
    start = 0
    for variant, count in bucket_counts(weights).items():
        found.append((variant, ((start, start + count),) if count else ()))
        start += count
    return tuple(found)


def moved(old: Ranges, weights: Mapping[str, float]) -> Ranges:
    """The ranges with the counts of `weights` that leave the most buckets where they are in `old`.

    A variant that shrinks or goes gives buckets away, one that grows or is new takes them, and no other bucket changes
    hands: what moves is the sum of the growths, and nothing moves less. Deterministic. Ranges are taken next to those
    that the receiver has, where it can be, so that they stay few.
    """
    wanted = bucket_counts(weights)
    pieces = [_Piece(start, end, variant) for variant, ranges in old for start, end in ranges]
    pieces.sort(key=lambda piece: piece.start)
    held = _held(pieces)
    spare = {variant: count - wanted.get(variant, 0) for variant, count in held.items()}
    for receiver, count in wanted.items():
        need = count - held.get(receiver, 0)
        while need > 0:
            need -= _take(pieces, receiver, need, spare)
    return _ranges(pieces, wanted)


def ranges_in_force(experiment: Experiment, stored: Ranges | None) -> Ranges:
    """The ranges that an experiment uses: `stored` ones, moved to its weights and variants where they do not fit.

    With `allocation: thompson` the weights of the configuration are those of the start; then stored ranges stand as
    long as they are of the same variants.
    """
    weights = {variant.id: variant.weight for variant in experiment.variants}
    if stored is None:
        return first_ranges(weights)
    if experiment.allocation is Allocation.THOMPSON and {variant for variant, _ in stored} == weights.keys():
        return stored
    return moved(stored, weights)


def buckets_of(ranges: Ranges) -> dict[str, int]:
    """How many buckets each variant has."""
    return {variant: sum(end - start for start, end in owned) for variant, owned in ranges}


def buckets_moved(old: Ranges, new: Ranges) -> int:
    """How many buckets have another variant in `new` than in `old`; each is 1 / `BUCKETS` of the units."""
    before, after = variants_in(old), variants_in(new)
    cuts = sorted({start for _, ranges in (*old, *new) for start, _ in ranges} | {BUCKETS})
    return sum(end - start for start, end in pairwise(cuts) if before.owner(start) != after.owner(start))


class Buckets(Generic[Owner]):
    """Ranges for looking up: `owners[i]` has the buckets from `starts[i]` on. The mapping says whose the buckets of a
    variant are."""

    __slots__ = ("owners", "starts")

    def __init__(self, ranges: Ranges, owners: Mapping[str, Owner]) -> None:
        pieces = sorted((start, variant) for variant, owned in ranges for start, _ in owned)
        self.starts = [start for start, _ in pieces]
        self.owners = [owners[variant] for _, variant in pieces]

    def owner(self, bucket: int) -> Owner:
        """Whose a bucket, from 0 to `BUCKETS`, is."""
        return self.owners[bisect_right(self.starts, bucket) - 1]


def variants_in(ranges: Ranges) -> Buckets[str]:
    """Which variant each bucket is of."""
    return Buckets(ranges, {variant: variant for variant, _ in ranges})


def to_json(ranges: Ranges) -> list[JsonValue]:
    """Ranges as JSON: `[["control", [[0, 5000]]], ...]`."""
    return [[variant, [[start, end] for start, end in owned]] for variant, owned in ranges]


def from_json(value: object) -> Ranges:
    """The inverse of `to_json`. Raises `ConfigError` for what does not give each bucket to exactly one variant."""
    pieces: list[_Piece] = []
    variants: list[str] = []
    for entry in _listed(value):
        variant, owned = _two(entry)
        if not isinstance(variant, str) or variant in variants:
            raise ConfigError(f"Ranges of an experiment are wrong: {variant!r:.80} is no variant of its own.{_HOW}")
        variants.append(variant)
        pieces += [_piece(variant, piece) for piece in _listed(owned)]
    pieces.sort(key=lambda piece: piece.start)
    reached = 0
    for piece in pieces:
        if piece.start != reached:
            what = "belong to nobody" if piece.start > reached else "belong to two variants"
            between = f"{min(reached, piece.start)} to {max(reached, piece.start)}"
            raise ConfigError(f"Ranges of an experiment are wrong: buckets {between} {what}.{_HOW}")
        reached = piece.end
    if reached != BUCKETS:
        raise ConfigError(f"Ranges of an experiment are wrong: they end at {reached}, not at {BUCKETS}.{_HOW}")
    return _ranges(pieces, variants)


_HOW = f" Give each bucket from 0 to {BUCKETS} to one variant, or store none to start from the weights."


class _Piece:
    """Buckets in a row with one owner."""

    __slots__ = ("end", "owner", "start")

    def __init__(self, start: int, end: int, owner: str) -> None:
        self.start = start
        self.end = end
        self.owner = owner


def _held(pieces: Iterable[_Piece]) -> dict[str, int]:
    held: dict[str, int] = {}
    for piece in pieces:
        held[piece.owner] = held.get(piece.owner, 0) + piece.end - piece.start
    return held


def _take(pieces: list[_Piece], receiver: str, need: int, spare: dict[str, int]) -> int:
    """Give up to `need` buckets in a row of one donor to the receiver; how many there were."""
    at, at_start = _donor(pieces, receiver, need, spare)
    piece = pieces[at]
    count = min(need, spare[piece.owner], piece.end - piece.start)
    spare[piece.owner] -= count
    if count == piece.end - piece.start:
        piece.owner = receiver
    elif at_start:
        pieces.insert(at, _Piece(piece.start, piece.start + count, receiver))
        piece.start += count
    else:
        pieces.insert(at + 1, _Piece(piece.end - count, piece.end, receiver))
        piece.end -= count
    _merge(pieces)
    return count


def _donor(pieces: list[_Piece], receiver: str, need: int, spare: Mapping[str, int]) -> tuple[int, bool]:
    """The piece to take from, and whether from its start: next to the receiver's, else a whole one, else the
    longest."""
    best: tuple[tuple[bool, bool, int], int, bool] | None = None
    for at, piece in enumerate(pieces):
        able = min(need, spare.get(piece.owner, 0))
        if able <= 0 or piece.owner == receiver:
            continue
        after = at > 0 and pieces[at - 1].owner == receiver
        before = at + 1 < len(pieces) and pieces[at + 1].owner == receiver
        length = piece.end - piece.start
        rank = (after or before, length <= able, length)
        if best is None or rank > best[0]:
            best = (rank, at, after)
    assert best is not None, "what variants need is what others have to spare"
    return best[1], best[2]


def _merge(pieces: list[_Piece]) -> None:
    for at in range(len(pieces) - 1, 0, -1):
        if pieces[at].owner == pieces[at - 1].owner:
            pieces[at - 1].end = pieces.pop(at).end


def _ranges(pieces: list[_Piece], variants: Iterable[str]) -> Ranges:
    _merge(pieces)
    return tuple(
        (variant, tuple((piece.start, piece.end) for piece in pieces if piece.owner == variant)) for variant in variants
    )


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ConfigError(f"Ranges of an experiment are wrong: {value!r:.80} is no list.{_HOW}")
    return cast("list[object]", value)


def _two(value: object) -> tuple[object, object]:
    found = _listed(value)
    if len(found) != 2:
        raise ConfigError(f"Ranges of an experiment are wrong: {value!r:.80} is no pair.{_HOW}")
    return found[0], found[1]


def _piece(variant: str, value: object) -> _Piece:
    start, end = _two(value)
    if not (type(start) is int and type(end) is int and 0 <= start < end <= BUCKETS):
        raise ConfigError(f"Ranges of an experiment are wrong: {variant} has {value!r:.80}.{_HOW}")
    return _Piece(start, end, variant)
