"""What happens to secrets goes into the audit: in batches, through outages, bounded, never a value."""

import asyncio

import pytest

from core.errors import BadField, StoreError
from core.settings import Settings
from core.settings.reference import SecretReference
from core.store import Store
from secrets_manager.audit import SecretAudit
from secrets_manager.audit_page import audit_page
from secrets_manager.resolver import Happened, SecretEvent
from secrets_manager.service import SecretService
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.vault_of_values import VaultOfValues


class Away:
    """A store that takes nothing."""

    def __init__(self, store: Store) -> None:
        self.real, self.away = store, True
        self.audit = self

    async def append(self, chain: str, records: object) -> int:
        if self.away:
            raise StoreError("the store is away")
        return await self.real.audit.append(chain, records)  # type: ignore[arg-type]


def service_of(vault: VaultOfValues, clock: Clock) -> SecretService:
    service = SecretService({}, make=lambda *_, **__: lambda scheme: vault, clock=clock, background=False)
    parameters = {"model": "x", "api_key": "os.environ/azure://key"}
    service.configure(Settings(), {"model_list": [{"model_name": "gpt", "litellm_params": parameters}]})
    return service


async def actions(store: Store, clock: Clock, **query: str) -> list[str]:
    page = await audit_page(store, {"since": "7d", **query}, clock)
    return [one["action"] for one in reversed(page["records"])]


async def test_what_happened_before_there_was_a_store_is_in_it_too(store: Store) -> None:
    vault, clock = VaultOfValues(key="marked-value"), Clock()
    service = service_of(vault, clock)
    audit = SecretAudit("here", service.states, clock=clock)
    service.listen(audit, from_the_start=True)
    vault["key"] = "marked-other"
    service.refresh(None, "refresh by ada")
    assert await audit.flush(store)
    assert await actions(store, clock) == ["secret.fetched", "secret.rotated"]
    page = await audit_page(store, {"action": "rotated"}, clock)
    (rotated,) = page["records"]
    assert (rotated["actor"], rotated["reference"], rotated["version"], rotated["outcome"]) == (
        *("refresh by ada", "azure://key", "2", "ok"),
    )
    assert "marked" not in str(page)


async def test_reads_of_a_cached_value_are_counted_by_the_hour(store: Store) -> None:
    clock = Clock()
    service = service_of(VaultOfValues(key="value"), clock)
    audit = SecretAudit("here", service.states, clock=clock)
    for _ in range(500):
        service.put_into({"api_key": "put-in-per-request:azure://key"}, "gpt")
    await audit.flush(store)
    assert await actions(store, clock) == []
    clock.advance(3601)
    await audit.flush(store)
    (record,) = (await audit_page(store, {"action": "used"}, clock))["records"]
    # One more: the start looks whether it has a value.
    assert record["detail"]["reads"] == 501


async def test_while_the_store_is_away_records_wait_and_what_does_not_fit_is_counted(store: Store) -> None:
    vault, clock = VaultOfValues(key="value"), Clock()
    service = service_of(vault, clock)
    audit = SecretAudit("here", clock=clock, room=5)
    service.listen(audit)
    away = Away(store)
    for number in range(8):
        vault["key"] = f"value {number}"
        service.refresh(None, "test")
    assert not await audit.flush(away)  # type: ignore[arg-type]
    assert (audit.waiting, audit.last_error) == (5, "the store is away")
    away.away = False
    assert await audit.flush(away)  # type: ignore[arg-type]
    found = await audit_page(store, {}, clock)
    assert sorted(one["action"] for one in found["records"]) == [
        *("audit.opened" for _ in range(0)),
        "secret.records_lost",
        *("secret.rotated" for _ in range(5)),
    ]
    (lost,) = [one for one in found["records"] if one["action"] == "secret.records_lost"]
    assert lost["detail"]["records"] == 3


async def test_the_end_writes_what_is_left(store: Store) -> None:
    vault, clock = VaultOfValues(key="value"), Clock()
    service = service_of(vault, clock)
    audit = SecretAudit("here", service.states, clock=clock)
    service.listen(audit, from_the_start=True)
    task = asyncio.create_task(audit.run(store))
    await eventually(lambda: audit.waiting == 0)
    vault["key"] = "second"
    service.refresh(None, "test")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await actions(store, clock) == ["secret.fetched", "secret.rotated", "secret.used"]
    assert (await store.audit.verify()).broken == ()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"since": "yesterday"}, "since must be 30m"),
        ({"limit": "0"}, "limit must be a number from 1 to 1000"),
        ({"cursor": "???"}, "cursor"),
        ({"refrence": "x"}, "is no field of this query"),
        ({"since": "1h", "until": "2h"}, "since is not before until"),
    ],
)
async def test_a_query_that_cannot_be_understood_is_refused(query: dict[str, str], message: str, store: Store) -> None:
    with pytest.raises(BadField, match=message):
        await audit_page(store, query, Clock())


async def test_a_record_that_cannot_be_stored_is_counted_and_the_rest_goes_on(store: Store) -> None:
    clock = Clock()
    audit = SecretAudit("here", clock=clock)
    for at in (clock.now, 1e30, clock.now):
        audit(SecretEvent(at, Happened.FETCHED, SecretReference("azure", "key"), "test"))
    assert await audit.flush(store)
    page = await audit_page(store, {}, clock)
    assert sorted(one["action"] for one in page["records"]) == [
        "secret.fetched",
        "secret.fetched",
        "secret.records_lost",
    ]


async def test_what_happens_to_a_field_stands_under_its_secret(store: Store) -> None:
    clock = Clock()
    audit = SecretAudit("here", clock=clock)
    audit(SecretEvent(clock.now, Happened.DENIED, SecretReference("aws", "db", field="password"), "model gpt"))
    await audit.flush(store)
    for asked in ("os.environ/aws://db#password", "aws://db"):
        (found,) = (await audit_page(store, {"reference": asked}, clock))["records"]
        assert (found["reference"], found["detail"]["field"], found["outcome"]) == ("aws://db", "password", "denied")
