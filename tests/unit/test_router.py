"""From a request's context to the ranked groups that may serve it: what removes a group, what moves it to the front,
and which stage has the last word."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from core.access import TierAccess
from core.context import Caller, Need, RequestContext
from core.settings import Settings
from core.settings.models import Stage
from custom_router.candidates import Candidate
from custom_router.decision import Assignment, Plan
from custom_router.experiments.assignment import Assigner
from custom_router.router import Router
from plugins.routing.live import Loads
from tests.support.clock import Clock

THREE = ("large", "medium", "small")
TIERS = {
    "free": {"models": ["small", "tiny"]},
    "gpt": {"models": ["gpt-*"]},
    "named": {"models": ["smart"]},
    "all": {"models": ["*"]},
}


def ab(
    control: str | None = "large", treatment: str | None = "small", *, winner: str = "treatment", **more: Any
) -> dict[str, Any]:
    """An experiment that has everybody in the arm `winner`."""
    arms = (("control", control), ("treatment", treatment))
    variants = [{"id": name, "model": model, "weight": 100 if name == winner else 0} for name, model in arms]
    return {"id": "ab", "policy": "smart", "variants": variants, "status": "running", **more}


class World:
    """A router over some groups, and how they are doing."""

    def __init__(
        self,
        *rules: Mapping[str, Any],
        experiments: Sequence[Mapping[str, Any]] = (),
        groups: Sequence[Candidate] = (),
        policies: Mapping[str, Any] | None = None,
        **routing: Any,
    ) -> None:
        named = [{"id": f"rule{number}", "when": "true", **rule} for number, rule in enumerate(rules, 1)]
        policy = {"candidates": THREE, **routing.pop("policy", {})}
        self.settings = Settings.model_validate(
            {
                "tiers": TIERS,
                "routing": {
                    "policies": policies or {"smart": policy},
                    "rules": named,
                    "experiments": experiments,
                    "match": "all",
                    **routing,
                },
            }
        )
        self.groups = {group.name: group for group in groups}
        self.clock = Clock()
        self.loads = Loads(lambda _group, _task: 100, self.clock)
        self.loads.deployments_of = lambda group: (f"{group}-id",)
        self.router = self.with_assigner(None)

    def with_assigner(self, assigner: Assigner | None) -> Router:
        access = TierAccess(self.settings.tiers)
        return Router(self.settings, access, lambda name: self.groups.get(name, Candidate(name)), self.loads, assigner)

    def plan(
        self, asked: str = "smart", *tiers: str, key: Sequence[str] | None = None, trace: bool = False, **more: Any
    ) -> Plan:
        """The plan for a request of ada's; `key` are the groups that her key may use."""
        caller = Caller(user_id=more.pop("user", "ada"), team_id="t", tier=tiers[0] if tiers else None, tiers=tiers)
        context = RequestContext(more.pop("request_id", "r"), "chat_completions", caller, asked, **more)
        return self.router.decide(context, lambda group: key is None or group in key, trace=trace)

    def first_letters(self, *tiers: str, **more: Any) -> str:
        return "".join(name[0] for name in self.plan("smart", *tiers, **more).candidates)


# -- who may serve -----------------------------------------------------------------------------------------------------


def test_a_policy_stands_for_its_candidates_in_their_order() -> None:
    plan = World(policy={"grants": True}).plan()
    assert (plan.policy, plan.candidates, plan.grants) == ("smart", THREE, True)


def test_a_name_that_is_no_policy_stands_for_itself() -> None:
    plan = World().plan("tiny")
    assert (plan.policy, plan.candidates) == (None, ("tiny",))


@pytest.mark.parametrize("key", [None, ["tiny"], []])
@pytest.mark.parametrize("tier", ["free", "gpt"])
def test_the_short_way_to_a_name_that_is_no_policy_ends_where_the_long_one_does(
    tier: str, key: list[str] | None
) -> None:
    world = World()
    short = [world.plan("tiny", tier, key=key) for _ in range(2)]
    assert short == [world.plan("tiny", tier, key=key, trace=True)._replace(steps=())] * 2


def test_a_tier_leaves_out_what_it_does_not_permit_and_says_so() -> None:
    plan = World().plan("smart", "free")
    assert plan.candidates == ("small",)
    assert plan.left_out == tuple((name, "tier free does not permit it") for name in ("large", "medium"))
    assert not plan.incapable


