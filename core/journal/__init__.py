"""The journal: every usage event on this machine's disk before its answer ends, until the store has it."""

from core.journal.amendment import Amendment, UsageFields
from core.journal.journal import Journal, JournalCounts
from core.journal.record import Batch, Rejected, decode_lines
from core.journal.segment import Segment
from core.journal.sent import SentAttempt

__all__ = [
    "Amendment",
    "Batch",
    "Journal",
    "JournalCounts",
    "Rejected",
    "Segment",
    "SentAttempt",
    "UsageFields",
    "decode_lines",
]
