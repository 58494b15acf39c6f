"""Answers in memory: the least recently used go when there are too many, or too many bytes of them."""

from collections import OrderedDict

from core.cache.entry import Entry

_INDEXED = 130
"""Bytes of an entry's place in the index of one mark."""
_MARK = 400
"""Bytes of a mark that one entry has."""


class Memory:
    """Every call takes the same time however many entries there are, but for `invalidate`, which takes as long as what
    it takes out. What has run out is kept until its room is needed or somebody asks for it."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[bytes, tuple[Entry, int]] = OrderedDict()
        """With the bytes that each takes here."""
        self._marked: dict[str, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now_ms: int) -> Entry | None:
        """What is there, though it may be stale."""
        found = self._entries.get(key)
        if found is None:
            return None
        entry = found[0]
        if not entry.usable(now_ms):
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry) -> bool:
        """Whether it is small enough to be kept."""
        if key in self._entries:
            self.drop(key)
        marks = entry.marks
        size = entry.size + _INDEXED * len(marks)
        if size + _MARK * len(marks) > self.max_bytes:
            return False
        self._entries[key] = (entry, size)
        self.bytes += size
        for name in marks:
            keys = self._marked.get(name)
            if keys is None:
                keys = self._marked[name] = set()
                self.bytes += _MARK
            keys.add(key)
        while self.bytes > self.max_bytes or len(self._entries) > self.max_entries:
            oldest, (old, old_size) = self._entries.popitem(last=False)
            self._forget(oldest, old, old_size)
            self.evictions += 1
        return True

    def drop(self, key: bytes) -> bool:
        found = self._entries.pop(key, None)
        if found is None:
            return False
        self._forget(key, *found)
        return True

    def invalidate(self, mark: str) -> int:
        """Take out every entry with a mark (`core.cache.entry.mark`); returns how many."""
        keys = list(self._marked.get(mark, ()))
        for key in keys:
            self.drop(key)
        return len(keys)

    def clear(self) -> int:
        count = len(self._entries)
        self._entries, self._marked, self.bytes = OrderedDict(), {}, 0
        return count

    def resize(self, max_entries: int, max_bytes: int) -> None:
        """Hold no more than this from the next `put` on."""
        self.max_entries, self.max_bytes = max_entries, max_bytes

    def _forget(self, key: bytes, entry: Entry, size: int) -> None:
        self.bytes -= size
        for name in entry.marks:
            keys = self._marked.get(name)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._marked[name]
                    self.bytes -= _MARK
