"""Answers that exist already, and those that somebody else is just getting."""

from core.cache.cache import EVERYTHING, Cache, Stats
from core.cache.counters import Count, Label
from core.cache.entry import Entry, ends_of, kept_headers
from core.cache.flights import FlightLost, Flights, Follower, Head, Leader, LeftBehind
from core.cache.key import Owner, RawMemo, Seen, cache_key, input_keys, owner_of, raw_key, vary
from core.cache.memory import Memory
from core.cache.rules import Answer, CacheRules, Control, control_of

__all__ = [
    "Cache",
    "Stats",
    "EVERYTHING",
    "Memory",
    "Entry",
    "ends_of",
    "kept_headers",
    "Label",
    "Count",
    "cache_key",
    "input_keys",
    "Owner",
    "owner_of",
    "vary",
    "raw_key",
    "RawMemo",
    "Seen",
    "CacheRules",
    "Control",
    "control_of",
    "Answer",
    "Flights",
    "Leader",
    "Follower",
    "Head",
    "FlightLost",
    "LeftBehind",
]
