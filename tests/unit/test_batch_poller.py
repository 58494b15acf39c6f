"""What becomes of batches and background responses, asked of a provider that says what a test wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import litellm
import orjson
import pytest

from core.context import Caller
from core.journal import Amendment
from core.store import Store
from core.store.batches import Job, JobKind
from core.usage import Attempt, UsageEvent, UsageState
from plugins.batches.poller import Poller
from tests.support.clock import Clock
from tests.unit.batch_cases import ADA, job

PRICED = "priced-deployment"


@pytest.fixture(autouse=True)
def prices() -> Any:
    litellm.model_cost[PRICED] = {"input_cost_per_token": 2e-6, "output_cost_per_token": 4e-6, "mode": "chat"}
    yield
    del litellm.model_cost[PRICED]


@dataclass
class Said:
    """LiteLLM's answers: what it is told to give, errors raised."""

    batches: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    responses: dict[str, Any] = field(default_factory=dict)
    asked: int = 0

    async def ask_batch(self, batch_id: str, group: str, deployment: str | None) -> dict[str, Any]:
        self.asked += 1
        answer = self.batches[batch_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask_file(self, provider_id: str, group: str, deployment: str | None) -> bytes:
        return self.files[provider_id]

    async def ask_response(self, response_id: str) -> Any:
        return self.responses[response_id]

    def id_of_file(self, provider_id: str, group: str) -> str:
        return f"{provider_id}@{group}"


class Books:
    """Events that are charged what was reserved, amended as the ledger does."""

    def __init__(self) -> None:
        self.events: dict[str, UsageEvent] = {}

    def amend(self, request_id: str, fields: Any) -> None:
        Amendment(request_id, **fields).improve(self.charged(request_id))

    def charged(self, request_id: str) -> UsageEvent:
        attempt = Attempt(1, "small", usage=UsageState.UNKNOWN, cost_nano=1000, reserved_nano=1000)
        new = UsageEvent(request_id, 0, "batches", 200, usage=UsageState.UNKNOWN, cost_nano=1000, unknown_nano=1000)
        new.attempts.append(attempt)
        return self.events.setdefault(request_id, new)


@dataclass
class Polling:
    store: Store
    clock: Clock
    said: Said = field(default_factory=Said)
    books: Books = field(default_factory=Books)

    def __post_init__(self) -> None:
        self.overruns: list[tuple[str, str, int, int, int]] = []
        self.poller = Poller(self.said, self.books.amend, lambda *told: self.overruns.append(told), self.clock)

    async def keep(self, kind: JobKind = JobKind.BATCH) -> None:
        now = int(self.clock() * 1000)
        await self.store.batches.keep_job(job("j", deployment=PRICED, kind=kind, created_ms=now, next_ms=now))

    async def look(self, after: float = 0) -> Job:
        self.clock.advance(after)
        await self.poller.look(self.store)
        found = await self.store.batches.job("j")
        assert found is not None
        return found

    @property
    def cost(self) -> tuple[str, int]:
        event = self.books.charged("r-j")
        return event.usage, event.cost_nano


@pytest.fixture
def polling(store: Store, clock: Clock) -> Polling:
    return Polling(store, clock)


def answered(prompt: int, completion: int) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"custom_id": "a", "response": {"status_code": 200, "body": {"usage": usage}}, "error": None}


def output(*lines: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(one) + b"\n" for one in lines)


def over(status: str = "completed", completed: int | None = None, file: str | None = "out", **more: Any) -> Any:
    counts = None if completed is None else {"total": 3, "completed": completed, "failed": 0}
    return {"status": status, "output_file_id": file, "request_counts": counts, **more}


async def test_a_batch_that_is_over_costs_what_its_lines_used_at_batch_prices(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=2)
    polling.said.files["out"] = output(
        answered(10, 20),
        {"custom_id": "b", "response": {"status_code": 400, "body": {"error": {}}}},
        answered(1, 2),
    )
    found = await polling.look()
    assert (found.status, found.done_ms) == ("completed", int(polling.clock() * 1000))
    # Half of 11 * 2000 + 22 * 4000 nano-dollars: more than was reserved, which is recorded as it is.
    assert polling.cost == ("reported", 55_000)
    event = polling.books.charged("r-j")
    assert (event.input_tokens, event.output_tokens, event.unknown_nano) == (11, 22, 0)


async def test_whose_the_output_is_is_known_when_the_batch_is_over(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=1, error_file_id="errors")
    polling.said.files["out"] = output(answered(1, 1))
    await polling.look()
    for file_id in ("out@small", "errors@small"):
        kept = await polling.store.batches.file(file_id)
        assert kept is not None
        assert kept.owner.is_(ADA) and not kept.owner.is_(Caller(user_id="bob"))