def test_a_tier_that_lists_a_policy_still_has_to_permit_its_candidates() -> None:
    assert World().plan("smart", "named").candidates == ()


def test_every_tier_of_a_caller_must_permit() -> None:
    assert World().plan("smart", "all", "free").candidates == ("small",)


def test_globs_match_names_and_an_unknown_tier_permits_nothing() -> None:
    access = World().router.access
    assert access.permits(["gpt"], "gpt-4o")
    assert not access.permits(["gpt"], "claude")
    assert not access.permits(["nobody"], "small")


def test_a_key_is_asked_about_each_candidate() -> None:
    plan = World().plan(key=["small", "large"])
    assert plan.candidates == ("large", "small")
    assert plan.left_out == (("medium", "this key may not use it"),)


@pytest.mark.parametrize(
    ("rule", "permitted"),
    [
        ({"use": ["medium", "tiny"]}, "m"),
        ({"use": ["*"], "prefer": ["tiny"]}, "lms"),
        ({"prefer": ["small"], "exclude": ["large"]}, "sm"),
    ],
    ids=["use", "use-glob", "prefer-and-exclude"],
)
def test_a_rule_brings_in_nothing_that_the_key_may_not_use(rule: dict[str, Any], permitted: str) -> None:
    assert World(rule).first_letters(key=THREE) == permitted


@pytest.mark.parametrize(
    ("regions", "order"), [({"large": "us", "medium": "eu", "small": "eu"}, "ms"), ({"small": "us"}, "")]
)
def test_only_groups_with_a_deployment_in_the_policys_regions_serve(regions: dict[str, str], order: str) -> None:
    groups = [Candidate(name, regions=frozenset({region})) for name, region in regions.items()]
    world = World(groups=groups, policy={"regions": ["eu"]})
    plan = world.plan()
    assert "".join(name[0] for name in plan.candidates) == order
    assert plan.regions == ("eu",)
    assert dict(plan.left_out)["large"] == "none of its deployments is in eu"
    assert plan.incapable == (not order)


def test_what_a_candidate_lacks_leaves_it_out_of_requests_that_need_it() -> None:
    blind = Candidate("large", lacks=frozenset({Need.IMAGES, Need.TOOLS}))
    world = World(groups=[blind])
    assert world.first_letters() == "lms"
    assert world.first_letters(needs=frozenset({Need.JSON})) == "lms"
    plan = world.plan(needs=frozenset({Need.IMAGES}))
    assert plan.candidates == ("medium", "small")
    assert plan.left_out == (("large", "it does not take images"),)


def test_where_nobody_can_serve_it_the_plan_says_so_and_whether_anybody_might_have_been_used() -> None:
    blind = [Candidate(name, lacks=frozenset({Need.IMAGES})) for name in THREE]
    world = World(groups=blind)
    needs = frozenset({Need.IMAGES})
    assert world.plan(needs=needs).incapable
    assert world.plan("smart", "free", needs=needs).incapable
    assert not world.plan("smart", "named", needs=needs).incapable, "nothing that it may use was too little"


