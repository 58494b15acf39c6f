"""Which budgets a request is charged to, and how much each of them allows."""

from collections.abc import Callable
from decimal import Decimal
from timeit import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.budgets import Account, BudgetTerms, Catalog, Coverage, Per
from core.context import Caller
from core.settings.models import AtLimit, Budget

NOW = 1_800_014_400_000  # 15 January 2027, noon in UTC
HASH = "0a" * 32
ADA = Caller(key_hash=HASH, key_alias="laptop", user_id="ada", team_id="research", groups=("ai", "staff"))
NOBODY = Caller()


def budget(budget_id: str = "b", /, **said: object) -> Budget:
    return Budget.model_validate({"budget_id": budget_id, "total_budget": 1, **said})


def terms(**said: object) -> BudgetTerms:
    return BudgetTerms.of(budget(**said))


def applies(caller: Caller = ADA, model: str = "large", asked: str = "smart", **said: object) -> bool:
    return len(Catalog([budget(**said)]).applying(caller, "coding", asked).charges(model, NOW)) == 1


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"users": ["eve", "ada"]},
        {"teams": ["research"]},
        {"user_groups": ["ops", "staff"]},
        {"keys": [HASH]},
        {"keys": [f"sha256:{HASH}"]},
        {"keys": ["laptop"]},
        {"task_types": ["coding"]},
        {"models": ["large"]},
        {"models": ["lar*"]},
        {"models": ["smart"]},
        {"users": ["ada"], "teams": ["research"], "user_groups": ["ai"], "models": ["*"], "task_types": ["coding"]},
    ],
)
def test_a_budget_applies_where_every_scope_that_it_has_matches(scope: dict[str, object]) -> None:
    assert applies(**scope)


@pytest.mark.parametrize(
    "scope",
    [
        {"users": ["eve"]},
        {"users": ["Ada"]},
        {"teams": ["ada"]},
        {"user_groups": ["a"]},
        {"keys": ["0a"]},
        {"task_types": ["chat"]},
        {"models": ["small"]},
        {"models": ["LAR*"]},
        {"users": ["ada"], "teams": ["sales"]},
        {"users": ["ada"], "models": ["small"]},
        {"users": ["eve"], "models": ["large"]},
    ],
)
def test_and_nowhere_else(scope: dict[str, object]) -> None:
    assert not applies(**scope)


@pytest.mark.parametrize(
    ("per", "member"), [("user", "ada"), ("team", "research"), ("key", HASH), ("model", "large"), (None, "")]
)
def test_each_member_has_an_account(per: str | None, member: str) -> None:
    (charge,) = Catalog([budget(per=per)]).applying(ADA, None, "smart").charges("large", NOW)
    assert charge.account == Account(charge.budget.key, 1_798_761_600_000, member, 1_801_440_000_000)
    assert Account.parse(charge.account.key, charge.account.end_ms) == charge.account


@pytest.mark.parametrize("per", ["user", "team", "key"])
def test_who_is_nobody_has_no_allowance_of_their_own(per: str) -> None:
    assert not applies(NOBODY, per=per)
    assert not applies(Caller(user_id="", team_id="", key_hash=""), per=per)


def test_an_alias_of_a_model_is_the_model() -> None:
    catalog = Catalog(
        [budget("by-group", models=["small"]), budget("by-alias", models=["tiny"]), budget("each", per="model")],
        ["small", "large"],
        {"tiny": "small"},
    )
    charges = catalog.applying(ADA, None, "tiny").charges("tiny", NOW)
    assert [(charge.budget.budget_id, charge.account.member) for charge in charges] == [
        ("by-group", ""),
        ("by-alias", ""),
        ("each", "small"),
    ]
    assert [catalog.models_of(one) for one in catalog] == [("small",), ("small",), ("small", "large")]


def test_what_applies_is_charged_in_the_order_of_the_configuration() -> None:
    scopes: list[dict[str, object]] = [
        {"models": ["large"]},
        {"users": ["ada"]},
        {},
        {"user_groups": ["staff", "ai"]},
        {"models": ["l*"], "teams": ["research"]},
        {"users": ["eve"]},
        {"models": ["smart"], "per": "user"},
    ]
    catalog = Catalog([budget(f"b{number}", **scope) for number, scope in enumerate(scopes)])
    charges = catalog.applying(ADA, None, "smart").charges("large", NOW)
    assert [charge.budget.budget_id for charge in charges] == ["b0", "b1", "b2", "b3", "b4", "b6"]


