"""Resolving references: one call for each secret and TTL, refresh ahead, outages, rotation, leases. No real time."""

import asyncio
import copy
import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from core.settings.models import SecretCache
from core.settings.reference import SecretReference
from secrets_manager.provider import Lease, Reason, SecretUnavailable
from secrets_manager.resolver import Happened, Resolver, SecretEvent
from secrets_manager.value import MASK, MaskedText, SecretValue
from tests.support.clock import Clock
from tests.support.vault_of_values import VaultOfValues

KEY = SecretReference("azure", "key")


class Bench:
    """A resolver in front of a vault of values, on a clock of the test's own, without threads."""

    def __init__(self, **values: str) -> None:
        self.vault, self.clock = VaultOfValues(**values), Clock(1_000_000.0)
        self.slept: list[float] = []
        self.resolver = Resolver(
            lambda scheme: self.vault, SecretCache(), clock=self.clock, sleep=self.slept.append, background=False
        )
        self.events: list[SecretEvent] = []
        self.resolver.listen(self.events.append)

    def happened(self) -> list[Happened]:
        return [event.what for event in self.events]

    def text(self, reference: SecretReference = KEY) -> str:
        return self.resolver.resolve(reference, "test").value.reveal()

    def pass_time(self, seconds: float, step: float = 5.0) -> None:
        """Time goes by, and the background looks what is due."""
        end = self.clock() + seconds
        while self.clock() < end:
            self.clock.advance(min(step, end - self.clock()))
            self.resolver.tick()


@pytest.fixture
def bench() -> Bench:
    return Bench(key="first")


@pytest.fixture
def threaded() -> Iterator[Bench]:
    """As in earnest: with threads and real time."""
    made = Bench(key="first")
    made.resolver = Resolver(lambda scheme: made.vault, SecretCache())
    made.resolver.listen(made.events.append)
    yield made
    made.resolver.close()


def test_a_secret_is_read_once_and_then_from_memory(bench: Bench) -> None:
    assert [bench.text() for _ in range(1000)] == ["first"] * 1000
    assert bench.vault.calls == ["key"]
    assert bench.happened() == [Happened.FETCHED]


def test_a_value_is_read_again_before_its_ttl_is_over(bench: Bench) -> None:
    bench.resolver.keep([KEY], "test")
    bench.pass_time(300)
    assert len(bench.vault.calls) == 2
    assert bench.happened() == [Happened.FETCHED, Happened.REFRESHED]


def test_a_reference_that_nobody_uses_is_forgotten(bench: Bench) -> None:
    bench.text()
    bench.pass_time(601)
    assert bench.vault.calls == ["key", "key"], "read again while it was in use, and not any more"
    assert bench.resolver.states() == []
    assert bench.text() == "first"


def test_fields_of_one_secret_share_a_call() -> None:
    bench = Bench(app=json.dumps({"key": "k", "port": 8200, "nested": {"a": 1}}))
    texts = [bench.text(SecretReference("aws", "app", field=name)) for name in ("key", "port", "nested")]
    assert texts == ["k", "8200", '{"a": 1}']
    assert bench.vault.calls == ["app"]


def test_a_field_that_is_not_there_is_named_and_no_value_is(bench: Bench) -> None:
    bench.vault["key"] = json.dumps({"other": "marked-value"})
    with pytest.raises(SecretUnavailable, match="no field of this name") as raised:
        bench.text(SecretReference("aws", "key", field="missing"))
    assert raised.value.reason is Reason.NOT_FOUND
    bench = Bench(key="marked-value, no JSON")
    with pytest.raises(SecretUnavailable, match="no JSON object") as raised:
        bench.text(SecretReference("aws", "key", field="missing"))
    assert raised.value.__context__ is None or "marked-value" not in repr(raised.value.__context__.__dict__)


def test_a_secret_that_is_one_text_may_be_asked_for_as_its_field_value() -> None:
    bench = Bench(key="text")
    assert bench.text(SecretReference("hashicorp", "key")) == "text"
    assert bench.text(SecretReference("hashicorp", "key", field="value")) == "text"


def test_characters_that_are_none_are_kept_and_shown_to_nobody() -> None:
    assert SecretValue("a\ud800b").reveal() == "a\ud800b"


