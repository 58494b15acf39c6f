"""What a process has made for good, kept where it costs least: out of garbage collections and in huge pages."""

import asyncio
import ctypes
import gc
import os
import re
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

COLLECT_EVERY = (4_000, 10, 10)
"""Python's thresholds of garbage collection in a proxy. With 10,000 a request takes as long and the process is 6 MiB
larger after a burst of streams: what is under way when it is collected waits for a later collection."""

HUGE_PAGES = "LLM_ORCHESTRATION_HUGE_PAGES"
"""`off` leaves memory in pages of ordinary size."""

_PROCESS = Path("/proc/self")
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage")
_COLLAPSE = 25
"""MADV_COLLAPSE of madvise(2), since Linux 6.1: move this range into a huge page now."""

_PAGE = 4096
_ENTRY = 8
"""Bytes of /proc/<pid>/pagemap for a page."""

_MINE = (1 << 63) | (1 << 56)
"""Present, and mapped by nobody else: a page that a parent shares would be held twice."""

_HOLES = 10
"""Pages of a block that may be missing: a huge page holds them all, and memory is to cost what it cost before."""

_BREATH = 0.01
"""Seconds between two blocks. Who touches a block while the kernel moves it waits, some two milliseconds."""


def spare_collections() -> None:
    """Keep what is there for good out of garbage collections.

    LiteLLM and what it imports make over a million objects; each full collection walks them all, which stops the worker
    for most of a second and comes round every thousand requests or so. A request leaves a few hundred objects behind,
    so Python's default of a collection for each 700 is one for every three requests. Called again when more has been
    made, it keeps that as well.
    """
    gc.freeze()
    if "PYTHON_GC_THRESHOLD" not in os.environ:  # LiteLLM's own setting
        gc.set_threshold(*COLLECT_EVERY)


async def use_huge_pages() -> int:
    """Move what memory is full and ours alone into huge pages; returns the bytes that are in them then.

    A request runs through objects all over the heap. With 4 KiB a page the processor's TLB knows where a few MB of it
    are and looks everything else up, on a virtual machine in two tables at once. 0 where the kernel cannot or must not.
    """
    size = _huge_page()
    if not size:
        return 0
    moved = 0
    for block in await asyncio.to_thread(full_blocks, size):
        if await asyncio.to_thread(collapse, block, size):
            moved += size
        elif not moved:
            return 0  # an older kernel, or a process that may not
        await asyncio.sleep(_BREATH)
    return moved


def full_blocks(size: int) -> list[int]:
    """The addresses of all blocks of `size` bytes, at multiples of it in anonymous memory of this process, that are in
    use but for a few pages and shared with no other process. None where the kernel does not tell."""
    try:
        with (_PROCESS / "pagemap").open("rb", buffering=0) as pagemap:
            return [
                block
                for low, high in _anonymous()
                for block in range(-(-low // size) * size, high // size * size, size)
                if _full(pagemap, block, size // _PAGE)
            ]
    except OSError:  # a hardened container shows a process nothing of itself
        return []


def _full(pagemap: RawIOBase, block: int, pages: int) -> bool:
    pagemap.seek(block // _PAGE * _ENTRY)
    entries = memoryview(pagemap.read(pages * _ENTRY) or b"").cast("Q")
    return sum(entry & _MINE == _MINE for entry in entries) >= pages - _HOLES


def collapse(block: int, size: int) -> bool:
    """Have the kernel move a block into a huge page; whether it did. Other threads go on, whoever touches the block
    waits."""
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(block), ctypes.c_size_t(size), _COLLAPSE) == 0


_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 +(?:\[heap\])?$")
"""In /proc/<pid>/maps what is written to, private, and of no file."""


def _anonymous() -> Iterator[tuple[int, int]]:
    for line in (_PROCESS / "maps").read_text().splitlines():
        if found := _MAPPING.match(line):
            yield int(found[1], 16), int(found[2], 16)


def _huge_page() -> int:
    """Bytes of a huge page; 0 where this machine has none, or somebody has said that there are to be none."""
    if os.environ.get(HUGE_PAGES, "").lower() == "off":
        return 0
    try:
        if "[never]" in (_KERNEL / "enabled").read_text() or os.sysconf("SC_PAGE_SIZE") != _PAGE:
            return 0
        return int((_KERNEL / "hpage_pmd_size").read_text())
    except OSError:
        return 0