def test_each_candidate_has_its_own_charges() -> None:
    applying = Catalog([budget("dear", models=["large"]), budget("all")]).applying(ADA, None, "smart")
    assert [charge.budget.budget_id for charge in applying.charges("large", NOW)] == ["dear", "all"]
    assert [charge.budget.budget_id for charge in applying.charges("small", NOW)] == ["all"]


def test_an_attempt_is_charged_to_the_period_that_it_is_reserved_in() -> None:
    catalog = Catalog([budget(reset_period="DAILY", timezone="Europe/Berlin", per="user")])
    applying = catalog.applying(ADA, None, "smart")
    midnight = 1_800_054_000_000
    starts = [applying.charges("large", at)[0].account.start_ms for at in (NOW, midnight - 1, midnight, NOW)]
    assert starts == [midnight - 86_400_000, midnight - 86_400_000, midnight, midnight - 86_400_000]


def test_a_member_with_an_override_has_that_limit() -> None:
    catalog = Catalog(
        [
            budget("people", total_budget=20, per="user", overrides={"ada": "0.000000001"}),
            budget("keys", total_budget=20, per="key", overrides={f"sha256:{HASH}": 5, "1b" * 32: 6}),
            budget("models", total_budget=20, per="model", overrides={"small": 0}),
        ]
    )
    charges = catalog.applying(ADA, None, "smart").charges("large", NOW)
    assert [charge.limit_nano for charge in charges] == [1, 5_000_000_000, 20_000_000_000]
    assert catalog.applying(ADA, None, "smart").charges("small", NOW)[2].limit_nano == 0


@pytest.mark.parametrize(
    ("total", "nano"),
    [
        ("1000000000", 10**18),
        ("999999999.999999999", 10**18 - 1),
        (1_000_000_000.0, 10**18),
        (0.1, 100_000_000),
        ("0.000000001", 1),
        (0, 0),
    ],
)
def test_totals_are_exact(total: str | float, nano: int) -> None:
    assert terms(total_budget=total).total_nano == nano


def test_terms_say_what_the_configuration_says() -> None:
    one = terms(
        name="Everyone", at_limit="degrade", degrade_to=["small"], flat_reserve=0.25, rollover={"max": 2}, per="team"
    )
    assert (one.name, one.at_limit, one.degrade_to) == ("Everyone", AtLimit.DEGRADE, ("small",))
    assert (one.flat_reserve_nano, one.rollover_nano, one.per) == (250_000_000, 2_000_000_000, Per.TEAM)
    assert one.thresholds == (Decimal("0.5"), Decimal("0.8"), Decimal("0.95"))
    plain = terms()
    assert (plain.name, plain.flat_reserve_nano, plain.rollover_nano, plain.per) == ("b", None, None, None)


def test_a_budget_is_found_by_its_id() -> None:
    catalog = Catalog([budget("one"), budget("two")])
    two = catalog.budget("two")
    assert two is not None
    assert list(catalog)[1] is two
    assert catalog.budget("three") is None
    assert len(catalog) == 2


def test_accounts_of_today_are_found_again_tomorrow() -> None:
    """Written down: another digest would empty every account there is."""
    assert terms().key == "b~3453a7d1"
    assert terms(per="user", users=["b", "a"], models=["x*"], reset_period="WEEKLY").key == "b~5d1361e9"
    assert terms(reset_period="QUARTERLY", timezone="Asia/Tokyo", anchor={"month": 5, "day": 6}).key == "b~83e5e83f"
    assert terms(reset_period="TOTAL", keys=[HASH], task_types=["chat"], teams=["t"], user_groups=["g"]).key == (
        "b~c1e2e4f0"
    )


