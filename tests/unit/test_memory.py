"""What a process has made for good (`core.memory`), kept from collections and in huge pages, by the kernel's word."""

import asyncio
import ctypes
import mmap
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core import memory
from tests.support.untested import untested

_HUGE = 2 << 20
_ON_LINUX = sys.platform == "linux"


def _can_collapse() -> bool:
    release = re.match(r"(\d+)\.(\d+)", Path("/proc/sys/kernel/osrelease").read_text()) if _ON_LINUX else None
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    # What is asked here must not be what is tested.
    return bool(
        release
        and (int(release[1]), int(release[2])) >= (6, 1)
        and enabled.exists()
        and "[never]" not in enabled.read_text()
        and int(enabled.with_name("hpage_pmd_size").read_text()) == _HUGE
    )


@pytest.fixture
def huge_pages() -> None:
    """`untested` where this kernel has none to give."""
    if not _can_collapse():
        untested("Linux 6.1 or newer with huge pages of 2 MiB", "this kernel has no huge pages to give")


needs_huge_pages = pytest.mark.usefixtures("huge_pages")


class Blocks:
    """Anonymous memory of three whole blocks, nothing of it in use yet."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4 * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._offset = -start % _HUGE
        self.addresses = [start + self._offset + number * _HUGE for number in range(3)]

    def fill(self, number: int, pages: int, byte: bytes = b"x") -> None:
        begin = self._offset + number * _HUGE
        self._map[begin : begin + pages * 4096] = byte * (pages * 4096)

    def content(self, number: int) -> bytes:
        begin = self._offset + number * _HUGE
        return self._map[begin : begin + _HUGE]


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def _huge_bytes_at(address: int) -> int:
    """How much of the mapping with this address the kernel holds in huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError("nothing is mapped there")


@needs_huge_pages
def test_blocks_that_are_full_are_found_and_no_others(blocks: Blocks):
    blocks.fill(0, 512)
    blocks.fill(1, 256)
    found = set(memory.full_blocks(_HUGE))
    assert [address in found for address in blocks.addresses] == [True, False, False]
    blocks.fill(1, 512 - 10)
    blocks.fill(2, 512 - 11)
    found = set(memory.full_blocks(_HUGE))
    assert [address in found for address in blocks.addresses] == [True, True, False]


@needs_huge_pages
def test_a_block_moves_into_a_huge_page_and_keeps_what_is_in_it(blocks: Blocks):
    blocks.fill(1, 512, b"\x17")
    before = _huge_bytes_at(blocks.addresses[1])
    assert memory.collapse(blocks.addresses[1], _HUGE)
    assert _huge_bytes_at(blocks.addresses[1]) - before == _HUGE
    assert blocks.content(1) == b"\x17" * _HUGE


@needs_huge_pages
def test_what_another_process_shares_stays_where_it_is():
    found = _run("""
        blocks = Blocks()
        blocks.fill(0, 512)
        ours = blocks.addresses[0] in set(memory.full_blocks(_HUGE))
        child = os.fork()
        if child == 0:
            signal.pause()
        shared = blocks.addresses[0] in set(memory.full_blocks(_HUGE))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(ours, shared)
    """)
    assert found == "True False\n"


@needs_huge_pages
def test_a_process_moves_what_it_has_and_is_as_large_as_before():
    found = _run("""
        kept = [bytes(100) for _ in range(500_000)]
        def size(name):
            return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
        async def main():
            before = size("Rss")
            moved = await memory.use_huge_pages()
            print(moved >> 20, size("AnonHugePages") >> 10, (size("Rss") - before) >> 10)
        asyncio.run(main())
    """)
    moved, huge, grown = map(int, found.split())
    assert moved >= 32
    assert huge >= moved
    assert grown <= 4


@needs_huge_pages
async def test_a_kernel_that_does_not_know_how_is_asked_once(blocks: Blocks, monkeypatch: pytest.MonkeyPatch):
    blocks.fill(0, 512)
    blocks.fill(1, 512)
    asked: list[int] = []

    def collapse(block: int, size: int) -> bool:
        asked.append(block)
        return plain(block, size)

    plain = memory.collapse
    monkeypatch.setattr(memory, "_COLLAPSE", 9999)
    monkeypatch.setattr(memory, "collapse", collapse)
    assert await memory.use_huge_pages() == 0
    assert len(asked) == 1


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None])
async def test_where_there_are_to_be_none_nothing_is_moved(
    enabled: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
        (tmp_path / "hpage_pmd_size").write_text(str(_HUGE))
    monkeypatch.setattr(memory, "_KERNEL", tmp_path)
    await _moves_nothing(monkeypatch)


@pytest.mark.parametrize("said", ["off", "OFF"])
async def test_they_can_be_switched_off(said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(memory.HUGE_PAGES, said)
    await _moves_nothing(monkeypatch)


@needs_huge_pages
async def test_a_container_that_shows_nothing_of_a_process_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    await _moves_nothing(monkeypatch)


async def _moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def collapse(block: int, size: int) -> bool:
        raise AssertionError(f"{block:x} was to stay where it is")

    monkeypatch.setattr(memory, "collapse", collapse)
    assert await asyncio.wait_for(memory.use_huge_pages(), 10) == 0


@pytest.mark.parametrize("in_an_application", [False, True])
def test_collections_are_spared_before_we_load_and_only_in_a_process_of_ours(in_an_application: bool):
    printed = _run(f"""
        import gc, sys
        from core.process import IN_PROCESS
        if {in_an_application}:
            os.environ[IN_PROCESS] = "1"

        class Noting:
            def find_spec(self, name, path, target=None):
                if name == "plugins.wiring":
                    print(gc.get_freeze_count() > 0, gc.get_threshold() == memory.COLLECT_EVERY)
                    raise SystemExit

        sys.meta_path.insert(0, Noting())
        import litellm_orchestration
        litellm_orchestration.callback
    """)
    spared = not in_an_application
    assert printed.split() == [str(spared), str(spared)]


def _run(script: str) -> str:
    """What a process of its own prints."""
    imports = "import asyncio, os, re, signal\nfrom pathlib import Path\nfrom core import memory\n"
    imports += "from tests.unit.test_memory import _HUGE, Blocks\n"
    command = [sys.executable, "-c", imports + textwrap.dedent(script)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
