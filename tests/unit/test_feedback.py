"""`POST /orchestration/feedback`, with a real store, journal and ledger."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from core.directory import Directory
from core.ids import new_request_id
from core.journal import Journal
from core.ledger import Ledger
from core.settings import Settings
from core.store import Store
from core.usage import UsageEvent
from plugins.admin.access import anybody
from plugins.admin.feedback import feedback_router


class Proxy:
    """The route behind a key that the test chooses."""

    def __init__(self, store: Store, journal: Journal, ledger: Ledger) -> None:
        ready = asyncio.Event()
        ready.set()
        directory = Directory(Settings(), lambda reference: None, ())
        snapshot = SimpleNamespace(directory=directory)
        runtime: Any = SimpleNamespace(ready=ready, failure=None, store=store, ledger=ledger, snapshot=snapshot)
        app = FastAPI()
        app.include_router(feedback_router(runtime), prefix="/orchestration")
        app.dependency_overrides[anybody] = lambda: self.auth
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")
        self.store, self.journal = store, journal
        self.use("key-ada", "ada")

    def use(self, key: str, user: str | None, role: str = "internal_user") -> None:
        self.auth = SimpleNamespace(
            token=key,
            api_key=key,
            key_alias=None,
            user_id=user,
            team_id=None,
            user_role=role,
            metadata={},
            team_metadata={},
        )

    def answered(self, user: str = "ada") -> str:
        """A request that was answered just now: it is in the journal."""
        name = new_request_id()
        self.journal.append(UsageEvent(name, 1, "chat_completions", 200, key_hash=f"key-{user}", user_id=user))
        return name

    async def give(self, body: Any) -> httpx.Response:
        return await self.http.post("/orchestration/feedback", json=body)


@pytest.fixture
async def proxy(store: Store, tmp_path: Path) -> AsyncIterator[Proxy]:
    journal = Journal(tmp_path / "journal", "here")
    ledger = Ledger(journal, store.usage)
    ledger.start()
    yield Proxy(store, journal, ledger)
    await ledger.stop()
    journal.close()


async def test_feedback_right_after_the_answer_is_recorded(proxy: Proxy) -> None:
    name = proxy.answered()
    got = await proxy.give({"request_id": name, "metric": "helpful", "value": True})
    assert (got.status_code, got.json()) == (
        200,
        {"request_id": name, "metric": "helpful", "value": 1.0, "status": "recorded"},
    )
    assert await proxy.store.feedback.of(name) == {"helpful": 1.0}


async def test_others_and_missing_requests_are_answered_alike(proxy: Proxy) -> None:
    names = [proxy.answered("eve"), new_request_id()]
    answers = [await proxy.give({"request_id": name, "metric": "rating", "value": 1}) for name in names]
    assert [got.status_code for got in answers] == [202, 202]
    assert [got.json()["status"] for got in answers] == ["waiting", "waiting"]
    assert await proxy.store.feedback.of(names[0]) == {}
    missing = await proxy.give({"request_id": "0" * 36, "metric": "rating", "value": 1})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


async def test_an_administrator_speaks_of_every_request_and_a_viewer_of_none(proxy: Proxy) -> None:
    name = proxy.answered()
    for role, expected in (("proxy_admin_viewer", 202), ("proxy_admin", 200)):
        proxy.use("key-root", None, role)
        assert (await proxy.give({"request_id": name, "metric": "rating", "value": 1})).status_code == expected


async def test_each_of_a_list_has_its_own_outcome(proxy: Proxy) -> None:
    name = proxy.answered()
    given = [{"request_id": one, "metric": "rating", "value": 4} for one in (name, new_request_id(), "nothing")]
    got = await proxy.give(given)
    assert got.status_code == 200
    assert [one["status"] for one in got.json()["feedback"]] == ["recorded", "waiting", "not_found"]


GOOD = {"request_id": "r", "metric": "rating", "value": 1}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("text", 'must be {"request_id"'),
        ([], "1 to 1000 objects, not 0"),
        ([GOOD, 7], "[1] must be"),
        ([GOOD, {"request_id": "r", "metric": "rating"}], "[1].value is missing"),
        (GOOD | {"values": 1}, "values is no field of feedback; did you mean 'value'?"),
        (GOOD | {"request_id": 3}, "request_id must be the x-orchestration-request-id of an answer, not 3"),
        (GOOD | {"metric": "Rating"}, 'a letter first, such as rating, not "Rating"'),
        (GOOD | {"metric": "r" * 65}, "metric must be 1 to 64"),
        (GOOD | {"metric": "rating\n"}, "metric must be 1 to 64"),
        (GOOD | {"metric": "latency_p95"}, "metric latency_p95 is measured already"),
        (GOOD | {"value": "5"}, 'value must be a number from -1e12 to 1e12, true or false, not "5"'),
        (GOOD | {"value": None}, "not null"),
        (GOOD | {"value": 1e13}, "not 10000000000000.0"),
    ],
)
async def test_what_is_wrong_is_named(proxy: Proxy, body: Any, says: str) -> None:
    got = await proxy.give(body)
    assert (got.status_code, got.json()["error"]["code"]) == (400, "invalid_field")
    assert says in got.json()["error"]["message"]
