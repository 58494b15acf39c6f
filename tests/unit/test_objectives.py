"""In which order a policy's candidates are tried."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from core.context import Caller, RequestContext
from core.settings.models import Balance, Objective, Policy, Stage, Sticky
from custom_router.candidates import Candidate, Choice
from custom_router.objectives import order
from custom_router.sticky import draws, seed_of, sticky_key, weighted_draws
from plugins.routing.live import Loads
from tests.support.clock import Clock

STAGES = tuple(Stage)
NAMES = ("ant", "bee", "cat")


def policy(objective: str = "priority", **more: Any) -> Policy:
    return Policy(candidates=NAMES, objective=objective, **more)


def asking(request_id: str = "r", **more: Any) -> RequestContext:
    return RequestContext(request_id, "chat_completions", Caller(user_id=more.pop("user", None)), "smart", **more)


def doing(
    latency: Mapping[str, float] | None = None, in_flight: Mapping[str, int] | None = None, output: int = 100
) -> Loads:
    loads = Loads(lambda _group, _task: output, Clock())
    for group, ms in (latency or {}).items():
        loads.began(group, None)
        loads.ended(group, None, ms, None, 200, None)
    for group, count in (in_flight or {}).items():
        for _ in range(count):
            loads.began(group, None)
    return loads


def ordered_by(
    of: Policy, groups: Sequence[Candidate], context: RequestContext, live: Loads, stages: Sequence[Stage]
) -> tuple[list[str], str]:
    named = tuple(group.name for group in groups)
    return order(of.objective, of, Choice(groups), context, live, tuple(stages), live.away(named))


def names(
    of: Policy,
    groups: Sequence[Candidate],
    context: RequestContext | None = None,
    live: Loads | None = None,
    stages: Sequence[Stage] = STAGES,
) -> str:
    """The candidates in their order, by their first letters."""
    ordered, _ = ordered_by(of, groups, context or asking(), live or doing(), stages)
    return "".join(name[0] for name in ordered)


def firsts(ask: Callable[[int], str], times: int = 3000) -> Counter[str]:
    return Counter(ask(number)[0] for number in range(times))


def plain(**fields: Sequence[Any]) -> list[Candidate]:
    """ant, bee and cat, with one value each of some fields."""
    return [Candidate(name, **{field: values[at] for field, values in fields.items()}) for at, name in enumerate(NAMES)]


def priced(*nano: float | None) -> list[Candidate]:
    return plain(input_nano=nano, output_nano=nano)


# -- priority ----------------------------------------------------------------------------------------------------------


def test_without_any_priority_the_policys_order_holds() -> None:
    assert names(policy(), priced(3, 2, 1)) == "abc"


def test_the_lowest_number_is_first_and_no_number_is_the_middle() -> None:
    assert names(policy(), plain(priority=(3, None, 1))) == "cba"


def test_of_equal_priority_the_cheaper_one_is_first_where_cost_is_a_stage() -> None:
    groups = plain(priority=(1, 1, 2), input_nano=(9, 1, 1), output_nano=(9, 1, 1))
    assert names(policy(), groups) == "bac"
    without = [stage for stage in Stage if stage is not Stage.COST]
    ties = firsts(lambda n: names(policy(), groups, asking(str(n)), stages=without))
    assert 1350 < ties["a"] < 1650, "without it, equals share the requests"
    assert ties["c"] == 0


def test_where_cost_stands_before_priority_the_cost_decides_and_priority_breaks_ties() -> None:
    turned = (Stage.TIERS, Stage.COST, Stage.PRIORITY)
    groups = plain(priority=(1, 3, 2), input_nano=(9, 1, 1), output_nano=(9, 1, 1))
    assert names(policy(), groups, stages=turned) == "cba"


# -- cost --------------------------------------------------------------------------------------------------------------


def test_the_cost_of_this_very_request_decides() -> None:
    groups = plain(input_nano=(1, 5, 1), output_nano=(90, 10, 100))
    assert names(policy("cost"), groups, asking(input_tokens=10)) == "bac"
    assert names(policy("cost"), groups, asking(input_tokens=10_000)) == "acb", "long input: the output hardly matters"


def test_an_answer_is_not_expected_to_be_longer_than_the_client_allows() -> None:
    groups = plain(input_nano=(1, 5, 9), output_nano=(90, 10, 9))
    assert names(policy("cost"), groups, asking(input_tokens=100, output_limit=1)) == "abc"


def test_what_nothing_prices_comes_last_in_the_order_given() -> None:
    assert names(policy("cost"), priced(None, 5, None)) == "bac"
    assert names(policy("cost"), priced(None, None, None)) == "abc"


def test_what_is_free_is_the_cheapest() -> None:
    assert names(policy("cost"), priced(1, 0, None)) == "bac"
    assert names(policy("cost", sticky="user"), priced(1, 0, None), asking(user="ada")) == "bac"


# -- latency -----------------------------------------------------------------------------------------------------------


def test_the_fastest_is_first() -> None:
    assert names(policy("latency"), plain(), live=doing({"ant": 900, "bee": 500, "cat": 2000})) == "bac"


def test_streams_are_compared_by_their_first_token() -> None:
    loads = doing({"ant": 100, "bee": 900})
    for group, first in (("ant", 90), ("bee", 20)):
        loads.began(group, None)
        loads.ended(group, None, 5000, first, 200, None)
    assert names(policy("latency"), plain()[:2], asking(stream=True), loads) == "ba"
    assert names(policy("latency"), plain()[:2], asking(stream=False), loads) == "ab"


def test_those_within_a_fifth_of_the_fastest_share_the_requests() -> None:
    live = doing({"ant": 500, "bee": 590, "cat": 610})
    first = firsts(lambda n: names(policy("latency"), plain(), asking(str(n)), live))
    assert 1350 < first["a"] < 1650
    assert first["c"] == 0


def test_what_was_not_measured_yet_is_tried_by_one_request_in_ten_one_at_a_time() -> None:
    live = doing({"ant": 500, "bee": 900})
    first = firsts(lambda n: names(policy("latency"), plain(), asking(str(n)), live))
    assert 230 < first["c"] < 370
    assert first["b"] == 0
    live.began("cat", None)
    assert firsts(lambda n: names(policy("latency"), plain(), asking(str(n)), live))["c"] == 0


def test_while_nothing_was_measured_all_share_the_requests() -> None:
    first = firsts(lambda n: names(policy("latency"), plain(), asking(str(n))))
    assert all(880 < first[letter] < 1120 for letter in "abc")


# -- balanced ----------------------------------------------------------------------------------------------------------


def test_balanced_weighs_each_value_over_the_best() -> None:
    groups = plain(priority=(1, 2, 2), input_nano=(4, 1, 2), output_nano=(4, 1, 2))
    live = doing({"ant": 100, "bee": 300, "cat": 100})
    #           cost  latency priority
    # ant        4       1       1      6.0
    # bee        1       3       2      6.0
    # cat        2       1       2      5.0
    assert names(policy("balanced"), groups, live=live)[0] == "c"
    assert names(policy("balanced", balance=Balance(latency=0.25)), groups, live=live) == "bca", "3.75, 4.25, 5.25"
    ordered, why = ordered_by(policy("balanced"), groups, asking(), live, STAGES)
    assert (ordered[0], why) == ("cat", "cat has 5.00, the best 5.00")


def test_balanced_looks_at_the_load_where_it_has_a_weight() -> None:
    only = Balance(cost=0, latency=0, priority=0, load=1)
    live = doing(in_flight={"ant": 3, "bee": 1})
    assert names(policy("balanced", balance=only), plain(), live=live) == "cba"


def test_balanced_takes_what_it_does_not_know_for_the_worst() -> None:
    live = doing({"ant": 100, "bee": 200}, {"cat": 1})
    assert names(policy("balanced"), priced(5, None, 1), live=live) == "cab"


# -- weights, load, turns ----------------------------------------------------------------------------------------------


def test_shares_follow_the_weights() -> None:
    by_weight = policy("weighted", weights={"ant": 70, "bee": 20, "cat": 10})
    first = firsts(lambda n: names(by_weight, plain(), asking(f"request-{n}")), 20_000)
    expected = {"a": 14_000, "b": 4_000, "c": 2_000}
    chi_square = sum((first[name] - count) ** 2 / count for name, count in expected.items())
    assert chi_square < 13.8, "0.1 % at two degrees of freedom"


def test_no_weight_means_no_request_unless_nothing_else_is_left() -> None:
    by_weight = policy("weighted", weights={"ant": 0, "bee": 0.001, "cat": 0})
    assert set(firsts(lambda n: names(by_weight, plain(), asking(str(n))), 300)) == {"b"}
    assert names(by_weight, plain()[:1]) == "a"


def test_a_changed_weight_moves_only_units_to_or_from_its_candidate() -> None:
    before = policy("weighted", weights={"ant": 1, "bee": 1, "cat": 2}, sticky="user")
    after = policy("weighted", weights={"ant": 1, "bee": 1, "cat": 4}, sticky="user")
    moves = Counter(
        (names(before, plain(), asking(user=f"u{n}"))[0], names(after, plain(), asking(user=f"u{n}"))[0])
        for n in range(3000)
    )
    assert {pair for pair in moves if pair[0] != pair[1]} == {("a", "c"), ("b", "c")}
    moved = sum(count for pair, count in moves.items() if pair[0] != pair[1])
    assert moved == pytest.approx(3000 * (4 / 6 - 2 / 4), rel=0.15), "no more than the shares themselves change"


def test_the_least_busy_is_first_by_its_weight() -> None:
    live = doing(in_flight={"ant": 3, "bee": 2, "cat": 5})
    assert names(policy("least_busy"), plain(), live=live) == "bac"
    assert names(policy("least_busy"), plain(weight=(1.0, 1.0, 4.0)), live=live) == "cba"


def test_turns_are_taken_by_policy() -> None:
    live = doing()
    assert [names(policy("round_robin"), plain(), live=live) for _ in range(4)] == ["abc", "bca", "cab", "abc"]


# -- availability ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", list(Objective))
def test_what_takes_no_requests_comes_last_with_the_reason(objective: Objective) -> None:
    live = doing({"ant": 1, "bee": 500, "cat": 900})
    live.deployments_of = lambda group: (f"{group}-1",)
    live.open_breaker = lambda deployment: deployment == "ant-1"
    groups = plain(priority=(1, 2, 3), input_nano=(1, 2, 3), output_nano=(1, 2, 3))
    ordered, why = ordered_by(policy(objective), groups, asking(), live, STAGES)
    assert ordered[-1] == "ant"
    assert "ant last: takes no requests now" in why
    live = doing()
    live.deployments_of, live.open_breaker = lambda group: (f"{group}-1",), lambda _: True
    ordered, _ = ordered_by(policy(objective), groups, asking(), live, STAGES)
    assert len(ordered) == 3, "where none does, they are ordered as ever"


# -- staying -----------------------------------------------------------------------------------------------------------


def test_the_unit_is_the_session_of_its_owner_or_the_user() -> None:
    assert sticky_key(policy(), asking(session_id="1", user="ada")) is None
    by_session, by_user = policy(sticky="session"), policy(sticky=Sticky.USER)
    assert sticky_key(by_session, asking(user="ada")) is None
    ada, bob = (sticky_key(by_session, asking(session_id="1", user=user)) for user in ("ada", "bob"))
    assert ada is not None
    assert ada != bob, "both count their sessions from 1"
    assert sticky_key(by_user, asking(session_id="1", user="ada")) != ada
    assert sticky_key(by_user, asking()) is None


@pytest.mark.parametrize("objective", ["cost", "latency", "balanced"])
def test_a_session_stays_while_times_go_up_and_down(objective: str) -> None:
    of = policy(objective, sticky="session")
    groups = priced(10, 10.5, 10.2)
    kept = 0
    for number in range(300):
        session = asking(session_id=str(number))
        seen = {
            names(of, groups, session, doing({"ant": ant, "bee": 520 - swing, "cat": 505 + swing}))[0]
            for swing, ant in ((0, 500), (15, 530), (-15, 480), (10, 510))
        }
        kept += len(seen) == 1
    assert kept > 285
    spread = firsts(lambda n: names(of, groups, asking(session_id=str(n)), doing({"ant": 500, "bee": 510, "cat": 490})))
    assert all(spread[letter] > 850 for letter in "abc"), "and sessions are spread over them"


def test_around_the_border_of_what_is_near_few_sessions_move() -> None:
    of = policy("latency", sticky="session")
    moved = sum(
        names(of, plain(), asking(session_id=str(n)), doing({"ant": 500, "bee": 595, "cat": 2000}))[0]
        != names(of, plain(), asking(session_id=str(n)), doing({"ant": 500, "bee": 605, "cat": 2000}))[0]
        for n in range(1000)
    )
    assert 0 < moved < 100


def test_a_session_leaves_what_has_become_much_slower() -> None:
    of = policy("latency", sticky="session")
    live = doing({"ant": 500, "bee": 700, "cat": 510})
    assert firsts(lambda n: names(of, plain(), asking(session_id=str(n)), live))["b"] == 0


def test_a_candidate_that_leaves_moves_only_the_sessions_it_had() -> None:
    of = policy("latency", sticky="session")
    live = doing({"ant": 500, "bee": 500, "cat": 500})
    for number in range(500):
        session = asking(session_id=str(number))
        before = names(of, plain(), session, live)
        assert names(of, [one for one in plain() if one.name != "bee"], session, live) == before.replace("b", "")


def test_round_robin_deals_sessions_where_it_is_sticky() -> None:
    of, live = policy("round_robin", sticky="session"), doing()
    assert len({names(of, plain(), asking(str(n), session_id="one"), live) for n in range(5)}) == 1
    assert all(count > 850 for count in firsts(lambda n: names(of, plain(), asking(session_id=str(n)), live)).values())


def test_a_session_leaves_the_least_busy_only_where_it_is_crowded() -> None:
    of = policy("least_busy", sticky="session")
    session = asking(session_id="one")
    home = names(of, plain(), session)[0]
    full = next(name for name in NAMES if name[0] == home)
    evenly = dict.fromkeys(NAMES, 8)
    assert names(of, plain(), session, doing(in_flight={**evenly, full: 9}))[0] == home
    assert names(of, plain(), session, doing(in_flight={**evenly, full: 16}))[0] != home


# -- draws -------------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_everywhere_and_for_good() -> None:
    seed = seed_of("smart", "session\0ada\x001")
    assert (seed, draws(seed, ("ant", "bee"))) == GOLDEN
    assert draws(seed, ("bee",)) == GOLDEN[1][1:], "whatever else is drawn"


GOLDEN = (14058092201571987532, [17022804545153974274, 8445915179180694170])


def test_every_order_of_the_candidates_is_equally_likely() -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    for number in range(24_000):
        drawn = draws(seed_of("smart", f"user\0u{number}"), ("ant", "bee", "cat", "dog"))
        seen[tuple(name for _, name in sorted(zip(drawn, ("ant", "bee", "cat", "dog"), strict=True)))] += 1
    assert len(seen) == len(list(permutations(range(4))))
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 49.7, "0.1 % at 23 degrees of freedom"


def test_the_largest_and_the_smallest_draw_can_be_weighed() -> None:
    assert all(value >= 0 for value in weighted_draws(0, ("a", "b"), (1.0, 2.0)))
    assert weighted_draws(5, ("a",), (0.0,)) == [float("inf")]


PRICES = some.sampled_from([None, 0.0, 1.0, 7.5])


@settings(max_examples=150, deadline=None)
@given(
    objective=some.sampled_from(list(Objective)),
    sticky=some.sampled_from([None, "session", "user"]),
    stages=some.permutations(list(Stage)),
    groups=some.lists(
        some.builds(
            Candidate,
            name=some.sampled_from([f"m{n}" for n in range(8)]),
            priority=some.sampled_from([None, 1, 2, 10]),
            weight=some.sampled_from([0.0, 1.0, 3.0]),
            input_nano=PRICES,
            output_nano=PRICES,
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda one: one.name,
    ),
    latency=some.dictionaries(some.sampled_from([f"m{n}" for n in range(8)]), some.sampled_from([0, 5, 300, 60_000])),
    busy=some.dictionaries(some.sampled_from([f"m{n}" for n in range(8)]), some.integers(0, 5)),
    shut=some.sets(some.sampled_from([f"m{n}" for n in range(8)])),
    session=some.sampled_from([None, "one"]),
)
def test_nothing_is_lost_or_invented_whatever_is_known(
    objective: Objective,
    sticky: str | None,
    stages: list[Stage],
    groups: list[Candidate],
    latency: dict[str, float],
    busy: dict[str, int],
    shut: set[str],
    session: str | None,
) -> None:
    of = Policy(candidates=("m0",), objective=objective, sticky=sticky, balance=Balance(load=1), weights={"m1": 0})
    live = doing(latency, busy)
    live.deployments_of = lambda group: (group,)
    live.open_breaker = shut.__contains__
    context = asking(session_id=session, user="ada", input_tokens=7)
    ordered, why = ordered_by(of, groups, context, live, stages)
    assert sorted(ordered) == sorted(one.name for one in groups)
    assert why
    takes = [name not in shut for name in ordered]
    assert takes == sorted(takes, reverse=True)
    if objective is not Objective.ROUND_ROBIN:
        assert ordered_by(of, groups, context, live, stages)[0] == ordered