def test_line_ends_behind_a_field_are_left_out() -> None:
    assert Bench(app=json.dumps({"key": "k\n"})).text(SecretReference("aws", "app", field="key")) == "k"


def test_line_ends_behind_a_value_are_left_out_and_an_empty_value_is_none() -> None:
    assert Bench(key="first\r\n").text() == "first"
    with pytest.raises(SecretUnavailable, match="is empty"):
        Bench(key="\n").text()


def test_what_a_vault_does_not_have_is_not_asked_for_again_at_once(bench: Bench) -> None:
    missing = SecretReference("azure", "missing")
    for _ in range(100):
        with pytest.raises(SecretUnavailable) as raised:
            bench.text(missing)
        assert raised.value.reason is Reason.NOT_FOUND
    assert bench.vault.calls == ["missing"]
    bench.vault["missing"] = "now"
    bench.pass_time(6)
    assert bench.text(missing) == "now"


def test_a_throttled_vault_is_asked_again_after_what_it_says(bench: Bench) -> None:
    bench.vault.failing, bench.vault.retry_after = Reason.THROTTLED, 2.0
    with pytest.raises(SecretUnavailable):
        bench.text()
    assert len(bench.vault.calls) == 3
    assert bench.slept == [2.0, 2.0]


def test_what_cannot_help_is_not_tried_again(bench: Bench) -> None:
    bench.vault.failing = Reason.FORBIDDEN
    with pytest.raises(SecretUnavailable):
        bench.text()
    assert (len(bench.vault.calls), bench.slept) == (1, [])


def test_an_hour_without_the_vault_loses_no_value_and_says_so_once(bench: Bench) -> None:
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = Reason.UNREACHABLE
    for _ in range(360):
        bench.pass_time(10)
        assert bench.resolver.current(KEY).value.reveal() == "first"
    assert bench.happened().count(Happened.STALE) == 1
    assert bench.resolver.states()[0].state == "stale"
    assert Happened.LOST not in bench.happened()

    bench.vault.failing = None
    bench.vault["key"] = "second"
    bench.pass_time(65)
    assert bench.resolver.current(KEY).value.reveal() == "second"
    assert bench.happened()[-2:] == [Happened.ROTATED, Happened.RECOVERED]
    assert bench.resolver.states()[0].state == "fresh"


def test_a_vault_that_stays_away_costs_the_value_in_the_end(bench: Bench) -> None:
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = Reason.SEALED
    bench.pass_time(300 + 3600 + 10)
    with pytest.raises(SecretUnavailable) as raised:
        bench.resolver.current(KEY)
    assert raised.value.reason is Reason.SEALED
    assert bench.happened().count(Happened.LOST) == 1


@pytest.mark.parametrize("reason", [Reason.DISABLED, Reason.NOT_FOUND, Reason.EXPIRED])
def test_a_secret_that_was_withdrawn_is_no_longer_used(bench: Bench, reason: Reason) -> None:
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = reason
    bench.pass_time(300)
    with pytest.raises(SecretUnavailable) as raised:
        bench.resolver.current(KEY)
    assert raised.value.reason is reason
    assert Happened.LOST in bench.happened()


def test_a_policy_that_shuts_us_out_does_not_take_the_value_away_at_once(bench: Bench) -> None:
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = Reason.FORBIDDEN
    bench.pass_time(600)
    assert bench.resolver.current(KEY).value.reveal() == "first"
    assert Happened.STALE in bench.happened()


def test_a_failing_vault_is_asked_less_and_less_often(bench: Bench) -> None:
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = Reason.UNREACHABLE
    bench.pass_time(3600, step=1.0)
    # Three tries a round, a round a minute at most once it has failed for long.
    assert len(bench.vault.calls) < 3 * 140