class TestWindows:
    GROUPS = (
        Candidate("large", context_window=1000),
        Candidate("medium", context_window=2000),
        Candidate("small", context_window=100),
    )

    @pytest.mark.parametrize(("tokens", "order"), [(100, "lms"), (101, "lm"), (1001, "m"), (9000, "m")])
    def test_what_does_not_fit_is_left_out_but_the_longest_stays(self, tokens: int, order: str) -> None:
        """Input tokens are an estimate."""
        assert World(groups=self.GROUPS).first_letters(input_tokens=tokens) == order

    def test_the_longest_is_one_of_those_that_may_be_used(self) -> None:
        world = World({"use": ["large"]}, groups=self.GROUPS)
        assert world.plan("smart", "free", input_tokens=9000).candidates == (), "the rule leaves none of the tier's"
        assert world.first_letters(input_tokens=9000) == "l"
        assert World(groups=self.GROUPS).plan("smart", "free", input_tokens=9000).candidates == ("small",)

    def test_it_is_a_candidate_of_the_policy_and_no_variant_of_an_experiment_that_the_request_is_not_in(self) -> None:
        """The variant's model has been looked at, and found too short as well."""
        groups = (*self.GROUPS, Candidate("huge", context_window=5000))
        world = World(experiments=[ab("huge", "small")], groups=groups)
        plan = world.plan(input_tokens=9000)
        assert plan.candidates == ("medium",)
        assert {name for name, _ in plan.left_out} == {"large", "small"}


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "order"),
    [
        ([{"use": ["small"]}], "s"),
        ([{"use": ["m*", "s*"]}], "ms"),
        ([{"use": ["tiny", "small"]}], "st"),
        ([{"use": ["large", "medium"]}, {"use": ["medium", "small"]}], "m"),
        ([{"use": ["large"]}, {"use": ["small"]}], ""),
        ([{"prefer": ["small"]}], "slm"),
        ([{"prefer": ["small", "medium"]}], "sml"),
        ([{"prefer": ["small"]}, {"prefer": ["medium"]}], "sml"),
        ([{"prefer": ["small"], "priority": 900}, {"prefer": ["medium"]}], "msl"),
        ([{"prefer": ["tiny"]}], "lms"),
        ([{"exclude": ["large"]}], "ms"),
        ([{"exclude": ["*"]}], ""),
        ([{"use": ["large", "small"], "exclude": ["large"]}], "s"),
        ([{"when": "false", "use": ["small"]}], "lms"),
        ([{"when": {"user_tier": "all"}, "use": ["small"]}], "lms"),
        ([{"set": {"temperature": 0}}], "lms"),
    ],
)
def test_what_rules_say_about_candidates(rules: list[dict[str, Any]], order: str) -> None:
    assert World(*rules).first_letters() == order


def test_only_the_first_rule_that_matches_is_followed_where_the_settings_say_so() -> None:
    rules = [{"when": "false", "use": ["large"]}, {"prefer": ["small"]}, {"exclude": ["small"]}]
    assert World(*rules, match="first").first_letters() == "slm"
    assert World(*rules, match="all").first_letters() == "lm"


def test_a_rule_that_denies_refuses_whatever_else_there_is() -> None:
    world = World({"use": ["small"]}, {"when": {"task_type": "bulk"}, "deny": "Not today."}, experiments=[ab()])
    assert world.plan().denied is None
    for asked, policy in (("smart", "smart"), ("large", None)):
        plan = world.plan(asked, task_type="bulk")
        assert (plan.denied, plan.denied_by, plan.policy) == ("Not today.", "rule2", policy)
        assert (plan.candidates, plan.assignments, plan.reason) == ((), (), "rule=rule2 denied")


def test_rules_hold_for_a_model_that_is_asked_for_by_its_own_name() -> None:
    world = World({"exclude": ["large"], "set": {"temperature": 0}}, {"use": ["small"]})
    assert world.plan("large").candidates == ()
    assert world.plan("large").left_out == (("large", "rule rule1 excludes it"),)
    plan = world.plan("medium")
    assert (plan.candidates, plan.set) == (("medium",), {"temperature": 0})


def test_without_the_stage_there_are_no_rules() -> None:
    world = World({"deny": "no"}, order=["experiments", "tiers", "priority", "cost"])
    assert world.first_letters() == "lms"


class TestWhatLiteLLMWouldTryBesides:
    """Its own fallbacks and the models that budgets degrade to are not in the plan: the rules hold for them as well."""

    @pytest.mark.parametrize(
        ("rules", "asked", "barred"),
        [
            ([{"exclude": ["tiny"]}], "smart", True),
            ([{"exclude": ["tiny"]}], "large", True),
            ([{"when": "false", "exclude": ["tiny"]}], "smart", False),
            ([{"use": ["l*"]}], "smart", True),
            ([{"use": ["t*", "large"]}], "smart", False),
            ([{"use": ["l*"]}], "large", False),
            ([{"prefer": ["large"]}], "smart", False),
            ([], "smart", False),
        ],
    )
    def test_a_rule_that_was_followed_bars_it(self, rules: list[dict[str, Any]], asked: str, barred: bool) -> None:
        world = World(*rules)
        assert world.router.bars(world.plan(asked), "tiny") == barred


# -- experiments -------------------------------------------------------------------------------------------------------


def test_the_units_variant_goes_first_and_is_counted() -> None:
    plan = World(experiments=[ab()]).plan()
    assert plan.candidates == ("small", "large", "medium")
    assert plan.assignments == (Assignment("ab", "treatment", "ada"),)
    assert plan.variants == "ab/treatment"


