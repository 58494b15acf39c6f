"""Who is refused when a worker falls behind: the least urgent first, and nobody when it does not."""

from __future__ import annotations

import logging
import random

import pytest

from core.asgi import Message
from core.errors import Overloaded
from plugins.log import leave_out_unlogged, unlogged
from plugins.resilience.shedding import Shedder, credential

URGENT, PATIENT = [(b"authorization", b"Bearer sk-urgent")], [(b"x-api-key", b"sk-patient")]


@pytest.fixture
def shedder() -> Shedder:
    shedder = Shedder(0.02, chance=random.Random(7).random)
    shedder.learn(URGENT, 1)
    shedder.learn(PATIENT, 3)
    return shedder


def let_in(shedder: Shedder, who: list[tuple[bytes, bytes]], times: int = 100) -> int:
    found = 0
    for _ in range(times):
        try:
            shedder.arrive(who)
        except Overloaded:
            continue
        found += 1
    return found


def behind(shedder: Shedder, intervals: int, wait: float = 0.1) -> None:
    for _ in range(intervals):
        let_in(shedder, URGENT, 2)
        let_in(shedder, PATIENT, 8)
        shedder.waited(wait)


def test_nobody_is_refused_while_it_keeps_up_or_stumbles(shedder: Shedder) -> None:
    behind(shedder, 50, wait=0.01)
    behind(shedder, 2)
    behind(shedder, 1, wait=0.0)
    assert let_in(shedder, PATIENT) == 100 and shedder.refused == 0


def test_the_least_urgent_go_first(shedder: Shedder) -> None:
    behind(shedder, 12)
    assert let_in(shedder, URGENT) == 100
    assert let_in(shedder, PATIENT) < 20


def test_the_most_urgent_go_only_if_that_was_not_enough(shedder: Shedder) -> None:
    behind(shedder, 70, wait=0.9)
    assert let_in(shedder, PATIENT) == 0
    assert let_in(shedder, URGENT) < 100


def test_a_wait_that_is_not_that_long_is_for_the_less_urgent_to_make_shorter(shedder: Shedder) -> None:
    behind(shedder, 70, wait=0.06)
    assert let_in(shedder, URGENT) == 100
    assert let_in(shedder, PATIENT) < 20
    alone = Shedder(0.02)
    for _ in range(70):
        let_in(alone, PATIENT, 8)
        alone.waited(0.7)
    assert let_in(alone, PATIENT) == 100, "nobody is more urgent"


def test_it_ends_when_it_keeps_up_again(shedder: Shedder) -> None:
    behind(shedder, 12)
    for _ in range(400):
        shedder.waited(0.0)
    assert let_in(shedder, PATIENT) == 100


def test_it_ends_while_nobody_comes(shedder: Shedder) -> None:
    behind(shedder, 12)
    before = shedder.share
    shedder.rested(1)
    assert 0 < shedder.share < before
    shedder.rested(400)
    assert let_in(shedder, PATIENT) == 100


def test_a_stranger_is_neither_first_nor_last(shedder: Shedder) -> None:
    behind(shedder, 12)
    stranger = [(b"authorization", b"Bearer sk-stranger")]
    assert let_in(shedder, URGENT) >= let_in(shedder, stranger) >= let_in(shedder, PATIENT)


def test_0_refuses_nobody() -> None:
    shedder = Shedder(0)
    behind(shedder, 100)
    assert let_in(shedder, PATIENT) == 100


def test_the_error_says_when_to_come_again(shedder: Shedder) -> None:
    behind(shedder, 12)
    with pytest.raises(Overloaded) as refused:
        for _ in range(50):
            shedder.arrive(PATIENT)
    assert refused.value.status == 503 and int(refused.value.headers["retry-after"]) > 0


async def test_what_is_refused_at_the_door_has_no_line_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    access = logging.getLogger("test.access")
    leave_out_unlogged(access)

    async def server(message: Message) -> None:
        if message["type"] == "http.response.start":
            access.warning("%d", message["status"])

    for send, status in ((unlogged(server), 503), (server, 200)):
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b""})
    assert caplog.messages == ["200"]


def test_credentials_are_told_apart_by_a_number() -> None:
    assert isinstance(credential(URGENT), int) and credential(URGENT) != credential(PATIENT)
    assert credential([(b"accept", b"*/*")]) is None
