"""How often and how many at once: rates, parallel requests, and the queue in front of the proxy."""

from plugins.limits.entrance import Entrance, Visit
from plugins.limits.gate import Gate, Slot
from plugins.limits.limiter import NO_LIMITS, Admission, Limiter

__all__ = ["Entrance", "Visit", "Limiter", "Admission", "NO_LIMITS", "Gate", "Slot"]
