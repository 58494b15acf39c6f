"""One connection to a real Redis, and many that call over it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from core.state.connection import Connection
from core.state.reservations import StateAway
from core.state.scripts import Scripts
from tests.support.redis import RedisServer

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


async def connected(url: str, patience: float = 5.0) -> Connection:
    pool = ConnectionPool.from_url(url, socket_timeout=None)
    connection = Connection(pool.make_connection(), patience)
    await connection.open()
    return connection


@pytest.fixture(params=["tcp", "unix"])
async def connection(server: RedisServer, request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    connection = await connected(server.url if request.param == "tcp" else server.socket_url)
    yield connection
    await connection.close()


async def test_everybody_has_the_answer_to_what_they_asked(connection: Connection) -> None:
    words = [f"word {number} \u00e9 \r\n" * (number % 50) for number in range(500)]
    answers = await asyncio.gather(*(connection.call(("ECHO", word)) for word in words))
    assert [answer.decode() for answer in answers] == words


async def test_also_after_some_have_left(connection: Connection) -> None:
    leaving = [asyncio.create_task(connection.call(("ECHO", f"gone {number}"))) for number in range(20)]
    staying = [asyncio.create_task(connection.call(("ECHO", f"here {number}"))) for number in range(20)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert await asyncio.gather(*staying) == [f"here {number}".encode() for number in range(20)]
    assert not connection.broken


async def test_a_refusal_is_for_whoever_asked(connection: Connection) -> None:
    answers = await asyncio.gather(
        connection.call(("NONSENSE",)), connection.call(("ECHO", "sense")), return_exceptions=True
    )
    assert isinstance(answers[0], ResponseError)
    assert answers[1] == b"sense"


async def test_what_takes_too_long_ends_the_connection_for_all(server: RedisServer) -> None:
    connection = await connected(server.url, patience=0.2)
    server.freeze()
    try:
        answers = await asyncio.gather(*(connection.call(("ECHO", "x")) for _ in range(3)), return_exceptions=True)
    finally:
        server.thaw()
    assert [type(answer) for answer in answers] == [TimeoutError] * 3
    assert connection.broken
    with pytest.raises(TimeoutError):
        await connection.call(("ECHO", "x"))
    await connection.close()


async def test_an_answer_that_lay_unread_while_this_process_was_busy_is_not_late(server: RedisServer) -> None:
    connection = await connected(server.url, patience=0.05)
    call = asyncio.create_task(connection.call(("ECHO", "x")))
    await asyncio.sleep(0)
    server.client().ping()  # and with that, as synchronous as it is, nothing else happens here
    until = asyncio.get_running_loop().time() + 0.2
    while asyncio.get_running_loop().time() < until:
        pass
    assert await call == b"x"
    await connection.close()


async def test_scripts_go_on_over_a_new_connection(server: RedisServer) -> None:
    scripts = Scripts(server.url, 5.0)
    keys = ["{orchestration}:epoch", "{orchestration}:recovery"]
    assert (await scripts.run("recover", keys, ["one"]))[0] == b"building"
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    answers = await asyncio.gather(*(scripts.run("recover", keys, ["one"]) for _ in range(50)))
    assert all(answer == [b"building", b"one"] for answer in answers)
    server.flushall()
    with server.client() as client:
        client.script_flush()
    assert (await scripts.run("recover", keys, ["two"]))[1] == b"two", "and bring a script that is not there"
    await scripts.close()


async def test_all_who_call_while_nobody_is_there_are_told_at_once() -> None:
    with RedisServer() as server:
        scripts = Scripts(server.url, 5.0)
        await scripts.run("recover", ["{o}:e", "{o}:r"], ["one"])
        server.stop()
        calls = (scripts.run("recover", ["{o}:e", "{o}:r"], ["one"]) for _ in range(50))
        async with asyncio.timeout(2):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StateAway}
        server.start()
        assert await scripts.run("recover", ["{o}:e", "{o}:r"], ["two"]) == [b"building", b"two"]
        await scripts.close()


async def test_closing_ends_what_is_under_way(connection: Connection) -> None:
    call = asyncio.create_task(connection.call(("BLPOP", "never", "0")))
    await asyncio.sleep(0.01)
    await connection.close()
    with pytest.raises(ConnectionError):
        await call