def test_a_variants_model_need_not_be_a_candidate() -> None:
    plan = World(experiments=[ab("large", "tiny")]).plan()
    assert plan.candidates == ("tiny", *THREE)


@pytest.mark.parametrize(
    "because",
    [
        {"tiers": ("free",)},
        {"key": ("small", "medium")},
        {"needs": frozenset({Need.AUDIO})},
        {"input_tokens": 5001},
        {"task_type": "bulk"},
        {"user": None},
    ],
    ids=["tier", "key", "capability", "window", "rule", "unit"],
)
def test_a_unit_that_may_not_have_every_variant_has_none(because: dict[str, Any]) -> None:
    deaf = Candidate("large", lacks=frozenset({Need.AUDIO}), context_window=5000)
    rule = {"when": {"task_type": "bulk"}, "exclude": ["large"]}
    world = World(rule, experiments=[ab()], groups=[deaf])
    assert world.plan().variants == "ab/treatment"
    plan = world.plan("smart", *because.pop("tiers", ()), **because)
    assert plan.assignments == ()
    assert plan.candidates == tuple(name for name in THREE if name in plan.candidates), "the policy's order"


def test_neither_has_one_where_the_policy_asks_for_another_region() -> None:
    groups = [Candidate(name, regions=frozenset({"eu"})) for name in ("large", "medium", "small")]
    assert World(experiments=[ab("large", "tiny")], groups=groups).plan().variants == "ab/treatment"
    world = World(experiments=[ab("large", "tiny")], groups=groups, policy={"regions": ["eu"]})
    assert (world.plan().candidates, world.plan().variants) == (THREE, "")


def test_another_policys_experiments_do_not_touch_a_request() -> None:
    policies = {"smart": {"candidates": THREE}, "quick": {"candidates": ["small", "large"]}}
    world = World(experiments=[ab()], policies=policies)
    assert world.plan("quick").candidates == ("small", "large")
    assert world.plan("quick").assignments == world.plan("small").assignments == ()


def test_where_experiments_are_no_stage_nobody_is_assigned() -> None:
    """Not even when the instances have agreed on the ranges of experiments."""
    changing = ab(None, None)
    changing["variants"][1] |= {"set": {"temperature": 1}, "system_prefix": "Be brief."}
    world = World(experiments=[changing], order=["rules", "tiers", "priority", "cost"])
    routing = world.settings.routing
    world.router = world.with_assigner(Assigner(routing.experiments, routing.holdout, {}, {}))
    plan = world.plan()
    assert (plan.candidates, plan.assignments, plan.set, plan.system_prefix) == (THREE, (), {}, None)


def test_a_promoted_variant_serves_everybody_and_nobody_is_in_the_experiment() -> None:
    world = World(experiments=[ab("large", "tiny", status="stopped", promote="treatment")])
    for user in ("ada", None):
        plan = world.plan(user=user)
        assert (plan.candidates, plan.assignments, plan.variants) == (("tiny", *THREE), (), "")


def test_a_forced_unit_has_its_variant_and_is_not_counted() -> None:
    world = World(experiments=[ab(forced={"ada": "control"}, traffic=0)])
    assert world.plan().assignments == (Assignment("ab", "control", "ada", counted=False),)
    assert world.plan(user="bob").assignments == ()


def test_an_arm_that_is_closed_changes_the_assigner_alone() -> None:
    world = World({"prefer": ["medium"]}, experiments=[ab()])
    before, router = world.plan(), world.router
    closed = router.with_assigner(router.assigner.with_state({}, {"ab": frozenset({"treatment"})}))
    world.router = closed
    assert (before.candidates[0], world.plan().candidates[0]) == ("small", "large")
    assert router.rules.hits == closed.rules.hits == {"rule1": 2}, "counted on"


def test_a_unit_whose_arm_is_closed_gets_the_control_and_is_in_no_experiment() -> None:
    world = World(experiments=[ab()])
    routing = world.settings.routing
    closed = {"ab": frozenset({"treatment"})}
    world.router = world.with_assigner(Assigner(routing.experiments, routing.holdout, {}, closed))
    assert (world.plan().candidates[0], world.plan().assignments) == ("large", ())


# -- the order of the stages -------------------------------------------------------------------------------------------

RULES_FIRST = ["rules", "experiments", "tiers", "priority", "cost"]


