import pytest

from core.context import Caller, Claims, Principal
from core.directory import Directory, hash_key
from core.errors import BadField
from core.settings import Settings

KEY = "sk-ada-key-for-this-test"
ENVIRON = {"os.environ/ADA": KEY}
SETTINGS = Settings.model_validate(
    {
        "keys": [
            {"key": "os.environ/ADA", "user_id": "ada", "team_id": "research", "tier": "premium", "models": ["smart"]},
            {"key_hash": f"sha256:{hash_key('sk-app')}", "user_id": "app", "tier": "premium", "trusted": True},
            {"key": "os.environ/NOT_SET", "user_id": "eve"},
        ],
        "groups": {"ai": {"users": ["ada"], "teams": ["research"]}, "ops": {"teams": ["sre"]}},
        "tiers": {"free": {"models": ["small"], "priority": 3}, "premium": {"models": ["*"], "priority": 1}},
        "default_tier": "free",
    }
)
DIRECTORY = Directory(SETTINGS, ENVIRON.get, ("small", "large"))


def caller(**principal: object) -> Caller:
    return DIRECTORY.caller(Principal(**principal))  # type: ignore[arg-type]


def test_a_key_is_found_by_its_value_and_by_its_hash() -> None:
    found = DIRECTORY.key(KEY)
    assert found is not None
    assert found[1].user_id == "ada"
    assert DIRECTORY.key("sk-app") is not None


@pytest.mark.parametrize(
    "presented", ["", "sk-ada-key-for-this-tes", hash_key(KEY), "os.environ/ADA", "os.environ/NOT_SET"]
)
def test_nothing_else_is_a_key(presented: str) -> None:
    assert DIRECTORY.key(presented) is None


def test_a_reference_without_a_value_is_named_and_lets_nobody_in() -> None:
    assert DIRECTORY.unresolved == ["os.environ/NOT_SET"]


def test_configuration_gives_a_key_its_user_team_tier_and_groups() -> None:
    ada = caller(key_hash=hash_key(KEY))
    assert (ada.user_id, ada.team_id, ada.tier, ada.groups) == ("ada", "research", "premium", ("ai",))


def test_a_caller_nobody_granted_anything_has_the_default_tier() -> None:
    assert caller(user_id="bob").tier == "free"


def test_an_administrator_is_not_bound_by_the_default_tier() -> None:
    root = caller(user_id="root", is_admin=True)
    assert root.tiers == ()
    assert root.trusted


def test_team_metadata_grants_tier_groups_and_trust() -> None:
    granted = caller(team_id="sre", team_metadata={"tier": "premium", "groups": ["on-call"], "trusted": True})
    assert (granted.tier, granted.groups, granted.trusted) == ("premium", ("ops", "on-call"), True)


def test_a_keys_own_metadata_does_not_raise_its_tier() -> None:
    bob = caller(user_id="bob", key_metadata={"tier": "premium", "groups": ["ai"], "trusted": True})
    assert bob.tier == "free"
    assert not DIRECTORY.access.permits(bob.tiers, "large")
    assert bob.groups == ()
    assert not bob.trusted


def test_a_keys_own_metadata_may_lower_its_tier() -> None:
    ada = caller(key_hash=hash_key(KEY), key_metadata={"tier": "free"})
    assert ada.tier == "free"
    assert DIRECTORY.access.permits(ada.tiers, "small")
    assert not DIRECTORY.access.permits(ada.tiers, "large")


def test_trusting_key_metadata_is_a_decision_of_the_administrator() -> None:
    trusting = Directory(SETTINGS.model_copy(update={"trust_key_metadata": True}), ENVIRON.get, ("small", "large"))
    bob = trusting.caller(Principal(user_id="bob", key_metadata={"tier": "premium", "groups": ["ai"]}))
    assert (bob.tier, bob.groups) == ("premium", ("ai",))


def test_claims_of_a_key_that_is_not_trusted_change_nothing() -> None:
    bob = caller(user_id="bob")
    assert DIRECTORY.claimed(bob, Claims(user_id="ada", user_tier="premium")) is bob


def test_a_trusted_key_speaks_for_its_users() -> None:
    app = caller(key_hash=hash_key("sk-app"))
    ada = DIRECTORY.claimed(app, Claims(user_id="ada", user_tier="free"))
    assert (ada.user_id, ada.tier, ada.tiers, ada.groups) == ("ada", "free", ("free",), ("ai",))


def test_a_tier_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(BadField, match=r"'gold' is not a tier; valid: free, premium"):
        DIRECTORY.claimed(caller(key_hash=hash_key("sk-app")), Claims(user_tier="gold"))


def test_without_tiers_nobody_is_bound_by_one() -> None:
    plain = Directory(Settings(), ENVIRON.get, ())
    anyone = plain.caller(Principal(user_id="x", team_metadata={"tier": "premium"}))
    assert anyone.tiers == ()
    assert plain.access.permits(anyone.tiers, "anything")
