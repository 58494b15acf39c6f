"""The journal: every usage event on this machine's disk before its answer ends, until the store has it."""

from core.journal.amendment import Amendment, UsageFields
from core.journal.journal import Journal, JournalCounts
from core.journal.record import Batch, Rejected, decode_lines
from core.journal.segment import Segment

__all__ = ["Amendment", "Batch", "Journal", "JournalCounts", "Rejected", "Segment", "UsageFields", "decode_lines"]