@pytest.mark.parametrize(
    ("rule", "experiments_first", "rules_first"),
    [
        ({"prefer": ["medium"]}, "sml", "msl"),
        ({"prefer": ["small"]}, "slm", "slm"),
        ({"use": ["medium"]}, "sm", "m"),
        ({"use": ["medium", "small"]}, "sm", "ms"),
        ({"use": ["large", "small"]}, "sl", "sl"),
        ({"exclude": ["small"]}, "lm", "lm"),
        ({"exclude": ["large"]}, "ms", "ms"),
    ],
)
def test_the_earlier_stage_has_the_last_word(rule: dict[str, Any], experiments_first: str, rules_first: str) -> None:
    """The unit's variant is small. A rule that keeps a unit from one of the variants keeps it from the experiment."""
    assert World(rule, experiments=[ab()]).first_letters() == experiments_first
    assert World(rule, experiments=[ab()], order=RULES_FIRST).first_letters() == rules_first


@pytest.mark.parametrize(("order", "temperature"), [(list(Stage), 2), (RULES_FIRST, 1)])
def test_so_it_has_about_the_fields_that_are_set(order: list[str], temperature: int) -> None:
    experiment = ab()
    experiment["variants"][1]["set"] = {"temperature": 2, "seed": 7}
    rule = {"set": {"temperature": 1, "max_tokens": 50}}
    later = {"set": {"temperature": 0, "timeout": 3}}
    plan = World(rule, later, experiments=[experiment], order=order).plan()
    assert plan.set == {"temperature": temperature, "max_tokens": 50, "seed": 7, "timeout": 3}


def test_prefixes_of_several_variants_stand_behind_each_other() -> None:
    def prefixed(name: str, text: str) -> dict[str, Any]:
        arm = {"id": "a", "system_prefix": text}
        return {"id": name, "policy": "smart", "variants": [arm, arm | {"id": "b"}], "status": "running"}

    plan = World(experiments=[prefixed("one", "Be brief."), ab()]).plan()
    assert (plan.system_prefix, plan.candidates[0]) == ("Be brief.", "small")
    plan = World(experiments=[prefixed("one", "Be brief."), prefixed("two", "Be kind.")]).plan()
    assert plan.system_prefix == "Be brief.", "what changes the same is for one experiment alone"


# -- availability and objectives ---------------------------------------------------------------------------------------


def test_what_takes_no_requests_comes_last_even_where_it_is_preferred() -> None:
    world = World({"prefer": ["large", "small"]})
    world.loads.disabled = lambda: {"large-id"}
    assert world.first_letters() == "sml"
    world.loads.disabled = lambda: {f"{name}-id" for name in THREE}
    world.clock.advance(1)
    assert world.first_letters() == "lsm", "where nothing takes any, all are as they were"


@pytest.mark.parametrize(
    ("objective", "order"),
    [
        ("priority", "msl"),
        ("cost", "slm"),
        ("latency", "lms"),
        ("balanced", "slm"),
        ("least_busy", "mls"),
        ("weighted", "mls"),
        ("round_robin", "lms"),
    ],
)
def test_the_policys_objective_orders_the_candidates(objective: str, order: str) -> None:
    groups = [
        Candidate("large", priority=3, input_nano=5, output_nano=5),
        Candidate("medium", priority=1, input_nano=9, output_nano=9),
        Candidate("small", priority=2, input_nano=1, output_nano=1),
    ]
    weights = {"medium": 1e9, "large": 1, "small": 1e-9}
    world = World(groups=groups, policy={"objective": objective, "weights": weights if objective == "weighted" else {}})
    for name, ms, running in (("large", 100, 1), ("medium", 300, 0), ("small", 500, 2)):
        world.loads.began(name, None)
        world.loads.ended(name, None, ms, None, 200, None)
        for _ in range(running):
            world.loads.began(name, None)
    assert world.first_letters() == order


def test_what_experiments_and_rules_prefer_goes_before_the_objective() -> None:
    groups = [
        Candidate(name, input_nano=price, output_nano=price) for name, price in zip(THREE, (9, 5, 1), strict=True)
    ]
    world = World({"prefer": ["medium"]}, groups=groups, policy={"objective": "cost"})
    assert world.first_letters() == "msl"


