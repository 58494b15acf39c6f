"""A proxy that is killed, or told to stop, in the middle of its work: the books hold what the clients received."""

from __future__ import annotations

import pytest

from benchmarks.durability import CONNECTIONS, Reckoning, reckon

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


def assert_books_agree(found: Reckoning) -> None:
    assert found.missing == set()
    assert found.received.repeated == found.books.calls_twice == 0
    assert len(found.unheard) <= found.in_flight <= CONNECTIONS
    assert found.cost_difference == 0
    assert sum(found.books.costs.values()) == found.books.attempts_cost > 0


async def test_no_answer_that_a_client_received_is_missing_after_kill_9():
    found = await reckon(1_500, blow="SIGKILL")
    assert len(found.received.costs) == 1_500
    assert found.in_flight > 0, "the blow fell on nobody"
    assert_books_agree(found)
    # What the provider has worked for and nobody recorded was in flight too.
    assert found.attempts - len(found.books.costs) <= found.in_flight


async def test_a_proxy_told_to_stop_leaves_nothing_in_its_journal():
    found = await reckon(800, blow="SIGTERM")
    assert found.in_flight > 0, "the proxy was idle when it was told to stop"
    assert found.left_in_journal == 0
    assert_books_agree(found)