@pytest.mark.parametrize(
    "said",
    [
        {"name": "other", "total_budget": 5, "alert_thresholds": [0.1], "at_limit": "warn", "flat_reserve": 1},
        {"rollover": {"max": 1}, "anchor": {"day": 1}},
        {"users": ["b", "a", "b"]},
        {"keys": [f"sha256:{HASH}"]},
        {"overrides": {"ada": 5}},
        {"timezone": "UTC"},
    ],
)
def test_what_does_not_change_who_is_charged_when_keeps_the_accounts(said: dict[str, object]) -> None:
    same = {"users": ["a", "b"], "keys": [HASH], "per": "user"}
    assert terms(**{**same, **said}).key == terms(**same).key


@pytest.mark.parametrize(
    "said",
    [
        {"users": ["a"]},
        {"users": ["a"], "teams": ["b"]},
        {"per": "team"},
        {"models": ["x"]},
        {"user_groups": ["x"]},
        {"task_types": ["x"]},
        {"timezone": "Europe/Berlin"},
        {"reset_period": "DAILY"},
        {"anchor": {"day": 2}},
    ],
)
def test_what_changes_it_opens_new_ones(said: dict[str, object]) -> None:
    before = {"users": ["a", "b"], "per": "user"}
    assert terms(**{**before, **said}).key != terms(**before).key


def test_a_timezone_says_nothing_about_a_budget_that_never_starts_anew() -> None:
    assert terms(reset_period="TOTAL", timezone="Asia/Tokyo").key == terms(reset_period="TOTAL").key


names = st.sampled_from(["a", "b", "c"])
some = st.lists(names, max_size=2, unique=True)
models = st.sampled_from(["m1", "m2", "n1"])
patterns = st.lists(st.sampled_from(["m1", "m*", "n?", "p", "*", "alias"]), max_size=2, unique=True)
scopes = st.fixed_dictionaries(
    {"users": some, "teams": some, "user_groups": some, "keys": some, "task_types": some, "models": patterns}
    | {"per": st.sampled_from([None, "user", "team", "key", "model"])}
)
maybe = st.none() | names
callers = st.builds(
    Caller,
    key_hash=maybe,
    key_alias=maybe,
    user_id=maybe,
    team_id=maybe,
    groups=st.lists(names, unique=True).map(tuple),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    all_scopes=st.lists(scopes, max_size=12),
    caller=callers,
    task_type=maybe,
    asked=st.sampled_from(["m1", "p", "alias"]),
    served=st.lists(models | st.just("alias"), min_size=1, max_size=3),
)
def test_the_index_finds_what_a_look_at_every_budget_finds(
    all_scopes: list[dict[str, object]], caller: Caller, task_type: str | None, asked: str, served: list[str]
) -> None:
    budgets = [budget(f"b{number}", **scope) for number, scope in enumerate(all_scopes)]
    applying = Catalog(budgets, ["m1", "m2", "n1"], {"alias": "n1"}).applying(caller, task_type, asked)
    for model in served:
        group = "n1" if model == "alias" else model
        expected = [
            one.budget_id
            for one in budgets
            if (coverage := Coverage.of(one)).covers(caller, task_type, group, asked)
            or coverage.covers(caller, task_type, model, asked)
        ]
        assert [charge.budget.budget_id for charge in applying.charges(model, NOW)] == expected


def seconds(work: Callable[[], object]) -> float:
    return min(repeat(work, number=200, repeat=7))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["users", "teams", "user_groups", "keys", "task_types", "models", "shared group"])
def test_ten_thousand_budgets_of_others_cost_a_request_nothing(scope: str) -> None:
    def catalog(count: int) -> Catalog:
        others = (
            {"user_groups": ["staff"], "users": [f"other{number}"]}
            if scope == "shared group"
            else {scope: [f"other{number}"]}
            for number in range(count)
        )
        mine = [budget("mine", users=["ada"]), budget("all"), budget("each", per="user")]
        return Catalog([*mine, *(budget(f"b{number}", **other) for number, other in enumerate(others))])

    def asks(catalog: Catalog) -> Callable[[], object]:
        return lambda: catalog.applying(ADA, "coding", "smart").charges("large", NOW)

    assert seconds(asks(catalog(10_000))) < 5 * seconds(asks(catalog(10)))