def test_expiry_and_not_before_dates_are_respected(bench: Bench) -> None:
    bench.vault.expires_at = bench.clock() + 60
    bench.resolver.keep([KEY], "test")
    bench.vault.failing = Reason.UNREACHABLE
    bench.pass_time(59, step=1.0)
    assert bench.resolver.current(KEY).value.reveal() == "first"
    bench.pass_time(2, step=1.0)
    with pytest.raises(SecretUnavailable):
        bench.resolver.current(KEY)

    bench = Bench(key="first")
    bench.vault.expires_at = bench.clock() - 1
    with pytest.raises(SecretUnavailable) as raised:
        bench.text()
    assert raised.value.reason is Reason.EXPIRED
    bench = Bench(key="first")
    bench.vault.not_before = bench.clock() + 100
    with pytest.raises(SecretUnavailable) as raised:
        bench.text()
    assert raised.value.reason is Reason.NOT_YET_VALID


def test_the_lease_of_a_dynamic_secret_is_renewed_before_it_ends(bench: Bench) -> None:
    bench.vault.lease = Lease("database/creds/app/1", 90, renewable=True)
    bench.resolver.keep([KEY], "test")
    bench.pass_time(600, step=1.0)
    assert bench.vault.calls == ["key"]
    assert bench.vault.renewals >= 9
    assert bench.resolver.current(KEY).value.reveal() == "first"


def test_a_lease_that_cannot_be_renewed_gives_a_new_secret(bench: Bench) -> None:
    bench.vault.lease = Lease("database/creds/app/1", 90, renewable=False)
    bench.resolver.keep([KEY], "test")
    bench.vault["key"] = "second"
    bench.pass_time(89, step=1.0)
    assert bench.resolver.current(KEY).value.reveal() == "second"


def test_a_refused_value_is_replaced_by_the_vaults_newer_one(bench: Bench) -> None:
    serial = bench.resolver.resolve(KEY, "test").serial
    bench.vault["key"] = "second"
    assert bench.resolver.rejected(KEY, serial)
    assert bench.text() == "second"
    assert bench.happened()[1:] == [Happened.REJECTED, Happened.ROTATED]


def test_a_value_refused_after_it_was_replaced_asks_nobody(bench: Bench) -> None:
    serial = bench.resolver.resolve(KEY, "test").serial
    bench.vault["key"] = "second"
    bench.resolver.refresh(None, "test")
    calls = len(bench.vault.calls)
    assert bench.resolver.rejected(KEY, serial)
    assert len(bench.vault.calls) == calls


def test_a_refused_value_without_a_newer_one_asks_the_vault_once_a_second(bench: Bench) -> None:
    serial = bench.resolver.resolve(KEY, "test").serial
    assert not any(bench.resolver.rejected(KEY, serial) for _ in range(50))
    assert len(bench.vault.calls) == 2
    bench.clock.advance(1.5)
    bench.vault["key"] = "second"
    assert bench.resolver.rejected(KEY, serial)


def test_a_bad_new_value_gives_way_to_the_one_before_it(bench: Bench) -> None:
    bench.text()
    bench.vault["key"] = "bad"
    bench.resolver.refresh(None, "test")
    bad = bench.resolver.current(KEY)
    assert bench.resolver.rejected(KEY, bad.serial)
    assert bench.text() == "first"
    assert bench.happened()[-1] is Happened.REVERTED
    assert bench.resolver.states()[0].state == "reverted"

    bench.pass_time(400)
    assert bench.text() == "first", "the vault still has the bad one"
    bench.vault["key"] = "good"
    bench.resolver.refresh(None, "test")
    assert bench.text() == "good"


def test_when_both_are_refused_the_newest_is_used_again(bench: Bench) -> None:
    bench.text()
    bench.vault["key"] = "second"
    bench.resolver.refresh(None, "test")
    second = bench.resolver.current(KEY)
    assert bench.resolver.rejected(KEY, second.serial)
    first = bench.resolver.current(KEY)
    assert not bench.resolver.rejected(KEY, first.serial)
    assert bench.text() == "second"


def test_many_threads_that_want_one_secret_make_one_call(threaded: Bench) -> None:
    threaded.vault.delay = 0.1
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(threaded.text())) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["first"] * 100
    assert threaded.vault.calls == ["key"]


