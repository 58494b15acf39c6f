"""Names of requests: UUIDs of version 7, which sort by time, so that a database appends where it would else scatter."""

import os
import time

_RANDOM_BITS = 62


def first_request_id(milliseconds: int) -> str:
    """What every request that was named at this time (Unix milliseconds) or later is not less than."""
    return f"{milliseconds & 0xFFFF_FFFF_FFFF:012x}"[:8] + "-" + f"{milliseconds & 0xFFFF:04x}"


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF
    noise = int.from_bytes(os.urandom(10), "big")
    high = milliseconds << 16 | 0x7000 | noise >> _RANDOM_BITS & 0x0FFF
    low = 0b10 << _RANDOM_BITS | noise & (1 << _RANDOM_BITS) - 1
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
