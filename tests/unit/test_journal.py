"""The journal: what was appended is there after any death, and what is damaged is seen."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import JournalFull, StoreError
from core.journal import Amendment, Batch, Journal, Segment, SentAttempt, decode_lines
from core.journal.record import encode, unanswered
from core.ledger import Ledger
from core.store import open_store
from core.usage import Attempt, UsageEvent, UsageState

_TEXT = st.text(max_size=20) | st.sampled_from(["\0", "\ud800", "\u2028\n\r", "\U0001f600", "=1+1"])
_NAME = st.none() | _TEXT
_EVENTS = st.builds(
    UsageEvent,
    request_id=_TEXT,
    time_ms=st.integers(0, 1 << 62),
    endpoint=_TEXT,
    status=st.integers(100, 599),
    groups=st.lists(_TEXT, max_size=3).map(tuple),
    user_id=_NAME,
    priority=st.none() | st.integers(),
    cost_nano=st.integers(-(1 << 70), 1 << 70),
    streamed=st.booleans(),
    attempts=st.lists(st.builds(Attempt, number=st.integers(1, 9), model=_TEXT, cost_nano=st.integers()), max_size=3),
)


def event(number: int, **fields: object) -> UsageEvent:
    return UsageEvent(f"request-{number}", 1_800_000_000_000 + number, "/v1/chat/completions", 200, **fields)  # type: ignore[arg-type]


def read_all(segment: Segment) -> Batch:
    """Everything in a segment that is not acknowledged, in one batch."""
    whole = Batch(end=segment.acknowledged)
    while segment.backlog:
        batch = decode_lines(segment.read(), segment.acknowledged)
        whole.events += batch.events
        whole.amendments += batch.amendments
        whole.rejected += batch.rejected
        whole.torn += batch.torn
        segment.acknowledge(batch.end, batch.records)
    return whole


def adopted(directory: Path) -> list[Batch]:
    """What an heir finds."""
    heir = Journal(directory, "heir")
    segments = heir.adopt()
    try:
        return [read_all(segment) for segment in segments]
    finally:
        for segment in segments:
            segment.close()
        heir.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal", "one")
    yield journal
    journal.close()


def test_what_is_appended_is_read_back_in_order(journal: Journal) -> None:
    for number in range(5):
        journal.append(event(number, groups=("a",), attempts=[Attempt(1, "large")]))
    assert read_all(journal.segments[0]).events == [
        event(number, groups=("a",), attempts=[Attempt(1, "large")]) for number in range(5)
    ]


@settings(deadline=None)
@given(_EVENTS)
def test_any_event_survives_a_line_of_json(written: UsageEvent) -> None:
    line = encode(written)
    batch = decode_lines(line, 0)
    assert line.count(b"\n") == 1
    assert batch.torn == 0
    assert not batch.rejected
    [read] = batch.events
    # Lone surrogates have no UTF-8, and orjson reads integers past 64 bits as floats, which the store then rejects.
    clean = written.request_id.encode("utf-8", errors="replace").decode()
    assert read.request_id == clean
    if abs(written.cost_nano) < 1 << 63:
        assert read.cost_nano == written.cost_nano
    assert len(read.attempts) == len(written.attempts)


def test_an_amendment_with_a_field_that_does_not_exist_is_refused(journal: Journal) -> None:
    with pytest.raises(TypeError, match="no cost"):
        journal.amend("request-1", {"cost": 1})  # type: ignore[typeddict-unknown-key]


def test_segments_rotate_and_a_released_one_is_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", segment_bytes=1000)
    for number in range(50):
        journal.append(event(number))
    first, *rest = journal.segments
    assert len(rest) > 2
    assert all(segment.size <= 1000 for segment in journal.segments)
    read_all(first)
    journal.release(first)
    assert not first.path.exists()
    assert first not in journal.segments
    journal.close()


def test_a_journal_that_was_read_to_the_end_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(event(1))
    read_all(journal.segments[0])
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(event(1))
    journal.append(event(2))
    path = journal.segments[0].path
    journal.close()
    os.truncate(path, path.stat().st_size - 10)
    [found] = adopted(tmp_path)
    assert [each.request_id for each in found.events] == ["request-1"]
    assert found.torn == 1


def test_a_damaged_line_in_the_middle_costs_that_line_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    for number in range(3):
        journal.append(event(number))
    path = journal.segments[0].path
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"request-1", b"request-9") + lines[2])
    [found] = adopted(tmp_path)
    assert [each.request_id for each in found.events] == ["request-0", "request-2"]
    assert found.torn == 1


@pytest.mark.parametrize(
    "body", [b"E[]", b"E{}", b'E{"request_id":', b'E{"attempts":[1]}', b"A[]", b'A{"cost_nano":1}', b"X{}"]
)
def test_a_whole_line_that_is_no_record_is_rejected_with_a_reason(body: bytes) -> None:
    batch = decode_lines(b"%08x %b\n" % (crc32(body), body) + encode(event(1)), 0)
    assert [each.request_id for each in batch.events] == ["request-1"]
    [rejected] = batch.rejected
    assert body in rejected.line
    assert rejected.reason
    assert batch.torn == 0


def test_an_heir_goes_on_where_the_store_had_got_to(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(event(1))
    read_all(journal.segments[0])
    journal.append(event(2))
    journal.close()
    [found] = adopted(tmp_path)
    assert [each.request_id for each in found.events] == ["request-2"]


@pytest.mark.parametrize("offset", [b"garbage", b"", b"99999999", b"7"])
def test_a_useless_offset_means_reading_from_the_start(tmp_path: Path, offset: bytes) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(event(1))
    path = journal.segments[0].path
    journal.close()
    path.with_suffix(".ack").write_bytes(offset)
    [found] = adopted(tmp_path)
    assert [each.request_id for each in found.events] == ["request-1"]


def test_the_segments_of_a_living_journal_are_not_adopted(tmp_path: Path) -> None:
    living, other = Journal(tmp_path, "same-name"), Journal(tmp_path, "same-name")
    living.append(event(1))
    assert other.adopt() == []
    living.close()
    assert [segment.unread for segment in other.adopt()] == [1]
    other.close()


_APPENDS_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from core.journal import Journal
from core.usage import UsageEvent
journal = Journal(Path(sys.argv[1]), "doomed")
for number in count():
    journal.append(UsageEvent(f"request-{number}", number, "/v1/chat/completions", 200))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _APPENDS_FOREVER, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(2000)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [line for line in process.stdout if line.endswith(b"\n")]
    process.wait()
    process.stdout.close()
    [found] = adopted(tmp_path)
    kept = [each.request_id for each in found.events]
    assert kept[: len(acknowledged)] == [f"request-{int(line)}" for line in acknowledged]
    assert len(kept) == len(set(kept)) <= len(acknowledged) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_keeps_events_in_memory_refuses_at_the_bound_and_recovers(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(32 << 10))
    journal = Journal(small_disk, "one", overflow_records=50, sync_interval=3600)
    number = 0
    with caplog.at_level(logging.ERROR, "orchestration.journal"):
        while journal.accepting:
            journal.append(event(number))
            number += 1
    assert not journal.healthy
    assert journal.waiting_in_memory == journal.counts.overflowed == 50
    assert len(caplog.records) == 1  # one line a minute, not one an event
    with pytest.raises(JournalFull):
        journal.append(event(number))
    assert journal.counts.lost == 1

    ballast.unlink()
    journal.append(event(number))
    assert journal.healthy
    found = read_all(journal.segments[0])
    assert [each.request_id for each in found.events] == [f"request-{each}" for each in range(number + 1)]
    assert found.torn == 0
    assert journal.counts.appended == number + 1
    journal.close()


async def test_while_the_disk_is_full_the_ledger_stores_what_waits_in_memory(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    (small_disk / "ballast").write_bytes(bytes(32 << 10))
    journal = Journal(small_disk, "one", overflow_records=2500, sync_interval=3600)
    number = 0
    while journal.accepting:
        journal.append(event(number))
        number += 1
    ledger = Ledger(journal, store.usage, linger=0.01)
    ledger.start()
    assert await ledger.flush(30)
    assert journal.healthy
    assert journal.counts.bypassed == 2500
    async with store.reading() as connection:
        stored = list((await connection.exec_driver_sql("SELECT request_id FROM usage_events")).scalars())
    assert sorted(stored) == sorted(f"request-{each}" for each in range(number))
    assert ledger.status().written == number
    await ledger.stop()
    journal.close()
    await store.close()


def test_lines_that_the_disk_took_meanwhile_are_not_let_go_twice(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(60 << 10))
    journal = Journal(small_disk, "one", overflow_records=500, sync_interval=3600)
    while not journal.waiting_in_memory:
        journal.append(event(0, session_id="x" * 500))
    for number in (1, 2):
        journal.append(event(number))
    waiting = journal.waiting()
    ballast.unlink()
    journal.append(event(3))  # takes what waited to the disk as well
    journal.let_go(waiting)
    assert journal.counts.bypassed == 0
    ids = [each.request_id for each in read_all(journal.segments[0]).events]
    assert ids[-4:] == ["request-0", "request-1", "request-2", "request-3"]
    journal.close()


def test_the_bound_on_the_files_counts_as_a_full_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", segment_bytes=1000, max_bytes=3000, overflow_records=5)
    while journal.accepting:
        journal.append(event(1))
    assert sum(segment.size for segment in journal.segments) <= 3000
    read_all(journal.segments[0])
    journal.release(journal.segments[0])
    journal.append(event(2))
    assert journal.healthy
    journal.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"orchestration\.journal\.dir"):
        Journal(tmp_path / "file" / "journal", "one")


def _with_two_attempts() -> UsageEvent:
    attempts = [
        Attempt(1, "large", usage=UsageState.UNKNOWN, cost_nano=900, input_tokens=50),
        Attempt(2, "small", usage=UsageState.REPORTED, cost_nano=100, input_tokens=10, output_tokens=5),
    ]
    return event(
        1, usage="unknown", cost_nano=1000, unknown_nano=900, input_tokens=60, output_tokens=5, attempts=attempts
    )


def test_reported_usage_replaces_the_upper_bound_and_moves_the_sums() -> None:
    amended = _with_two_attempts()
    better = Amendment("request-1", attempt=1, usage="reported", cost_nano=300, input_tokens=40, output_tokens=7)
    assert better.improve(amended)
    assert (amended.cost_nano, amended.unknown_nano, amended.usage) == (400, 0, "reported")
    assert amended.cost_nano == sum(attempt.cost_nano for attempt in amended.attempts)
    assert (amended.input_tokens, amended.output_tokens) == (50, 12)
    assert not better.improve(amended)


@pytest.mark.parametrize(
    "worse",
    [
        Amendment("request-1", usage="reported", cost_nano=1),  # the last attempt is as well known already
        Amendment("request-1", attempt=1, usage="unknown", cost_nano=1),
        Amendment("request-1", attempt=7, usage="reported", cost_nano=1),
    ],
)
def test_what_is_not_better_changes_nothing(worse: Amendment) -> None:
    amended = _with_two_attempts()
    assert not worse.improve(amended)
    assert amended == _with_two_attempts()


def test_a_name_is_taken_only_where_there_is_none() -> None:
    amended = event(1, provider="demo")
    assert Amendment("request-1", provider="other", provider_model="demo/large").improve(amended)
    assert (amended.provider, amended.provider_model) == ("demo", "demo/large")


def sent(number: int, *earlier: Attempt, **fields: object) -> SentAttempt:
    last = Attempt(len(earlier) + 1, "large", "large-1", "demo", accounts=("team~1|0|",), reserved_nano=900)
    return SentAttempt(event(number, attempts=[*earlier, last], **fields))


def left_open(directory: Path) -> list[UsageEvent]:
    """What an heir must charge, of the newest segment."""
    heir = Journal(directory, "heir")
    segments = heir.adopt()
    found, rejected = unanswered(segments[-1].chunks()) if segments else ([], [])
    assert not rejected
    for segment in segments:
        segment.close()
    heir.close()
    return found


def test_a_sent_attempt_is_not_read_by_the_living_and_does_not_count_as_a_record(journal: Journal) -> None:
    journal.sent(sent(1))
    journal.append(event(2))
    [segment] = journal.segments
    assert segment.unread == journal.counts.appended == 1
    found = read_all(segment)
    assert [each.request_id for each in found.events] == ["request-2"]
    assert (found.rejected, found.torn, segment.backlog, segment.unread) == ([], 0, 0, 0)


def test_what_was_sent_and_not_answered_costs_what_was_reserved(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    failed = Attempt(1, "small", status=500, cost_nano=30, usage=UsageState.REPORTED)
    journal.sent(sent(1, failed))
    journal.close()
    [found] = left_open(tmp_path)
    assert (found.request_id, found.status, found.error_class, found.usage) == (
        *("request-1", 0, "ProcessKilled", "unknown"),
    )
    assert (found.cost_nano, found.unknown_nano, found.used_model, found.provider) == (930, 900, "large", "demo")
    [first, last] = found.attempts
    assert first == failed
    assert (last.cost_nano, last.usage, last.error_class, last.accounts) == (
        *(900, "unknown", "ProcessKilled", ("team~1|0|",)),
    )


def test_of_several_attempts_the_last_line_speaks_for_the_request(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.sent(sent(1))
    journal.sent(sent(2))
    journal.sent(sent(1, Attempt(1, "large", usage=UsageState.UNKNOWN, cost_nano=900)))
    journal.append(event(2))
    journal.close()
    [found] = left_open(tmp_path)
    assert (found.request_id, len(found.attempts), found.cost_nano) == ("request-1", 2, 1800)


def test_a_closed_journal_keeps_the_segment_with_what_is_open(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.sent(sent(1))
    journal.append(event(2))
    read_all(journal.segments[0])
    journal.close()
    assert [each.request_id for each in left_open(tmp_path)] == ["request-1"]


def test_what_is_open_goes_along_into_each_new_segment(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", segment_bytes=1000)
    journal.sent(sent(1))
    journal.sent(sent(2))
    for number in range(10, 60):
        journal.append(event(number))
    journal.append(event(2))
    assert len(journal.segments) > 3
    while len(journal.segments) > 1:
        read_all(journal.segments[0])
        journal.release(journal.segments[0])
    read_all(journal.segments[0])
    journal.close()
    assert [each.request_id for each in left_open(tmp_path)] == ["request-1"]


def test_more_open_attempts_than_a_segment_holds_do_not_make_a_segment_each(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one", segment_bytes=2000)
    for number in range(50):
        journal.sent(sent(number))
    assert len(journal.segments) < 15
    journal.close()


def test_a_disk_that_was_full_gets_what_was_sent_meanwhile(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(60 << 10))
    journal = Journal(small_disk, "one", overflow_records=500, sync_interval=3600)
    while not journal.waiting_in_memory:
        journal.append(event(0, session_id="x" * 500))
    journal.sent(sent(1))
    journal.sent(sent(2))
    journal.append(event(2))
    assert not journal.healthy
    ballast.unlink()
    journal.append(event(3))
    assert journal.healthy
    journal.close()
    assert [each.request_id for each in left_open(small_disk)] == ["request-1"]


def test_where_no_event_could_be_kept_nothing_may_be_sent(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(60 << 10))
    journal = Journal(small_disk, "one", overflow_records=5, sync_interval=3600)
    while journal.accepting:
        journal.append(event(0, session_id="x" * 500))
    with pytest.raises(JournalFull):
        journal.sent(sent(1))
    journal.close()


def test_a_segment_begins_with_all_that_is_open_or_is_not_begun(small_disk: Path) -> None:
    journal = Journal(small_disk, "one", segment_bytes=8000, sync_interval=3600)
    for number in range(20):
        journal.sent(sent(number))
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), bytes(512))
    for number in range(100, 120):
        journal.append(event(number, session_id="x" * 500))
    assert journal.waiting_in_memory
    assert len(journal.segments) == len(list(small_disk.glob("one-*.jsonl"))) <= 2
    ballast.unlink()
    journal.append(event(120))
    assert journal.healthy
    journal.close()
    assert len(left_open(small_disk)) == 20


@pytest.mark.parametrize(
    "body", [b"S{}", b"S[]", b'S{"request_id":', b'S{"request_id":"r","time_ms":1,"endpoint":"e","status":0}']
)
def test_a_sent_attempt_that_cannot_be_read_is_rejected_with_a_reason(body: bytes) -> None:
    line = b"%08x %b\n" % (crc32(body), body)
    found, rejected = unanswered([line + encode(sent(1))])
    assert [each.request_id for each in found] == ["request-1"]
    assert [each.line for each in rejected] == [line.rstrip()]


def test_torn_lines_hide_no_other() -> None:
    lines = encode(sent(1)) + encode(sent(2))[:-20] + b"\n" + encode(event(1))[:-9] + b"\n"
    found, rejected = unanswered([lines])
    assert ([each.request_id for each in found], rejected) == (["request-1"], [])
