"""What is reserved for a request, which limit it is given, and who answers when a budget does not pay: real books in
memory, no proxy."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import orjson
import pytest

from core.budgets import Account, Balance, Catalog
from core.budgets.books import Books
from core.context import Caller
from core.errors import BadField, BudgetExceeded, CostUnbounded, RequestRefused
from core.settings.models import Budget
from core.state.memory import MemoryReservations
from core.store.budgets import Pause
from core.usage import Attempt, UsageState
from plugins.budgets.enforcement import GENEROUS, Asked, Enforcement, Group, Part, cap_output
from plugins.budgets.expected import ExpectedOutput
from plugins.budgets.prices import GroupPrices
from plugins.budgets.spending import Spending

NOW = 1_800_000_000_000
BOTH = frozenset({"max_tokens", "max_completion_tokens"})
INPUT, OUTPUT = 10, 1_000
"""Nano-dollars for a token of `large`; `small` costs a tenth."""


def group(price: int = OUTPUT, most: int | None = 4000, names: frozenset[str] = BOTH) -> Group:
    params: dict[str, Any] = {"model": "openai/some-model"}
    info = {"input_cost_per_token": INPUT / 1e9, "output_cost_per_token": price / 1e9, "max_output_tokens": most}
    return Group(GroupPrices.of([{"litellm_params": params, "model_info": info}], {}), names)


GROUPS = {
    "large": group(),
    "small": group(OUTPUT // 10),
    "endless": group(most=None),
    "deaf": group(names=frozenset()),
    "unpriced": Group(GroupPrices.of([{"litellm_params": {"model": "x/y"}, "model_info": {}}], {}), BOTH),
}


class NoStore:
    async def balances(self, accounts: Iterable[Account]) -> list[Balance]:
        return [Balance(account.key) for account in accounts]

    async def flush(self) -> bool:
        return True

    async def living(self) -> list[str]:
        return ["one"]


class Desk:
    """A worker with these budgets (dollars are given in nano-dollars)."""

    def __init__(self, books: Books, *budgets: dict[str, Any], **more: Any) -> None:
        filled = [
            {"budget_id": f"b{number}", **budget, "total_budget": budget["total_budget"] / 1e9}
            for number, budget in enumerate(budgets)
        ]
        self.catalog = Catalog([Budget.model_validate(budget) for budget in filled], tuple(GROUPS))
        self.expected = ExpectedOutput(0.99, 500)
        self.books = books
        self.paused: dict[str, Pause] = {}
        self.enforcement = Enforcement(books, self.expected, GROUPS.__getitem__, paused=self.paused.get, **more)
        self.requests = 0

    def asked(self, **more: Any) -> Asked:
        body = {"messages": [{"role": "user", "content": "hi"}], **more}
        return Asked("chat_completions", body, len(orjson.dumps(body)), None)

    async def admit(self, *candidates: str, asked: Asked | None = None) -> tuple[list[str], Spending, Asked]:
        self.requests += 1
        applying = self.catalog.applying(Caller(user_id="ada"), None, candidates[0])
        spending = Spending(f"r{self.requests}", applying, self.books, NOW)
        asked = asked or self.asked()

        async def permitted(groups: Iterable[str]) -> list[str]:
            return [name for name in groups if name != "forbidden"]

        return await self.enforcement.first_attempt(spending, asked, candidates, permitted), spending, asked

    async def refused(self, *candidates: str, asked: Asked | None = None) -> RequestRefused:
        with pytest.raises(RequestRefused) as refusal:
            await self.admit(*candidates, asked=asked)
        return refusal.value


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    books = Books(MemoryReservations(), NoStore(), "one")
    task = asyncio.create_task(books.run())
    yield books
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def output(tokens: int, price: int = OUTPUT) -> int:
    """Nano-dollars of an answer, and enough for the little that is asked."""
    return tokens * price + 2_500 * INPUT


class TestLimits:
    async def test_a_clients_own_limit_is_reserved_and_sent(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        assert spending.reservation is not None
        assert 100 * OUTPUT < spending.reservation.amount_nano <= output(100)
        assert (asked.body["max_tokens"], asked.clamped) == (100, None)

    async def test_a_limit_that_litellm_raises_is_reserved_as_it_is_sent(self, books: Books) -> None:
        body = {"input": "hi", "max_output_tokens": 5}
        desk = Desk(books, {"total_budget": output(100)})
        _, spending, _ = await desk.admit("large", asked=Asked("responses", body, len(orjson.dumps(body)), None))
        assert spending.reservation is not None
        assert spending.reservation.amount_nano >= 16 * OUTPUT

    async def test_a_limit_that_does_not_fit_is_refused_not_lowered(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        refusal = await desk.refused("large", asked=desk.asked(max_tokens=200))
        assert isinstance(refusal, BudgetExceeded)
        assert refusal.details["budget_id"] == "b0"

    async def test_with_plenty_left_the_models_whole_output_is_reserved(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        _, spending, asked = await desk.admit("large")
        assert spending.reservation is not None
        assert spending.reservation.amount_nano >= 4000 * OUTPUT
        assert (asked.body["max_tokens"], asked.clamped) == (4000, None)

    async def test_with_less_the_length_that_answers_hardly_exceed(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * 10})
        _, spending, asked = await desk.admit("large")
        assert (asked.body["max_tokens"], asked.clamped) == (500, 500)
        for _ in range(100):
            desk.expected.saw("large", None, 200)
        _, spending, asked = await desk.admit("large")
        assert spending.reservation is not None
        assert 200 < asked.body["max_tokens"] == asked.clamped < 220
        assert spending.reservation.amount_nano <= output(220)

    async def test_never_below_that_unless_it_is_configured(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(400)})
        assert isinstance(await desk.refused("large"), BudgetExceeded)
        desk = Desk(books, {"budget_id": "lower", "total_budget": output(400)}, min_output_tokens=100)
        _, _, asked = await desk.admit("large")
        assert 390 <= asked.body["max_tokens"] == asked.clamped < 500
        assert isinstance(await desk.refused("large"), BudgetExceeded), "nothing is left"

    async def test_a_model_without_a_known_maximum_is_given_one(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        _, _, asked = await desk.admit("endless")
        assert (asked.body["max_tokens"], asked.clamped) == (500, 500)

    async def test_a_model_that_takes_no_limit_is_reserved_for_whole(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000)})
        _, spending, asked = await desk.admit("deaf", asked=desk.asked(max_tokens=5))
        assert spending.reservation is not None
        assert spending.reservation.amount_nano >= 4000 * OUTPUT
        assert asked.body["max_tokens"] == 5, "not ours to change where nobody reads it"

    async def test_a_tiers_limit_holds_with_and_without_budgets(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        for given in ({}, {"max_tokens": 3000}, {"max_completion_tokens": 3000, "max_tokens": 7}):
            asked = desk.asked(**given)
            asked.most_tokens = 50
            await desk.admit("large", asked=asked)
            limits = {asked.body[name] for name in ("max_tokens", "max_completion_tokens") if name in asked.body}
            assert (limits, asked.clamped) == ({50}, 50)
            alone = desk.asked(**given)
            alone.most_tokens = 50
            cap_output(alone)
            assert alone.clamped == 50

    async def test_extra_body_cannot_get_round_it(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        asked = desk.asked(max_tokens=10, extra_body={"max_tokens": 9999, "n": 8})
        assert isinstance(await desk.refused("large", asked=asked), BudgetExceeded)
        with pytest.raises(BadField, match="extra_body"):
            await desk.admit("large", asked=desk.asked(extra_body={"model": "gpt-5"}))


class TestWhoAnswers:
    async def test_the_first_candidate_that_the_budget_pays_for(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(500, OUTPUT // 10)})
        queue, spending, _ = await desk.admit("large", "small")
        assert queue == ["small"]
        assert spending.reservation is not None
        assert spending.reservation.group == "small"

    async def test_with_a_degrading_budget_used_up_a_cheaper_model(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": 0, "at_limit": "degrade", "degrade_to": ["forbidden", "small"]})
        queue, spending, _ = await desk.admit("large")
        assert queue == ["small"]
        assert spending.degraded
        assert (b"x-orchestration-degraded", b"true") in spending.response_headers()

    async def test_which_other_budgets_still_have_to_pay_for(self, books: Books) -> None:
        degrading = {"total_budget": 0, "at_limit": "degrade", "degrade_to": ["small"]}
        desk = Desk(books, degrading, {"total_budget": output(500, OUTPUT // 10)})
        queue, _, _ = await desk.admit("large")
        assert queue == ["small"]
        refusal = await desk.refused("large")
        assert refusal.details["budget_id"] == "b1"

    async def test_a_warning_budget_refuses_nothing_and_is_charged(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": 0, "at_limit": "warn"})
        _, spending, asked = await desk.admit("large")
        assert spending.reservation is None
        attempt = Attempt(1, "large")
        assert await desk.enforcement.send(spending, asked, attempt)
        assert [Account.parse(key).budget_id for key in attempt.accounts] == ["b0"]

    async def test_a_paused_budget_refuses_whatever_is_left(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        desk.paused["b0"] = Pause(NOW, "root", "invoice disputed")
        refusal = await desk.refused("large")
        assert "invoice disputed" in refusal.message
        assert refusal.headers["x-should-retry"] == "false"


class TestUnbounded:
    async def test_what_nothing_prices_is_refused_with_what_to_configure(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000)})
        refusal = await desk.refused("unpriced")
        assert isinstance(refusal, CostUnbounded)
        assert "input_cost_per_token" in refusal.message

    async def test_unless_a_flat_reserve_is_which_is_charged_if_the_cost_never_becomes_known(
        self, books: Books
    ) -> None:
        desk = Desk(books, {"total_budget": output(4000), "flat_reserve": 5e-6})
        _, spending, asked = await desk.admit("unpriced")
        attempt = Attempt(1, "unpriced")
        assert await desk.enforcement.send(spending, asked, attempt)
        assert attempt.reserved_nano == 5_000
        attempt.usage = UsageState.REPORTED
        spending.settle(attempt, cost_known=False)
        assert (attempt.usage, attempt.cost_nano) == (UsageState.UNKNOWN, 5_000)


class TestAttempts:
    async def test_every_further_attempt_is_reserved_for_anew_or_left_out(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100) * 2})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        for number in (1, 2):
            assert await desk.enforcement.next_attempt(spending, asked, "large")
            attempt = Attempt(number, "large")
            assert await desk.enforcement.send(spending, asked, attempt)
            attempt.usage = UsageState.UNKNOWN  # it timed out
            spending.settle(attempt)
            assert attempt.cost_nano == attempt.reserved_nano
        assert not await desk.enforcement.next_attempt(spending, asked, "large")
        assert isinstance(spending.refusal, BudgetExceeded)
        assert spending.refusal.details["budget_id"] == "b0"
        assert await desk.enforcement.next_attempt(spending, asked, "small"), "which is cheaper"
        assert spending.refusal is None

    async def test_what_was_reserved_for_a_group_that_could_not_be_tried_pays_for_the_next(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        assert await desk.enforcement.next_attempt(spending, asked, "small")
        assert spending.reservation is not None
        assert (spending.reservation.group, spending.reservation.lease) == ("small", "r1:1")

    async def test_an_attempt_that_failed_at_no_cost_gives_everything_back(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        for number in range(5):
            _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
            attempt = Attempt(1, "large")
            assert await desk.enforcement.send(spending, asked, attempt), number
            spending.settle(attempt)
            while books._settling:
                await asyncio.sleep(0)

    @pytest.mark.parametrize(
        ("sent", "paid"),
        [
            ({"max_tokens": 100}, True),
            ({"max_tokens": 60}, True),
            ({"max_tokens": 101}, False),
            ({"max_tokens": 100, "max_completion_tokens": 4000}, False),
            ({"max_tokens": 100, "extra_body": {"max_tokens": 4000}}, False),
            ({"max_tokens": 100, "n": 1}, True),
            ({"max_tokens": 100, "n": 2}, False),
        ],
        ids=str,
    )
    async def test_what_asks_for_more_than_was_reserved_is_not_sent(
        self, books: Books, sent: dict[str, Any], paid: bool
    ) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        attempt = Attempt(1, "large")
        assert await desk.enforcement.send(spending, asked, attempt, {**asked.body, **sent}) is paid
        assert (attempt.reserved_nano > 0) is paid

    async def test_a_limit_that_is_reserved_for_anyway_may_be_any(self, books: Books) -> None:
        """The model takes no limit, so all it can say is reserved."""
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        _, spending, asked = await desk.admit("deaf", asked=desk.asked(max_tokens=9000))
        assert await desk.enforcement.send(spending, asked, Attempt(1, "deaf"), asked.body)

    async def test_the_answers_that_were_asked_for_are_sent(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(4000) * GENEROUS})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100, n=3))
        assert await desk.enforcement.send(spending, asked, Attempt(1, "large"), asked.body)

    async def test_the_header_tells_what_the_tightest_budget_has_left(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": 10_000_000}, {"total_budget": 5_000_000})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        attempt = Attempt(1, "large")
        assert await desk.enforcement.send(spending, asked, attempt)
        attempt.usage, attempt.cost_nano = UsageState.REPORTED, 40_000
        spending.settle(attempt)
        assert spending.response_headers() == [(b"x-orchestration-budget-remaining", b"0.004960000")]

    async def test_a_bill_above_the_reservation_is_told(self, books: Books) -> None:
        desk = Desk(books, {"total_budget": output(100)})
        _, spending, asked = await desk.admit("large", asked=desk.asked(max_tokens=100))
        told: list[tuple[Any, ...]] = []
        spending.overrun = lambda *what: told.append(what)
        attempt = Attempt(1, "large")
        await desk.enforcement.send(spending, asked, attempt)
        attempt.usage, attempt.cost_nano = UsageState.REPORTED, 900_000
        reserved = attempt.reserved_nano
        spending.settle(attempt)
        assert told == [("b0", "r1", reserved, 900_000, NOW)]
        assert isinstance(await desk.refused("small"), BudgetExceeded)


async def test_a_budget_that_a_thousand_clients_ask_at_once_is_not_promised_twice(books: Books) -> None:
    desk = Desk(books, {"total_budget": output(100) * 10}, {"total_budget": output(100) * 100, "per": "user"})

    async def one() -> int:
        try:
            _, spending, _ = await desk.admit("large", asked=desk.asked(max_tokens=100))
        except BudgetExceeded:
            return 0
        assert spending.reservation is not None
        return spending.reservation.amount_nano

    amounts = await asyncio.gather(*(one() for _ in range(1000)))
    assert sum(amounts) <= output(100) * 10 < sum(amounts) + max(amounts)


async def test_a_part_of_a_request_is_reserved_for_the_model_that_is_sent_no_more(books: Books) -> None:
    def asked(part: Part | None = None) -> Asked:
        body = {"input": ["a" * 500, "b" * 40]}
        return Asked("embeddings", body, len(orjson.dumps(body)), None, part=part)

    rest = {"input": ["b" * 40]}
    part = Part("large", rest, len(orjson.dumps(rest)))
    desk = Desk(books, {"total_budget": 10**9})
    reserved: list[int] = []
    for group, said in (("large", None), ("large", part), ("small", part)):
        _, spending, _ = await desk.admit(group, asked=asked(said))
        assert spending.reservation is not None
        reserved.append(spending.reservation.amount_nano)
        await books.release(spending.reservation.lease)
    whole, some, elsewhere = reserved
    assert some < whole / 5
    assert elsewhere == whole
