"""GrowthBook's hash of units, for many seeds at once.

Version 2 of the hash is FNV-1a of the decimal text of FNV-1a of seed + unit, both with 32 bits over UTF-16 code units
(https://docs.growthbook.io/lib/build-your-own). GrowthBook reads one of `BUCKETS` buckets off the result. So do we;
which units take part at all is read off its upper end instead, which says nothing about the bucket: a share of the
traffic can grow without anybody changing the variant.
"""

from array import array
from collections.abc import Sequence
from struct import Struct

BUCKETS = 10_000
"""How finely units are divided: GrowthBook's resolution."""

DRAWS = 1 << 32
"""Draws are whole numbers below this."""

_BASIS = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF
_LANE = 64
"""Bits for each seed: products of two 32-bit numbers fit."""
_HEAD = 0x1FFF
"""A 32-bit number divided by a million fits."""


def fnv1a32(text: str, state: int = _BASIS) -> int:
    """FNV-1a with 32 bits over the UTF-16 code units of `text`; `state` is that of what goes before it."""
    for unit in _code_units(text):
        state = ((state ^ unit) * _PRIME) & _MASK
    return state


def _finished(state: int) -> int:
    draw = _BASIS
    for digit in b"%d" % state:
        draw = ((draw ^ digit) * _PRIME) & _MASK
    return draw


def unit_draw(seed: str, unit: str) -> int:
    """A number from 0 to `DRAWS`, the same for the same unit and seed everywhere and for good."""
    return _finished(fnv1a32(unit, fnv1a32(seed)))


def unit_hash(seed: str, unit: str) -> float:
    """GrowthBook's hash of a unit, version 2: from 0 to 1, in steps of 1 / `BUCKETS`."""
    return unit_draw(seed, unit) % BUCKETS / BUCKETS


def namespace_hash(namespace: str, unit: int) -> int:
    """Where in a namespace a unit, by its `fnv1a32`, is, in thousandths: GrowthBook's hash, version 1."""
    return fnv1a32(f"__{namespace}", unit) % 1000


_AFTER = array("I", [_finished(head) for head in range(DRAWS // 1_000_000 + 1)])
"""FNV-1a after all digits of a number but its last six."""


class Seeds:
    """The draws of one unit under several seeds together.

    What is computed for each seed lies side by side in one large integer, so that an operation costs about the same
    for twenty seeds as for one. On top is the unit without a seed.
    """

    __slots__ = (
        *(
            "_ascii",
            "_head",
            "_mask",
            "_nibble",
            "_ones",
            "_own",
            "_pack",
            "_seeded",
            "_size",
            "_start",
            "_unpack",
            "_zeros",
        ),
    )

    def __init__(self, seeds: Sequence[str]) -> None:
        layout = Struct(f"<{len(seeds)}Q")
        self._size = layout.size
        self._pack, self._unpack = layout.pack, layout.unpack
        self._own = _LANE * len(seeds)
        self._ones = sum(1 << _LANE * lane for lane in range(len(seeds) + 1))
        self._mask = _MASK * self._ones
        self._seeded = self._ones >> _LANE
        self._head = _HEAD * self._seeded
        self._nibble = 0xF * self._seeded
        self._zeros = ord("0") * self._seeded
        self._ascii = [code * self._ones for code in range(128)]
        self._start = sum(fnv1a32(seed) << _LANE * lane for lane, seed in enumerate([*seeds, ""]))

    def draws(self, unit: str) -> tuple[tuple[int, ...], int]:
        """`unit_draw` of each seed, in their order, and the unit's own `fnv1a32`."""
        state, mask = self._start, self._mask
        if unit.isascii():
            for repeated in map(self._ascii.__getitem__, unit.encode()):
                state = ((state ^ repeated) * _PRIME) & mask
        else:
            for code in _code_units(unit):
                state = ((state ^ (code * self._ones)) * _PRIME) & mask
        own = state >> self._own
        return self._finished(state ^ own << self._own), own

    def _finished(self, states: int) -> tuple[int, ...]:
        """The second round: the state after all but the last six digits is looked up, those are taken one by one."""
        size, mask, nibble, zeros = self._size, self._mask, self._nibble, self._zeros
        # Divided by a million: exact for 32 bits (Granlund and Montgomery, 1994), and a product fits its lane.
        millions = ((states * 2_251_799_814) >> 51) & self._head
        heads = self._unpack(millions.to_bytes(size, "little"))
        draws = int.from_bytes(self._pack(*map(_AFTER.__getitem__, heads)), "little")
        # The rest as a fraction with 32 bits, a little too large, never by a digit; times ten, digits come out on top.
        rest = ((((states - millions * 1_000_000) * 17_592_187) >> 12) & mask) + self._seeded
        for _ in range(6):
            rest *= 10
            draws = ((draws ^ ((rest >> 32) & nibble) ^ zeros) * _PRIME) & mask
            rest &= mask
        found = self._unpack(draws.to_bytes(size, "little"))
        if 0 in heads:
            # One state in some 4,300 has six digits or fewer, and none may be put in front.
            short = zip(found, heads, self._unpack(states.to_bytes(size, "little")), strict=True)
            return tuple(draw if head else _finished(state) for draw, head, state in short)
        return found


def _code_units(text: str) -> Sequence[int]:
    if text.isascii():
        return text.encode()
    # Half a surrogate pair is a code unit like any other here.
    encoded = text.encode("utf-16-le", "surrogatepass")
    return [encoded[at] | encoded[at + 1] << 8 for at in range(0, len(encoded), 2)]
