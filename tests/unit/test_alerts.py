"""Alerts: raised without waiting, told once, delivered in order, tried again, counted where they come in floods."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from core.alerts import Alert
from core.errors import StoreError
from core.settings.models import AlertEvent
from core.settings.models import Alerts as AlertSettings
from core.store import Store, open_store
from core.store.alerts import Raised
from plugins.alerts.message import Message, NotSent
from plugins.alerts.service import ROOM, TRIES, Alerts
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.json_server import Answer, JsonServer, Request

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = list(AlertEvent)
DIGEST = 300_000


class Receiver:
    """An HTTP server that takes webhooks, and behaves as it is told."""

    def __init__(self) -> None:
        self.got: list[dict[str, object]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.free = threading.Event()
        self.free.set()
        self.server = JsonServer(0, self._answer)

    def _answer(self, request: Request) -> Answer:
        self.free.wait(10)
        self.got.append(json.loads(request.body))
        return self.status, self.headers, {}

    @property
    def url(self) -> str:
        return f"webhook+http://127.0.0.1:{self.server.port}/hook?secret=the-signing-key"

    @property
    def messages(self) -> list[object]:
        return [one["message"] for one in self.got]


class Recorder:
    """A channel that keeps what it is given, or fails as it is told."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.error: NotSent | None = None

    async def send(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.got.append(message)

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.free.set()
    receiver.server.stop()


@pytest.fixture
async def books(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    """A store of SQLite that reads the test's clock."""
    store = open_store(f"sqlite:///{tmp_path}/store.db", clock)
    await store.upgrade()
    yield store
    await store.close()


@pytest.fixture
def channel() -> Recorder:
    return Recorder()


def settings(*channels: str, **more: object) -> AlertSettings:
    names = channels or ("ops",)
    return AlertSettings.model_validate(
        {
            "channels": {name: f"os.environ/{name.upper()}_URL" for name in names},
            "rules": [{"on": EVERYTHING, "to": names}],
            "allow_private_addresses": True,
            **more,
        }
    )


@pytest.fixture
def make(tmp_path: Path, clock: Clock, channel: Recorder) -> Callable[..., Alerts]:
    """Alerts of an instance whose every channel is the recorder, with a spool in the test's folder."""

    def make(instance: str = "one", said: AlertSettings | None = None, **more: object) -> Alerts:
        found = said or settings()
        more = {"clock": clock, "open_": lambda name: channel, **more}
        return Alerts(lambda: found, lambda reference: None, tmp_path / "spool", instance, **more)  # type: ignore[arg-type]

    return make


def threshold(share: float, member: str = "ada", **more: object) -> Alert:
    key = f"budget_threshold|team~1|0|{member}|{share}"
    fields = {"severity": "warning", **more}
    return Alert(AlertEvent.BUDGET_THRESHOLD, member, f"{share:.0%} spent", {"spent": "4.00"}, key, **fields)  # type: ignore[arg-type]


def refusal(member: str = "ada") -> Alert:
    return Alert(AlertEvent.BUDGET_REFUSED, member, "a request was refused")


async def told(alerts: Alerts, store: Store) -> int:
    """Record and deliver everything that is due now."""
    await alerts.flush(store)
    return await alerts.deliver(store)


# -- once, and in order ----------------------------------------------------------------------------------------------


async def test_an_alert_is_told_to_every_channel_of_its_rules(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    alerts = make(said=settings("ops", "finance"))
    alerts.raise_(threshold(0.5))
    assert await told(alerts, books) == 2
    assert channel.texts == ["50% spent", "50% spent"]
    assert {message.id.partition(":")[2] for message in channel.got} == {"ops", "finance"}


async def test_what_no_rule_names_is_not_kept(books: Store, make: Callable[..., Alerts], tmp_path: Path) -> None:
    said = settings(rules=[{"on": ["breaker_open"], "to": ["ops"]}])
    alerts = make(said=said)
    alerts.raise_(threshold(0.5))
    assert (alerts.waiting, list((tmp_path / "spool").iterdir())) == (0, [])


async def test_two_thresholds_of_one_request_arrive_in_order_even_where_the_first_fails(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    alerts.raise_(threshold(0.8))
    alerts.raise_(threshold(0.5, "bob"))
    channel.error = NotSent("not now")
    assert await told(alerts, books) == 0
    channel.error = None
    clock.advance(5)
    assert await told(alerts, books) == 3
    of_ada = [message.text for message in channel.got if message.subject == "ada"]
    assert of_ada == ["50% spent", "80% spent"]


async def test_the_same_alert_from_two_instances_is_told_once(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    one, two = make("one"), make("two")
    for alerts in (one, two, one):
        alerts.raise_(threshold(0.5))
        await told(alerts, books)
    assert channel.texts == ["50% spent"]


async def test_it_is_not_told_again_after_a_restart(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    for instance in ("one", "two"):
        alerts = make(instance)
        alerts.raise_(threshold(0.5))
        await told(alerts, books)
    assert len(channel.got) == 1


@pytest.mark.slow
async def test_a_thousand_alerts_raised_by_two_instances_at_once_are_each_delivered_once(
    tmp_path: Path, make: Callable[..., Alerts], channel: Recorder
) -> None:
    stores = [open_store(f"sqlite:///{tmp_path}/race.db") for _ in range(2)]
    await stores[0].upgrade()
    instances = [make("one", clock=time.time), make("two", clock=time.time)]

    async def race(alerts: Alerts, store: Store) -> None:
        for number in range(1000):
            alerts.raise_(threshold(0.5, f"member-{number}"))
            if number % 50 == 0:
                await told(alerts, store)
        await told(alerts, store)

    await asyncio.gather(*(race(alerts, store) for alerts, store in zip(instances, stores, strict=True)))
    await told(instances[0], stores[0])
    assert sorted(message.subject for message in channel.got) == sorted(f"member-{n}" for n in range(1000))
    for store in stores:
        await store.close()


# -- floods ----------------------------------------------------------------------------------------------------------


async def test_of_a_flood_the_first_is_told_at_once_and_the_rest_together(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    for _ in range(3):
        for _ in range(100):
            alerts.raise_(refusal())
        await told(alerts, books)
        clock.advance(60)
    assert [message.times for message in channel.got] == [100]
    clock.advance(150)
    await told(alerts, books)
    assert [message.times for message in channel.got] == [100, 200]
    assert "a request was refused (200 times)" in channel.got[-1].body


async def test_a_flood_on_two_instances_is_one_flood(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    one, two = make("one"), make("two")
    for alerts in (one, two, two):
        alerts.raise_(refusal())
        await told(alerts, books)
    clock.advance(301)
    for alerts in (one, two):
        await told(alerts, books)
    assert [message.times for message in channel.got] == [1, 2]


async def test_when_a_flood_is_over_the_next_is_told_at_once_again(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    for _ in range(3):
        alerts.raise_(refusal())
        await told(alerts, books)
        clock.advance(301)
        await told(alerts, books)
    assert [message.times for message in channel.got] == [1, 1, 1]


async def test_floods_of_different_subjects_do_not_mix(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    alerts = make()
    alerts.raise_(refusal("ada"))
    alerts.raise_(refusal("bob"))
    await told(alerts, books)
    assert sorted(message.subject for message in channel.got) == ["ada", "bob"]


# -- raising ---------------------------------------------------------------------------------------------------------


async def test_raising_neither_waits_nor_fails_whatever_it_is_given(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    alerts = make()
    odd = Alert(AlertEvent.BUDGET_OVERRUN, "sur\ud800rogate nul\0", "over", {"thing": object()})
    alerts.raise_(odd)
    assert await told(alerts, books) == 1
    assert channel.got[0].details["thing"].startswith("<object")


async def test_what_finds_no_room_is_counted_and_said_loudly(
    make: Callable[..., Alerts], caplog: pytest.LogCaptureFixture
) -> None:
    alerts = make()
    for number in range(ROOM + 5):
        alerts.raise_(threshold(0.5, str(number)))
    assert (alerts.waiting, alerts.lost) == (ROOM, 5)
    assert "alerts are lost" in caplog.text


async def test_raising_is_cheap(make: Callable[..., Alerts]) -> None:
    alerts = make()
    start = time.perf_counter()
    for number in range(1000):
        alerts.raise_(threshold(0.5, str(number)))
    assert time.perf_counter() - start < 1.0, "a millisecond each, on the slowest machine"


# -- nothing is lost -------------------------------------------------------------------------------------------------


async def test_alerts_wait_while_the_store_is_away_and_are_told_when_it_is_back(
    tmp_path: Path, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    away = open_store(f"sqlite:///{tmp_path}/nowhere/store.db", clock)
    alerts.raise_(threshold(0.5))
    for _ in range(2):
        alerts.raise_(refusal())
        with pytest.raises(StoreError):
            await alerts.flush(away)
    alerts.raise_(threshold(0.8))
    assert alerts.waiting == 3
    await away.upgrade()
    await told(alerts, away)
    assert [(message.text, message.times) for message in channel.got if message.subject == "ada"] == [
        ("50% spent", 1),
        ("a request was refused", 2),
        ("80% spent", 1),
    ]
    await away.close()


KILLED = """
import os, sys, signal
from pathlib import Path
from core.alerts import Alert
from core.settings.models import AlertEvent, Alerts as AlertSettings
from plugins.alerts.service import Alerts
rules = [{"on": list(AlertEvent), "to": ["ops"]}]
said = AlertSettings.model_validate({"channels": {"ops": "os.environ/U"}, "rules": rules})
alerts = Alerts(lambda: said, lambda reference: None, Path(sys.argv[1]), "killed")
for number in range(20):
    alerts.raise_(Alert(AlertEvent.BUDGET_LIMIT, "ada", f"number {number}", dedupe_key=str(number)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
async def test_what_a_killed_process_raised_is_told_by_another_in_its_order(
    books: Store, make: Callable[..., Alerts], channel: Recorder, tmp_path: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "spool")], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    await told(make(), books)
    assert channel.texts == [f"number {number}" for number in range(20)]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_line_that_was_cut_off_does_not_keep_the_others_back(
    books: Store, make: Callable[..., Alerts], channel: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir()
    line = threshold(0.5).at(1).to_json()
    (tmp_path / "spool" / "dead-000001.jsonl").write_bytes(line + b"\n" + line[:30])
    await told(make(), books)
    assert channel.texts == ["50% spent"]


async def test_what_a_living_process_spools_is_left_to_it(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    living, other = make("living"), make("other")
    living.raise_(threshold(0.5))
    await told(other, books)
    assert channel.got == []
    await told(living, books)
    assert channel.texts == ["50% spent"]


async def test_a_folder_that_takes_nothing_leaves_alerts_in_memory(
    books: Store, make: Callable[..., Alerts], channel: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_text("not a folder")
    alerts = make()
    alerts.raise_(threshold(0.5))
    await told(alerts, books)
    assert channel.texts == ["50% spent"]
    assert "wait in memory alone" in caplog.text


async def test_a_delivery_that_its_sender_died_with_is_taken_over_with_the_same_id(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    await alerts.flush(books)
    (taken,) = await books.alerts.claim("dead", 10)
    assert await make("other").deliver(books) == 0
    clock.advance(121)
    assert await make("other").deliver(books) == 1
    assert [message.id for message in channel.got] == [taken.id]
    await books.alerts.failed(taken, "too late to say so", None)
    assert (await books.alerts.counts()).dead == 0


async def test_sent_but_not_marked_is_marked_later_and_not_sent_again(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    await alerts.flush(books)

    async def away(delivery: object) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr(books.alerts, "sent", away)
        await alerts.deliver(books)
    clock.advance(121)
    await alerts.deliver(books)
    assert len(channel.got) == 1
    assert (await books.alerts.counts()).pending == 0


# -- failures --------------------------------------------------------------------------------------------------------


async def test_a_failed_delivery_is_tried_again_further_and_further_apart_until_it_is_given_up(
    books: Store, make: Callable[..., Alerts], channel: Recorder, clock: Clock
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    await alerts.flush(books)
    channel.error = NotSent("down")
    begin, tries = clock.now, 0
    while (await books.alerts.counts()).pending:
        await alerts.deliver(books)
        tries += 1
        due = (await books.alerts.counts()).next_ms
        if due is not None:
            clock.advance(max(0.0, due / 1000 - clock.now))
    assert tries == TRIES
    assert 3600 < clock.now - begin < 15 * 3600
    (dead,) = await books.alerts.dead()
    assert (dead.attempts, dead.last_error, dead.alert.message) == (TRIES, "down", "50% spent")


async def test_what_was_given_up_can_be_sent_again(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    channel.error = NotSent("wrong key", retryable=False)
    await told(alerts, books)
    channel.error = None
    (dead,) = await books.alerts.dead()
    assert await books.alerts.resend(dead.id)
    assert not await books.alerts.resend(dead.id)
    assert not await books.alerts.resend("no-such:ops")
    await alerts.deliver(books)
    assert [message.id for message in channel.got] == [dead.id]


async def test_one_that_is_given_up_lets_the_next_of_its_subject_pass(
    books: Store, make: Callable[..., Alerts], channel: Recorder
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5))
    channel.error = NotSent("wrong key", retryable=False)
    await told(alerts, books)
    channel.error = None
    alerts.raise_(threshold(0.8))
    await told(alerts, books)
    assert channel.texts == ["80% spent"]


async def test_a_bug_in_a_channel_is_a_failure_and_its_words_are_not_repeated(
    books: Store, make: Callable[..., Alerts], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def send(self, message: Message) -> None:
            raise RuntimeError("slack://token-that-is-secret")

    alerts = make(open_=lambda name: Broken())
    alerts.raise_(threshold(0.5))
    await told(alerts, books)
    assert (await books.alerts.counts()).pending == 1
    assert "token-that-is-secret" not in caplog.text


async def test_a_channel_that_was_removed_is_a_dead_letter(books: Store, make: Callable[..., Alerts]) -> None:
    await books.alerts.raise_([Raised(threshold(0.5).at(1), ("gone",))], DIGEST)
    said = settings()
    alerts = Alerts(lambda: said, lambda reference: None, None, "one", clock=books.clock)
    await alerts.deliver(books)
    (dead,) = await books.alerts.dead()
    assert "no 'gone' any more" in str(dead.last_error)


async def test_what_cannot_come_again_is_forgotten_after_a_while(
    books: Store, make: Callable[..., Alerts], clock: Clock
) -> None:
    alerts = make()
    alerts.raise_(threshold(0.5, over_ms=int(clock.now * 1000)))
    alerts.raise_(threshold(0.8))
    alerts.raise_(refusal())
    await told(alerts, books)
    clock.advance(91 * 86_400)
    assert await books.alerts.forget() == 2


# -- a real receiver -------------------------------------------------------------------------------------------------


def wired(receiver: Receiver, tmp_path: Path, clock: Callable[[], float], **more: object) -> Alerts:
    """Alerts whose channel `ops` is the receiver, by the configuration alone."""
    said = settings(**more)
    return Alerts(lambda: said, lambda reference: receiver.url, tmp_path / "spool", "one", clock=clock)


async def test_a_webhook_gets_the_alert(books: Store, receiver: Receiver, tmp_path: Path, clock: Clock) -> None:
    alerts = wired(receiver, tmp_path, clock)
    alerts.raise_(threshold(0.5))
    assert await told(alerts, books) == 1
    (got,) = receiver.got
    assert str(got.pop("id")).endswith(":ops")
    assert got == {
        "event": "budget_threshold",
        "severity": "warning",
        "subject": "ada",
        "message": "50% spent",
        "details": {"spent": "4.00"},
        "times": 1,
        "time_ms": int(clock.now * 1000),
    }


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_receiver_in_trouble_gets_it_later_and_not_before_it_wants_to(
    status: int, books: Store, receiver: Receiver, tmp_path: Path, clock: Clock
) -> None:
    alerts = wired(receiver, tmp_path, clock)
    receiver.status, receiver.headers = status, {"retry-after": "600"}
    alerts.raise_(threshold(0.5))
    await told(alerts, books)
    receiver.status = 200
    clock.advance(599)
    assert await told(alerts, books) == 0
    clock.advance(2)
    assert await told(alerts, books) == 1
    assert len({one["id"] for one in receiver.got}) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404])
async def test_what_will_not_change_is_given_up_at_once(
    status: int, books: Store, receiver: Receiver, tmp_path: Path, clock: Clock
) -> None:
    alerts = wired(receiver, tmp_path, clock)
    receiver.status, receiver.headers = status, {"location": "http://169.254.169.254/"}
    alerts.raise_(threshold(0.5))
    await told(alerts, books)
    (dead,) = await books.alerts.dead()
    assert f"127.0.0.1 answered with status {status}" in str(dead.last_error)
    assert len(receiver.got) == 1, "redirects are not followed"


async def test_a_receiver_that_is_away_gets_it_when_it_is_back(
    books: Store, tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    gone = JsonServer(0, lambda request: (200, {}, {}))
    port = gone.port
    gone.stop()
    said = settings()
    alerts = Alerts(
        lambda: said, lambda reference: f"webhook+http://127.0.0.1:{port}/?secret=x", None, "one", clock=clock
    )
    alerts.raise_(threshold(0.5))
    assert await told(alerts, books) == 0
    back = JsonServer(port, lambda request: (200, {}, {}))
    clock.advance(5)
    assert await told(alerts, books) == 1
    back.stop()


async def test_a_slow_receiver_delays_nobody_else(tmp_path: Path, receiver: Receiver, channel: Recorder) -> None:
    store = open_store(f"sqlite:///{tmp_path}/real.db")
    await store.upgrade()
    said = settings("slow", "quick")
    receiver.free.clear()
    real = wired(receiver, tmp_path, time.time)
    alerts = Alerts(
        lambda: said,
        lambda reference: None,
        tmp_path / "spool",
        "one",
        open_=lambda name: channel if name == "quick" else real._open("ops"),
    )
    running = asyncio.create_task(alerts.run(store))
    for number in range(3):
        alerts.raise_(threshold(0.5, f"member-{number}"))
    await eventually(lambda: len(channel.got) == 3, within=5)
    assert receiver.got == []
    receiver.free.set()
    await eventually(lambda: len(receiver.got) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await store.alerts.counts()).pending == 0
    await store.close()


async def test_alerts_raised_on_another_thread_are_told_soon(
    tmp_path: Path, make: Callable[..., Alerts], channel: Recorder
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/real.db")
    await store.upgrade()
    alerts = make(clock=time.time)
    running = asyncio.create_task(alerts.run(store))
    await asyncio.sleep(0)
    await asyncio.to_thread(alerts.raise_, threshold(0.5))
    await eventually(lambda: channel.texts == ["50% spent"], within=5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


async def test_what_waits_at_the_end_is_recorded_for_the_next_start(
    tmp_path: Path, make: Callable[..., Alerts]
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/real.db")
    await store.upgrade()
    alerts = make(clock=time.time)
    running = asyncio.create_task(alerts.run(store))
    await asyncio.sleep(0)
    running.cancel()
    alerts.raise_(threshold(0.5))
    await asyncio.gather(running, return_exceptions=True)
    assert (await store.alerts.counts()).pending == 1
    await store.close()


async def test_people_are_told_that_the_store_is_away_and_that_it_is_back(
    tmp_path: Path, make: Callable[..., Alerts], channel: Recorder
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/nowhere/store.db")
    alerts = make(clock=time.time, store_patience=0.0)
    running = asyncio.create_task(alerts.run(store))
    await eventually(lambda: any("has not answered" in text for text in channel.texts))
    assert sum("has not answered" in text for text in channel.texts) == 1
    await store.upgrade()
    await eventually(lambda: any("answers again" in text for text in channel.texts), within=20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


async def test_a_channel_can_be_tried_at_once(receiver: Receiver, tmp_path: Path, clock: Clock) -> None:
    alerts = wired(receiver, tmp_path, clock)
    await alerts.test("ops")
    assert receiver.got[0]["event"] == "test"
    receiver.status = 401
    with pytest.raises(NotSent, match="status 401"):
        await alerts.test("ops")
    with pytest.raises(NotSent, match="no 'nobody'"):
        await alerts.test("nobody")


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404, 500, None])
async def test_the_secrets_of_a_channels_url_appear_nowhere(
    status: int | None, books: Store, receiver: Receiver, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ("the-signing-key", "secret-path", "secret-query", "secret-user", "secret-password")
    place = f"secret-user:secret-password@127.0.0.1:{receiver.server.port}"
    url = f"webhook+http://{place}/secret-path?token=secret-query&secret=the-signing-key"
    if status is None:
        receiver.server.stop()
    receiver.status = status or 200
    said = settings("ops", "apprise")
    references = {
        "os.environ/OPS_URL": url,
        "os.environ/APPRISE_URL": f"json://{place}/secret-path?+X-Key=secret-query",
    }
    alerts = Alerts(lambda: said, references.get, tmp_path / "spool", "one", clock=clock)
    alerts.raise_(threshold(0.5))
    await told(alerts, books)
    await books.close()
    errors = [one.last_error for one in await books.alerts.dead()]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode(errors="replace")
    shown = caplog.text + written + repr(errors) + repr(alerts._open("ops")) + repr(alerts._open("apprise"))
    assert not [secret for secret in secrets if secret in shown]


def test_no_environment_variable_of_ours_reaches_apprise(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.alerts.apprise_channel import AppriseChannel
    from plugins.alerts.destination import Reach

    monkeypatch.setitem(os.environ, "LITELLM_MASTER_KEY", "sk-secret")
    monkeypatch.setitem(os.environ, "HTTPS_PROXY", "http://proxy")
    passed = AppriseChannel("json://x", Reach())._environment()
    assert "LITELLM_MASTER_KEY" not in passed
    assert "HTTPS_PROXY" not in passed
    assert AppriseChannel("json://x", Reach(private=True))._environment()["HTTPS_PROXY"] == "http://proxy"
