"""Who stays with which candidate: rendezvous hashing, the same on every instance and with nothing remembered.

Each candidate draws a number by its name and the unit, and the unit goes to the lowest. A candidate that leaves
moves only the units it had; one that comes takes its share from all others alike.
(Thaler & Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import inf, log

from core.context import RequestContext
from core.settings.models import Policy, Sticky

_BITS = 64
_MASK = (1 << _BITS) - 1
_SMALLEST = 1.0 / (1 << _BITS)


def sticky_key(policy: Policy, context: RequestContext) -> str | None:
    """The unit that stays with its candidate, None where the policy is not sticky or the request does not name one.

    A session belongs to who has it: two callers that both count their sessions from 1 have different ones.
    """
    if policy.sticky is None:
        return None
    caller = context.caller
    owner = caller.user_id or caller.key_hash
    if policy.sticky is Sticky.SESSION:
        return None if context.session_id is None else f"session\0{owner or ''}\0{context.session_id}"
    return None if owner is None else f"user\0{owner}"


def seed_of(policy: str, key: str) -> int:
    """64 random bits of a unit, or of a request, under one policy."""
    return int.from_bytes(blake2b(f"{policy}\0{key}".encode(errors="replace"), digest_size=8).digest())


@lru_cache(maxsize=4096)
def _multiplier(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8).digest()) | 1


@lru_cache(maxsize=1024)
def _multipliers(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(_multiplier, names))


def draws(seed: int, names: tuple[str, ...]) -> list[int]:
    """What each of `names` draws, from 0 to 2**64: of its name and the seed alone, evenly distributed and independent
    of the others. The lowest comes first.
    """
    # The two halves of the product folded onto each other, as wyhash does: the cheapest good mix in Python.
    return [(product := seed * factor) >> _BITS ^ product & _MASK for factor in _multipliers(names)]


def share_drawn(seed: int, name: str) -> float:
    """One draw, from 0 to 1."""
    return draws(seed, (name,))[0] * _SMALLEST


def weighted_draws(seed: int, names: tuple[str, ...], weights: Sequence[float]) -> list[float]:
    """Draws by which each comes first with a chance of its share of all weights; the lowest is first.

    -ln(u) / w: exponential with rate w (Efraimidis & Spirakis, "Weighted random sampling with a reservoir", 2006). A
    weight that changes moves units only to or from its candidate. Without weight it comes last.
    """
    # A draw may be 0, which has no logarithm.
    return [
        -log((drawn + 1) * _SMALLEST) / weight if weight > 0 else inf
        for drawn, weight in zip(draws(seed, names), weights, strict=True)
    ]
