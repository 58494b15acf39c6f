"""Decisions made again: a recorded request is the request that it was, from somebody as the configuration has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.context import Caller, Need, RequestContext
from core.settings import Settings
from core.store import REPLAY_COLUMNS, open_store
from core.usage import UsageEvent
from custom_router.replay import Callers, Measured, Recorded, context_of, context_of_event, left_out_of
from custom_router.traits import traits_of

SETTINGS = Settings.model_validate(
    {
        "tiers": {"free": {}, "premium": {}},
        "default_tier": "free",
        "groups": {"scientists": {"teams": ["research"]}, "writers": {"users": ["bob"]}},
    }
)
CONTEXT = RequestContext(
    request_id="r1",
    endpoint="chat_completions",
    caller=Caller("k" * 64, "laptop", "ada", "research", ("scientists", "guests"), "premium", ("premium",)),
    asked_model="smart",
    task_type="chat",
    priority=2,
    session_id="s",
    stream=True,
    output_limit=50,
    input_tokens=812,
    needs=frozenset({Need.IMAGES, Need.TOOLS}),
    metadata={"app": "web", "level": 3},
    headers={"x-app": "web"},
    time_ms=1_767_225_600_000,
)


def event_of(context: RequestContext, **more: Any) -> UsageEvent:
    caller = context.caller
    return UsageEvent(
        request_id=context.request_id,
        time_ms=context.time_ms,
        endpoint=context.endpoint,
        key_hash=caller.key_hash,
        key_alias=caller.key_alias,
        user_id=caller.user_id,
        team_id=caller.team_id,
        groups=caller.groups,
        tier=caller.tier,
        task_type=context.task_type,
        priority=context.priority,
        session_id=context.session_id,
        asked_model=context.asked_model,
        streamed=context.stream,
        traits=traits_of(context),
        **{"status": 200, "input_tokens": 800, "output_tokens": 40, **more},
    )


def row(**more: Any) -> Recorded:
    empty = dict.fromkeys(Recorded._fields)
    numbers = {"time_ms": 1, "input_tokens": 0, "output_tokens": 0, "cost_nano": 0, "status": 200, "streamed": 0}
    return Recorded(**{**empty, **numbers, "endpoint": "chat_completions", "groups": "[]", **more})


async def test_what_the_store_gives_back_is_the_request_that_was_decided_about(tmp_path: Path) -> None:
    plain = replace(CONTEXT, request_id="r2", time_ms=CONTEXT.time_ms + 1, stream=False)
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    await store.upgrade()
    try:
        await store.usage.write([event_of(CONTEXT), event_of(plain)])
        rows = [one async for rows in store.usage.replay(0, 2 * CONTEXT.time_ms) for one in rows]
    finally:
        await store.close()
    assert Recorded._fields == REPLAY_COLUMNS
    callers = Callers(SETTINGS)
    found = [Recorded._make(one) for one in rows]
    assert [context_of(one, callers.of(one), one.session_id or "") for one in found] == [
        replace(CONTEXT, request_id="s"),
        replace(plain, request_id="s"),
    ]
    assert context_of_event(event_of(CONTEXT)) == CONTEXT


def test_where_nobody_looked_into_a_request_its_billed_tokens_stand_for_the_estimate() -> None:
    unseen = row(asked_model="smart", input_tokens=800)
    assert context_of(unseen, Caller(), "r").input_tokens == 800
    seen = row(asked_model="smart", input_tokens=800, traits='{"t":812}')
    assert context_of(seen, Caller(), "r").input_tokens == 812


@pytest.mark.parametrize("traits", ["{", '{"n": ["flight"]}'])
def test_traits_that_are_none_are_refused(traits: str) -> None:
    with pytest.raises(ValueError):
        context_of(row(traits=traits), Caller(), "r")


@pytest.mark.parametrize(
    ("recorded", "had_tiers", "tier"),
    [("premium", True, "premium"), ("gold", True, "free"), (None, True, None), (None, False, "free")],
    ids=["still there", "gone", "an administrator", "there were no tiers"],
)
def test_callers_have_their_tier_where_the_proposal_has_it(
    recorded: str | None, had_tiers: bool, tier: str | None
) -> None:
    callers = Callers(SETTINGS, had_tiers=had_tiers)
    found = callers.of(row(tier=recorded))
    assert (found.tier, found.tiers) == (tier, () if tier is None else (tier,))
    assert callers.lost == ({"gold"} if recorded == "gold" else set())


def test_without_tiers_in_the_proposal_nobody_has_one() -> None:
    assert Callers(Settings()).of(row(tier="premium")).tiers == ()


def test_callers_are_in_the_groups_of_the_proposal_and_in_those_that_only_their_team_has() -> None:
    callers = Callers(SETTINGS)
    found = callers.of(row(user_id="bob", team_id="research", groups='["guests","scientists"]'))
    assert set(found.groups) == {"scientists", "writers", "guests"}
    moved_out = callers.of(row(user_id="ada", groups='["scientists"]'))
    assert moved_out.groups == (), "the proposal has scientists, and ada is not among them"


@pytest.mark.parametrize(
    ("route", "left_out"),
    [
        ("ab/treatment rule=not-here priority not large,small", ("large", "small")),
        ("mine not large (strategy mine took longer than 0.1 s)", ("large",)),
        ("rule=not-large priority", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_a_route_says_what_was_left_out(route: str | None, left_out: tuple[str, ...]) -> None:
    assert left_out_of(route) == left_out


def test_how_models_were_doing_is_what_was_measured() -> None:
    live = Measured({("large", True): 120.0}, {("large", "chat"): 30, ("large", None): 90})
    assert live.available("large")
    assert (live.latency_ms("large", True), live.latency_ms("large", False)) == (120.0, None)
    assert (live.expected_outputs(("large",), "chat"), live.expected_outputs(("large",), "coding")) == ([30], [90])
    assert live.expected_outputs(("small",), None)[0] > 0
    assert [live.turn("smart"), live.turn("smart"), live.turn("other")] == [0, 1, 0]
