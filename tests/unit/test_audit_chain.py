"""What holds audit records together: the hash as it is documented, and whom a chain holds on to."""

import hashlib
import json
from dataclasses import replace

from core.audit import OPENED, AuditRecord, ChainReader, Entry, Head, chained, genesis, record_hash
from core.store import AuditQuery, Store


def record(number: int) -> AuditRecord:
    return AuditRecord(1_000_000 + number, "ada", "secret.fetched", "azure://ключ", id=f"id-{number}")


def chain(*records: AuditRecord) -> list[Entry]:
    return chained(Head("one", 0, genesis("one")), records)


def first_broken(entries: list[Entry]) -> tuple[int, str] | None:
    reader = ChainReader("one")
    for entry in entries:
        reader.read(entry)
    return None if reader.broken is None else (reader.broken.seq, reader.broken.what)


def test_a_hash_is_what_the_documentation_says_it_is() -> None:
    begin = '["litellm-orchestration audit chain 1","one"]'
    first = (
        '["litellm-orchestration audit record 1","one",1,"id-1",1000001,"ada","secret.fetched",'
        '"azure://\\u043a\\u043b\\u044e\\u0447",null,null,"ok","{}","'
    )
    (entry,) = chain(record(1))
    assert entry.previous_hash == hashlib.sha256(begin.encode()).hexdigest()
    assert entry.hash == hashlib.sha256(f'{first}{entry.previous_hash}"]'.encode()).hexdigest()


def test_a_record_that_was_replaced_with_a_hash_of_its_own_is_noticed_at_the_one_behind_it() -> None:
    entries = chain(record(1), record(2), record(3))
    assert first_broken(entries) is None
    forged = replace(entries[1].record, actor="nobody")
    entries[1] = replace(entries[1], record=forged, hash=record_hash("one", 2, forged, entries[1].previous_hash))
    assert first_broken(entries) == (3, "record 3 does not follow record 2: one of them was replaced")


def test_a_chain_does_not_begin_with_another_chains_records() -> None:
    (entry,) = chained(Head("one", 0, genesis("two")), [record(1)])
    assert first_broken([entry]) == (
        1,
        "record 1 does not follow the beginning of this chain: one of them was replaced",
    )


async def test_a_new_chain_holds_on_to_what_none_holds_on_to_yet(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.audit.append(name, [replace(record(1), id=name)])
    await store.audit.append("a", [record(2)])
    await store.audit.append("d", [record(3)])
    page = await store.audit.query(AuditQuery(0, 2_000_000, action=OPENED))
    held = {
        entry.chain: [(one[0], one[1]) for one in json.loads(entry.record.detail)["chains"]] for entry in page.entries
    }
    # `d` need not name the end of b: c does, and d names c. What a wrote since b was begun is new.
    assert held == {"a": [], "b": [("a", 2)], "c": [("b", 2)], "d": [("a", 3), ("c", 2)]}