async def test_a_batch_that_goes_on_is_asked_about_less_and_less_often(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = {"status": "in_progress"}
    now = int(polling.clock() * 1000)
    assert (await polling.look()).next_ms == now + 3_000
    await polling.look(after=1)
    assert polling.said.asked == 1
    assert (await polling.look(after=599)).next_ms == now + 600_000 + 60_000
    assert (await polling.look(after=100_000)).next_ms == int(polling.clock() * 1000) + 300_000
    assert polling.cost == ("unknown", 1000)


async def test_an_output_that_has_fewer_answers_than_the_batch_counts_is_waited_for(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=2, file=None)
    assert (await polling.look()).done_ms is None
    polling.said.batches["j"] = over(completed=2)
    polling.said.files["out"] = output(answered(1, 1))
    assert (await polling.look(after=5)).done_ms is None
    polling.said.files["out"] = output(answered(1, 1), answered(1, 1))
    assert (await polling.look(after=5)).done_ms is not None
    assert polling.cost == ("reported", 6_000)


async def test_an_output_that_never_comes_leaves_the_batch_charged_what_was_reserved(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=2, file=None)
    assert (await polling.look()).done_ms is None
    assert (await polling.look(after=3_601)).done_ms is not None
    assert polling.cost == ("unknown", 1000)


@pytest.mark.parametrize("line", [{"custom_id": "a", "response": {"status_code": 200, "body": {}}}])
async def test_an_answer_without_usage_leaves_the_batch_charged_what_was_reserved(line: Any, polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=1)
    polling.said.files["out"] = output(line)
    assert (await polling.look()).done_ms is not None
    assert polling.cost == ("unknown", 1000)


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
async def test_a_batch_of_which_nothing_ran_costs_nothing(status: str, polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(status, completed=0, file=None)
    await polling.look()
    assert polling.cost == ("reported", 0)


async def test_a_batch_that_cannot_be_asked_about_stays_charged_and_is_given_up_after_two_weeks(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = RuntimeError("away")
    assert (await polling.look()).done_ms is None
    assert (await polling.look(after=13 * 86_400)).done_ms is None
    assert (await polling.look(after=2 * 86_400)).status == "lost"
    assert polling.cost == ("unknown", 1000)


async def test_settling_twice_is_like_settling_once(polling: Polling):
    await polling.keep()
    polling.said.batches["j"] = over(completed=1)
    polling.said.files["out"] = output(answered(10, 20))
    await polling.look()
    once = polling.cost
    polling.books.amend("r-j", {"usage": "reported", "input_tokens": 10, "output_tokens": 20, "cost_nano": 50_000})
    assert polling.cost == once == ("reported", 50_000)


async def test_while_nothing_goes_on_it_is_looked_for_every_ten_seconds_or_when_a_job_is_begun_here(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
):
    looks: list[float] = []
    look = polling.poller.look

    async def counted(store: Store) -> int:
        looks.append(polling.clock())
        return await look(store)

    monkeypatch.setattr(polling.poller, "look", counted)

    async def for_seconds(seconds: int) -> int:
        before = len(looks)
        for _ in range(seconds // 2):
            await polling.poller.look_if_worth_it(polling.store)
            polling.clock.advance(2)
        return len(looks) - before

    assert await for_seconds(40) == 4
    await polling.keep()
    polling.said.batches["j"] = {"status": "in_progress"}
    assert await for_seconds(10) == 5, "one goes on"
    polling.said.batches["j"] = over("failed", completed=0, file=None)
    assert (await polling.look(after=600)).done_ms is not None
    assert await for_seconds(40) <= 5, "it is over"


async def test_people_are_told_of_a_bill_above_what_was_reserved(polling: Polling):
    await polling.keep()
    event = polling.books.charged("r-j")
    event.attempts[0].accounts = ("team~12345678|0|", "each~12345678|0|ada")
    await polling.store.usage.write([event])
    polling.said.batches["j"] = over(completed=1)
    polling.said.files["out"] = output(answered(10, 20))
    await polling.look()
    now = int(polling.clock() * 1000)
    assert polling.overruns == [(budget, "r-j", 1000, 50_000, now) for budget in ("team", "each")]


class TestResponses:
    def response(self, status: str, usage: bool = True) -> Any:
        from litellm.types.llms.openai import ResponsesAPIResponse

        used = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}
        fields = {"id": "j", "created_at": 1, "model": "small", "object": "response", "status": status, "output": []}
        return ResponsesAPIResponse(**fields, usage=used if usage else None)  # type: ignore[arg-type]

    @pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
    async def test_one_that_is_over_costs_what_it_used(self, status: str, polling: Polling):
        await polling.keep(JobKind.RESPONSE)
        polling.said.responses["j"] = self.response(status)
        assert (await polling.look()).status == status
        assert polling.cost == ("reported", 10 * 2000 + 20 * 4000)

    async def test_one_that_goes_on_is_asked_again(self, polling: Polling):
        await polling.keep(JobKind.RESPONSE)
        polling.said.responses["j"] = self.response("in_progress", usage=False)
        assert (await polling.look()).done_ms is None

    async def test_one_that_does_not_say_what_it_used_stays_charged_what_was_reserved(self, polling: Polling):
        await polling.keep(JobKind.RESPONSE)
        polling.said.responses["j"] = self.response("cancelled", usage=False)
        assert (await polling.look()).done_ms is not None
        assert polling.cost == ("unknown", 1000)
