"""Alerts on a real PostgreSQL: told once by instances that race, taken over from one that is killed."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core.alerts import Alert
from core.errors import StoreError
from core.settings.models import AlertEvent
from core.settings.models import Alerts as AlertSettings
from core.store import Store, open_store
from plugins.alerts.message import Message
from plugins.alerts.service import Alerts
from tests.support.eventually import eventually, eventually_sync
from tests.support.json_server import JsonServer
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
RULES = {"channels": {"ops": "os.environ/U"}, "rules": [{"on": list(AlertEvent), "to": ["ops"]}]}
SETTINGS = AlertSettings.model_validate({**RULES, "allow_private_addresses": True})


class Recorder:
    def __init__(self) -> None:
        self.got: list[Message] = []

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.got.append(message)


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[list[Store]]:
    """Two stores of one database, as two instances have them."""
    opened = [open_store(postgres_url) for _ in range(2)]
    await opened[0].upgrade()
    yield opened
    for one in opened:
        await one.close()


def limit(number: int) -> Alert:
    return Alert(AlertEvent.BUDGET_LIMIT, f"member-{number % 50}", f"number {number}", dedupe_key=f"limit|{number}")


def instance(name: str, channel: Recorder, folder: Path) -> Alerts:
    return Alerts(lambda: SETTINGS, lambda reference: None, folder, name, open_=lambda _: channel)


async def test_a_thousand_alerts_that_two_instances_race_to_raise_are_each_delivered_once_and_in_order(
    stores: list[Store], tmp_path: Path
) -> None:
    channel = Recorder()
    instances = [instance(name, channel, tmp_path) for name in ("one", "two")]
    running = [asyncio.create_task(alerts.run(store)) for alerts, store in zip(instances, stores, strict=True)]

    async def race(alerts: Alerts) -> None:
        for number in range(1000):
            alerts.raise_(limit(number))
            if number % 7 == 0:
                await asyncio.sleep(0)

    await asyncio.gather(*(race(alerts) for alerts in instances))
    await eventually(lambda: len(channel.got) >= 1000, within=60)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    counts = await stores[0].alerts.counts()
    assert (counts.pending, counts.dead) == (0, 0)
    texts = [message.text for message in channel.got]
    assert Counter(texts) == Counter(f"number {number}" for number in range(1000))
    for member in range(50):
        numbers = [int(one.text.split()[1]) for one in channel.got if one.subject == f"member-{member}"]
        assert numbers == sorted(numbers)


async def test_a_flood_over_two_instances_is_one_message_now_and_one_later(postgres_url: str, tmp_path: Path) -> None:
    now = time.time()
    stores = [open_store(postgres_url, lambda: now) for _ in range(2)]
    await stores[0].upgrade()
    channel = Recorder()
    instances = [instance(name, channel, tmp_path) for name in ("one", "two")]
    for _ in range(10):
        for alerts in instances:
            alerts.raise_(Alert(AlertEvent.BUDGET_REFUSED, "ada", "refused"))
        await asyncio.gather(*(alerts.flush(store) for alerts, store in zip(instances, stores, strict=True)))
    for later in (0, 301, 301):
        now += later
        await asyncio.gather(*(alerts.deliver(store) for alerts, store in zip(instances, stores, strict=True)))
    assert [message.times for message in channel.got] == [1, 19]
    for one in stores:
        await one.close()


async def test_alerts_wait_while_the_database_is_away(
    postgres_server: PostgresServer, stores: list[Store], tmp_path: Path
) -> None:
    channel = Recorder()
    alerts = instance("one", channel, tmp_path)
    postgres_server.stop()
    for number in range(10):
        alerts.raise_(limit(number))
    with pytest.raises(StoreError):
        await alerts.flush(stores[0])
    postgres_server.start()

    async def told() -> bool:
        await alerts.flush(stores[0])
        await alerts.deliver(stores[0])
        return True

    await eventually(told, within=20)
    assert [message.text for message in channel.got] == [f"number {number}" for number in range(10)]


SENDER = """
import asyncio, sys, time
from pathlib import Path
from core.alerts import Alert
from core.settings.models import AlertEvent, Alerts as AlertSettings
from core.store import open_store
from plugins.alerts.service import Alerts

url, folder, hook, numbers = sys.argv[1:]
rules = [{"on": list(AlertEvent), "to": ["ops"]}]
said = {"channels": {"ops": "os.environ/U"}, "rules": rules, "allow_private_addresses": True}
settings = AlertSettings.model_validate(said)
alerts = Alerts(lambda: settings, lambda reference: hook, Path(folder), f"sender-{time.time_ns()}")

async def main():
    for number in range(int(numbers)):
        alerts.raise_(Alert(AlertEvent.BUDGET_LIMIT, f"member-{number}", f"number {number}", dedupe_key=str(number)))
    await alerts.run(open_store(url))

asyncio.run(main())
"""


@pytest.fixture
def received() -> Iterator[tuple[list[dict[str, object]], str]]:
    got: list[dict[str, object]] = []
    server = JsonServer(0, lambda request: (got.append(json.loads(request.body)), (200, {}, {}))[1])
    yield got, f"webhook+http://127.0.0.1:{server.port}/?secret=key"
    server.stop()


def test_what_a_sender_leaves_that_is_killed_in_the_middle_arrives(
    received: tuple[list[dict[str, object]], str], postgres_url: str, tmp_path: Path
) -> None:
    got, hook = received
    asyncio.run(_upgraded(postgres_url))

    def sender(numbers: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SENDER, postgres_url, str(tmp_path), hook, str(numbers)]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    first = sender(300)
    try:
        eventually_sync(lambda: len(got) >= 20, within=30)
    finally:
        first.kill()
        first.wait()
    asyncio.run(_claims_end(postgres_url))
    second = sender(0)
    try:
        eventually_sync(lambda: len({one["message"] for one in got}) == 300, within=60)
    finally:
        second.kill()
        second.wait()
    twice = [name for name, times in Counter(one["id"] for one in got).items() if times > 1]
    assert len(twice) <= 4, "what was on its way when the sender died"


async def _upgraded(url: str) -> None:
    store = open_store(url)
    await store.upgrade()
    await store.close()


async def _claims_end(url: str) -> None:
    """As after two minutes."""
    from sqlalchemy import text

    store = open_store(url)
    async with store.writing() as connection:
        await connection.execute(text("UPDATE orchestration.alert_deliveries SET claimed_until_ms = 0"))
    await store.close()