def test_a_session_stays_with_its_candidate_and_others_share_the_rest() -> None:
    world = World(policy={"objective": "weighted", "sticky": "session"})
    firsts = Counter(world.plan(session_id=str(one % 300), request_id=str(one)).candidates[0] for one in range(900))
    assert all(200 < firsts[name] < 400 for name in THREE), firsts
    of_one = {world.plan(session_id="s", request_id=str(one)).candidates for one in range(20)}
    assert len(of_one) == 1


class TestCustomStrategies:
    POLICY: Mapping[str, Any] = {"objective": "mine"}
    PATHS: Mapping[str, str] = {"mine": "somewhere.Mine"}

    def world(self, *rules: Mapping[str, Any], **more: Any) -> World:
        return World(*rules, policy=dict(self.POLICY), strategies=dict(self.PATHS), **more)

    def test_one_is_asked_about_the_candidates_that_are_left(self) -> None:
        plan = self.world({"exclude": ["medium"]}).plan()
        assert (plan.strategy, plan.tied, plan.candidates) == ("mine", ("large", "small"), ("large", "small"))

    def test_it_is_not_asked_where_a_rule_or_an_experiment_has_decided(self) -> None:
        assert self.world({"prefer": ["small"]}).plan().strategy is None
        assert self.world(experiments=[ab()]).plan().strategy is None
        assert self.world({"use": ["small"]}).plan().strategy is None, "there is nothing to choose"

    def test_nor_about_what_takes_no_requests(self) -> None:
        world = self.world()
        world.loads.disabled = lambda: {"large-id"}
        plan = world.plan()
        assert (plan.tied, plan.candidates) == (("medium", "small"), ("medium", "small", "large"))


# -- why ---------------------------------------------------------------------------------------------------------------


def test_the_reason_is_one_line_with_experiments_rules_objective_and_what_was_left_out() -> None:
    world = World({"prefer": ["medium"]}, {"exclude": ["medium"]}, experiments=[ab()])
    assert world.plan().reason == "ab/treatment rule=rule1 rule=rule2 priority not medium"
    assert World().plan("large", "free").reason == "asked not large"


def test_the_steps_say_in_the_order_of_the_stages_what_each_did() -> None:
    world = World({"exclude": ["medium"], "prefer": ["large"]}, experiments=[ab(None, None)])
    world.loads.disabled = lambda: {"large-id"}
    plan = world.plan("smart", "all", key=["medium", "small", "large"], trace=True)
    steps = {step.stage: step for step in plan.steps}
    assert list(steps) == ["experiments", "rules", "tiers", "objective", "availability"]
    assert steps["experiments"].why == "ab: treatment, since the user was drawn into it"
    assert steps["rules"].removed == (("medium", "rule rule1 excludes it"),)
    assert (steps["rules"].promoted, steps["rules"].why) == (("large",), "rule rule1 matches")
    assert steps["tiers"].why == "tier all"
    assert steps["objective"].why.startswith("priority: no candidate has a priority")
    assert steps["availability"].why.startswith("large: no deployment takes requests now")
    assert plan.candidates == ("small", "large")


def test_to_trace_a_decision_changes_neither_it_nor_any_counter() -> None:
    world = World({"prefer": ["small"]}, {"when": "metadata.x > 1", "exclude": ["small"]}, experiments=[ab()])
    traced = world.plan(trace=True)
    assert world.router.rules.hits == {"rule1": 0, "rule2": 0}
    assert world.router.rules.failures == {"rule1": 0, "rule2": 0}
    plain = world.plan()
    assert world.router.rules.hits == {"rule1": 1, "rule2": 0}
    assert (traced.candidates, traced.assignments, traced.reason) == (plain.candidates, plain.assignments, plain.reason)
    assert traced.steps and not plain.steps


def test_a_router_says_beforehand_which_groups_a_request_may_come_to() -> None:
    world = World({"when": "false", "use": ["tiny", "t*"]}, experiments=[ab("large", "other", status="draft")])
    assert world.router.groups("smart") == (*THREE, "other", "tiny")
    assert world.router.groups("large") == ("large",)


def test_it_says_what_conditions_look_at() -> None:
    assert World().router.metadata == frozenset()
    world = World({"when": "metadata.app == 'x'", "deny": "no"}, experiments=[ab(audience={"metadata.plan": "a"})])
    assert world.router.metadata == {"app", "plan"}
