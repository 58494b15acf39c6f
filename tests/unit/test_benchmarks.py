"""The parts of the benchmarks that their figures rest on: the intervals, the verdicts and the client."""

from __future__ import annotations

from contextlib import closing

import pytest

from benchmarks.client import Clients, Connection, Interrupted, Window, post
from benchmarks.figures import Bound, Figure, spread
from tests.support.provider import FakeProvider

CHAT = {"model": "small", "messages": [{"role": "user", "content": "one two"}]}


class TestFigures:
    # The ranks of the published tables for the 95 % interval of a median.
    @pytest.mark.parametrize(("count", "low", "high"), [(6, 1, 6), (10, 2, 9), (11, 2, 10), (20, 6, 15), (25, 8, 18)])
    def test_the_interval_of_a_median_is_that_of_the_tables(self, count: int, low: int, high: int):
        found = spread([float(rank) for rank in range(count, 0, -1)])
        assert (found.low, found.high) == (low, high)
        assert found.median == (count + 1) / 2

    def test_a_bound_is_kept_by_the_value_or_within_noise_by_the_interval(self):
        strict, lenient = Bound(">=", 1.0), Bound(">=", 1.0, within_noise=True)
        assert Figure("rate", 0.99, low=0.95, high=1.02, must=strict).met is False
        assert Figure("rate", 0.99, low=0.95, high=1.02, must=lenient).met is True
        assert Figure("rate", 0.90, low=0.85, high=0.95, must=lenient).met is False
        assert Figure("rate", 0.99).met is None

    def test_what_must_be_nothing_is_not_met_by_one(self):
        assert Figure("missing", 1, must=Bound("==", 0)).met is False
        assert Figure("missing", 0, must=Bound("==", 0)).met is True


class TestClient:
    async def test_every_request_of_a_window_is_sent_and_timed_once(self, provider: FakeProvider):
        window = Window()
        async with Clients(provider.port, 4) as clients:
            await clients.send(post("/v1/chat/completions", CHAT, "sk-benchmark"), 10, window)
        assert len(window.latencies) == 10 == provider.totals.attempts
        assert 0 < min(window.latencies) <= window.seconds

    async def test_a_stream_arrives_whole(self, provider: FakeProvider):
        with closing(await Connection.open(provider.port)) as connection:
            answer = await connection.ask(post("/v1/chat/completions", {**CHAT, "stream": True}, "sk-benchmark"))
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n")

    async def test_half_an_answer_is_no_answer(self, provider: FakeProvider):
        provider.script(cut_after_chunks=2)
        with closing(await Connection.open(provider.port)) as connection, pytest.raises(Interrupted):
            await connection.ask(post("/v1/chat/completions", {**CHAT, "stream": True}, "sk-benchmark"))

    async def test_a_window_of_failures_is_refused(self, provider: FakeProvider):
        provider.script(status=500)
        async with Clients(provider.port, 1) as clients:
            with pytest.raises(ExceptionGroup) as failure:
                await clients.send(post("/v1/chat/completions", CHAT, "sk-benchmark"), 3, Window())
        assert "answered 500" in str(failure.value.exceptions[0])
