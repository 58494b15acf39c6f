"""What files and jobs in the store promise, for each database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from core.context import Caller
from core.store import Store
from core.store.batches import BatchFile, Job, JobKind, Owner, Purpose

ADA, BOB = (
    Caller(key_hash="k-ada", user_id="ada", team_id="red"),
    Caller(key_hash="k-bob", user_id="bob", team_id="red"),
)
NOBODY = Caller()
NOW = 1_800_000_000_000


def file(file_id: str, owner: Caller = ADA, **more: Any) -> BatchFile:
    return BatchFile(
        file_id, Purpose.INPUT, Owner.of(owner), "small", "small", "/v1/embeddings", created_ms=NOW, **more
    )


def job(job_id: str, owner: Caller = ADA, **more: Any) -> Job:
    values: dict[str, Any] = {
        "kind": JobKind.BATCH,
        "request_id": f"r-{job_id}",
        "owner": Owner.of(owner),
        "model": "small",
        "deployment": "small-id",
        "provider_model": "openai/small",
        "endpoint": "/v1/chat/completions",
        "input_file": "file-1",
        "reserved_nano": 1000,
        "status": "validating",
        "created_ms": NOW,
        "next_ms": NOW,
    }
    return Job(id=job_id, **{**values, **more})


async def a_file_and_a_job_are_found_as_they_were_kept(store: Store) -> None:
    kept = file("f", lines=3, input_tokens=7, bound_nano=1 << 40, unbounded="line 1: no price", prices="abc")
    await store.batches.keep_files([kept])
    await store.batches.keep_job(job("j"))
    assert await store.batches.file("f") == kept
    assert await store.batches.job("j") == job("j")
    assert await store.batches.file("other") is None
    assert await store.batches.job("other") is None


async def what_is_known_stays_with_its_owner(store: Store) -> None:
    await store.batches.keep_files([file("f")])
    await store.batches.keep_files([file("f", BOB)])
    await store.batches.keep_job(job("j"))
    await store.batches.keep_job(job("j", BOB, request_id="another"))
    found, known = await store.batches.file("f"), await store.batches.job("j")
    assert found is not None and found.owner == Owner.of(ADA)
    assert known is not None and (known.owner, known.request_id) == (Owner.of(ADA), "r-j")


async def everybody_lists_their_own(store: Store) -> None:
    team = Caller(key_hash="k-team", team_id="red")
    ada_by_another_key = Caller(key_hash="k-app", user_id="ada")
    bob_by_ada_s_key = Caller(key_hash="k-ada", user_id="bob")
    ada_s_key_alone = Caller(key_hash="k-ada")
    await store.batches.keep_files([file("a"), file("b", BOB), file("t", team)])
    for one in (job("ja"), job("jb", BOB), job("jt", team), job("response", kind=JobKind.RESPONSE)):
        await store.batches.keep_job(one)
    assert {one.id for one in await store.batches.files_of(ADA, 10)} == {"a", "t"}
    assert {one.id for one in await store.batches.jobs_of(BOB, JobKind.BATCH, 10)} == {"jb", "jt"}
    assert await store.batches.files_of(NOBODY, 10) == []
    assert {one.id for one in await store.batches.files_of(ada_s_key_alone, 10)} == {"a"}
    assert {one.id for one in await store.batches.files_of(bob_by_ada_s_key, 10)} == {"b"}
    for caller in (ADA, BOB, team, NOBODY, ada_by_another_key, bob_by_ada_s_key, ada_s_key_alone):
        listed = {one.id for one in await store.batches.files_of(caller, 10)}
        for one in (file("a"), file("b", BOB), file("t", team)):
            assert one.owner.is_(caller) == (one.id in listed)


async def a_job_belongs_to_whoever_claims_it_first(store: Store) -> None:
    for number in range(5):
        await store.batches.keep_job(job(f"j{number}"))
    claims = await asyncio.gather(*(store.batches.claim(NOW, NOW + 1000) for _ in range(4)))
    claimed = [one.id for claim in claims for one in claim]
    assert sorted(claimed) == [f"j{number}" for number in range(5)]
    assert await store.batches.claim(NOW + 999, NOW + 2000) == []
    assert len(await store.batches.claim(NOW + 1000, NOW + 2000)) == 5, "whoever held them is gone"


async def a_job_is_claimed_when_it_is_due_and_not_over(store: Store) -> None:
    await store.batches.keep_job(job("later", next_ms=NOW + 10))
    await store.batches.keep_job(job("over"))
    await store.batches.finish("over", "completed", NOW)
    assert await store.batches.claim(NOW, NOW + 100) == []
    [later] = await store.batches.claim(NOW + 10, NOW + 100)
    await store.batches.look_again("later", "in_progress", NOW + 50)
    assert await store.batches.claim(NOW + 49, NOW + 100) == []
    [again] = await store.batches.claim(NOW + 50, NOW + 100)
    assert again == replace(later, status="in_progress", next_ms=NOW + 50)
    await store.batches.look_again("over", "in_progress", NOW)
    over = await store.batches.job("over")
    assert over is not None and (over.status, over.done_ms) == ("completed", NOW)


async def what_is_long_over_is_forgotten_and_what_goes_on_is_not(store: Store) -> None:
    await store.batches.keep_files([file("f")])
    await store.batches.keep_job(job("over"))
    await store.batches.keep_job(job("on"))
    await store.batches.finish("over", "completed", NOW)
    await store.batches.forget(NOW + 91 * 86_400_000)
    assert await store.batches.file("f") is None
    assert await store.batches.job("over") is None
    assert await store.batches.job("on") is not None


CASES: list[Callable[[Store], Coroutine[None, None, None]]] = [
    a_file_and_a_job_are_found_as_they_were_kept,
    what_is_known_stays_with_its_owner,
    everybody_lists_their_own,
    a_job_belongs_to_whoever_claims_it_first,
    a_job_is_claimed_when_it_is_due_and_not_over,
    what_is_long_over_is_forgotten_and_what_goes_on_is_not,
]
