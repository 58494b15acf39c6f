"""Circuit breakers: deployments that fail are left alone for a while."""

from core.breakers.breaker import Change, Hold, State
from core.breakers.breakers import Breakers, Permit, Status
from core.breakers.memory import MemoryBreakers
from core.breakers.outcomes import FAILED, IGNORED, OK, SLOW, Outcome, Verdict, classify, throttled

__all__ = [
    "Breakers",
    "MemoryBreakers",
    "Permit",
    "Status",
    "State",
    "Hold",
    "Change",
    "Outcome",
    "Verdict",
    "OK",
    "FAILED",
    "SLOW",
    "IGNORED",
    "throttled",
    "classify",
]