async def test_many_refusals_at_once_make_few_calls_and_stop_nobody(threaded: Bench) -> None:
    serial = (await threaded.resolver.resolve_soon(KEY, "test")).serial
    threaded.vault.delay = 0.05
    threaded.vault["key"] = "second"
    found = await asyncio.wait_for(
        asyncio.gather(*(threaded.resolver.rejected_soon(KEY, serial) for _ in range(200))), 5
    )
    assert all(found)
    assert len(threaded.vault.calls) <= 3
    assert threaded.text() == "second"


async def test_whoever_stops_waiting_stops_nobody_else(threaded: Bench) -> None:
    threaded.vault.answering.clear()
    first = asyncio.create_task(threaded.resolver.resolve_soon(KEY, "test"))
    second = asyncio.create_task(threaded.resolver.resolve_soon(KEY, "test"))
    await asyncio.sleep(0.05)
    first.cancel()
    threaded.vault.answering.set()
    assert (await second).value.reveal() == "first"
    assert threaded.vault.calls == ["key"]


async def test_a_refusal_waits_for_a_call_that_begins_after_it(threaded: Bench) -> None:
    serial = (await threaded.resolver.resolve_soon(KEY, "test")).serial
    threaded.vault.answering.clear()
    slow = asyncio.create_task(asyncio.to_thread(threaded.resolver.refresh, None, "test"))
    while len(threaded.vault.calls) < 2:
        await asyncio.sleep(0.01)
    threaded.vault["key"] = "second"  # the call under way has read the first value already
    refused = asyncio.create_task(threaded.resolver.rejected_soon(KEY, serial))
    await asyncio.sleep(0.05)
    threaded.vault.answering.set()
    assert await refused
    await slow
    assert threaded.text() == "second"


@pytest.mark.slow
def test_a_thousand_references_are_read_side_by_side() -> None:
    vault = VaultOfValues(**{f"key-{n}": "value" for n in range(1000)})
    vault.delay = 0.05
    resolver = Resolver(lambda scheme: vault, SecretCache())
    began = time.perf_counter()
    assert resolver.keep([SecretReference("azure", f"key-{n}") for n in range(1000)], "test") == {}
    assert time.perf_counter() - began < 25, "one after the other they take 50 seconds"
    assert len(vault.calls) == 1000
    resolver.close()


def test_closing_overwrites_what_is_held(bench: Bench) -> None:
    value = bench.resolver.resolve(KEY, "test").value
    bench.resolver.close()
    assert value.empty
    assert bench.resolver.states() == []


def test_a_listener_that_fails_stops_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: SecretEvent) -> None:
        raise RuntimeError("listener")

    bench.resolver.listen(broken)
    assert bench.text() == "first"
    assert "a listener to secret events failed" in caplog.text


# ---- The wrapping of values ----


class _Holder(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    secret: SecretValue


def test_a_value_shows_itself_to_nobody() -> None:
    value = SecretValue("marked")
    shown = [repr(value), str(value), f"{value}", f"{value:>30}", repr([value]), repr({"a": value})]
    shown += [
        repr(_Holder(secret=value)),
        str(_Holder(secret=value).model_dump()),
        _Holder(secret=value).model_dump_json(),
    ]
    assert not [text for text in shown if "marked" in text]
    with pytest.raises(TypeError):
        pickle.dumps(value)
    with pytest.raises(TypeError):
        copy.deepcopy(value)


def test_a_masked_text_is_a_text_to_clients_and_a_mask_to_whoever_prints_its_holder() -> None:
    text = MaskedText("marked")
    assert (f"Bearer {text}", text.encode(), text == "marked") == ("Bearer marked", b"marked", True)
    assert "marked" not in repr({"api_key": text}) + repr([text]) + str((text,))
    assert copy.deepcopy({"api_key": text})["api_key"] == "marked"
    assert pickle.loads(pickle.dumps(text)) == MASK


def test_an_exception_with_a_value_in_a_frame_prints_none(caplog: pytest.LogCaptureFixture) -> None:
    def broken(value: SecretValue, text: MaskedText) -> None:
        raise RuntimeError(f"about {value} and {[text]}")

    secret = "sk-" + "in-a-frame"
    try:
        broken(SecretValue(secret), MaskedText(secret))
    except RuntimeError:
        logging.getLogger("test").exception("failed")
    assert "sk-in-a-frame" not in caplog.text
