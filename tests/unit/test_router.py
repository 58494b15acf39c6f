from core.access import TierAccess
from core.context import Caller, RequestContext
from core.settings.models import Policy, Tier
from custom_router.router import rank

ACCESS = TierAccess(
    {"free": Tier(models=("small",)), "gpt": Tier(models=("gpt-*",)), "named": Tier(models=("smart",)), "all": Tier()}
)
POLICIES = {"smart": Policy(candidates=("large", "small"), grants=True)}


def context(asked: str, *tiers: str) -> RequestContext:
    return RequestContext("r", "chat_completions", Caller(tier=tiers[0] if tiers else None, tiers=tiers), asked)


def test_a_policy_stands_for_its_candidates_in_their_order() -> None:
    plan = rank(context("smart"), POLICIES, ACCESS)
    assert (plan.policy, plan.candidates, plan.grants) == ("smart", ("large", "small"), True)


def test_a_name_that_is_no_policy_stands_for_itself() -> None:
    assert rank(context("large"), POLICIES, ACCESS).candidates == ("large",)


def test_a_tier_leaves_out_what_it_does_not_permit_and_says_so() -> None:
    plan = rank(context("smart", "free"), POLICIES, ACCESS)
    assert plan.candidates == ("small",)
    assert plan.left_out == (("large", "tier free does not permit it"),)


def test_a_tier_that_lists_a_policy_still_has_to_permit_its_candidates() -> None:
    assert rank(context("smart", "named"), POLICIES, ACCESS).candidates == ()


def test_every_tier_of_a_caller_must_permit() -> None:
    assert rank(context("smart", "all", "free"), POLICIES, ACCESS).candidates == ("small",)


def test_globs_match_names_and_an_unknown_tier_permits_nothing() -> None:
    assert ACCESS.permits(["gpt"], "gpt-4o")
    assert not ACCESS.permits(["gpt"], "claude")
    assert not ACCESS.permits(["nobody"], "small")
