"""LiteLLM's own keys, users and teams work on as LiteLLM documents them; tiers and groups come on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, Gateway, cost_nano, key_environment, model
from tests.support.litellm_database import LiteLLMDatabase, LiteLLMDatabases
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess
from tests.support.secret_proxy import MANAGER, FileVault

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def database(litellm_databases: LiteLLMDatabases) -> Iterator[LiteLLMDatabase]:
    with litellm_databases.database() as database:
        yield database


@pytest.fixture(scope="module")
def with_database(shared_provider: FakeProvider, database: LiteLLMDatabase) -> Iterator[Gateway]:
    url = shared_provider.url
    config = {
        **OURS,
        "model_list": [model(name, url) for name in ("small", "large", "other")],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {**OURS["general_settings"], "proxy_batch_write_at": 1},
        "orchestration": {
            "keys": [{"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "premium", "models": ["small", "smart"]}],
            "groups": {"writers": {"users": ["walt"]}},
            "tiers": {"free": {"models": ["small"]}, "silver": {"models": ["small", "other"]}, "premium": {}},
            "default_tier": "free",
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
        },
    }
    with ProxyProcess(config, env={**database.env, **key_environment()}) as proxy:
        # DATABASE_URL is our store as well.
        yield Gateway(proxy, shared_provider, Books(proxy, database.url))


@pytest.fixture
def gateway(with_database: Gateway, provider: FakeProvider) -> Gateway:
    with_database.books.mark()
    return with_database


def admin(gateway: Gateway, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with gateway.client("admin") as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def new_key(gateway: Gateway) -> Callable[..., HiddenKey]:
    return lambda **settings: HiddenKey(admin(gateway, "/key/generate", settings)["key"])


@pytest.fixture
def new_team(gateway: Gateway) -> Callable[..., str]:
    return lambda **settings: admin(gateway, "/team/new", settings)["team_id"]


def chat(gateway: Gateway, key: str, name: str = "small", **more: Any) -> httpx.Response:
    with gateway.proxy.client(key) as client:
        return client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES, **more})


def listed(gateway: Gateway, key: str) -> set[str]:
    with gateway.proxy.client(key) as client:
        return {entry["id"] for entry in client.get("/v1/models").raise_for_status().json()["data"]}


class TestKeys:
    def test_one_of_litellms_is_limited_to_its_models_and_to_the_default_tier(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey]
    ):
        key = new_key(models=["small", "large"], user_id="walt", key_alias="walt's")
        answer = chat(gateway, key)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-tier"] == "free"
        event = gateway.event(answer)
        assert (event.user_id, event.key_alias, event.groups, event.tier) == ("walt", "walt's", ("writers",), "free")
        assert event.cost_nano == cost_nano("small", 4, 8)
        forbidden = chat(gateway, key, "large")
        assert (forbidden.status_code, forbidden.json()["error"]["code"]) == (403, "model_not_allowed")
        assert chat(gateway, key, "other").status_code in (401, 403), "LiteLLM's own limit"
        # `smart` leads to large and small: LiteLLM lets the key ask for it, and the tier leaves small.
        assert listed(gateway, key) == {"small", "smart"}
        assert chat(gateway, key, "smart").headers["x-orchestration-model"] == "small"

    def test_it_ends_with_its_deletion(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(models=["small"])
        assert chat(gateway, key).status_code == 200
        admin(gateway, "/key/delete", {"keys": [key]})
        assert chat(gateway, key).status_code == 401

    def test_it_ends_with_being_blocked(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(models=["small"])
        admin(gateway, "/key/block", {"key": key})
        assert chat(gateway, key).status_code in (401, 403)

    def test_an_unknown_one_is_refused(self, gateway: Gateway):
        assert chat(gateway, "sk-never-made-0123456789").status_code == 401

    def test_litellm_still_counts_what_it_spent(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(models=["small"], max_budget=5.0)
        answers = [chat(gateway, key) for _ in range(3)]
        ours = sum(Decimal(answer.headers["x-orchestration-cost"]) for answer in answers)

        def spent() -> bool:
            with gateway.client("admin") as client:
                info = client.get("/key/info", params={"key": key}).json()["info"]
            return info["spend"] == pytest.approx(float(ours))

        eventually_sync(spent, within=20, what="LiteLLM's spend being ours")
        assert ours == Decimal(3 * cost_nano("small", 4, 8)) / 10**9

    def test_litellms_own_budget_still_ends_a_key(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(models=["small"], max_budget=0.000001)
        chat(gateway, key)

        def over() -> bool:
            return chat(gateway, key).status_code == 422  # LiteLLM's status for a budget that is spent

        eventually_sync(over, within=20, what="the budget being over")

    def test_its_own_metadata_cannot_raise_its_tier(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(metadata={"tier": "premium", "groups": ["writers"], "trusted": True})
        answer = chat(gateway, key)
        assert answer.headers["x-orchestration-tier"] == "free"
        assert gateway.event(answer).groups == ()
        assert chat(gateway, key, "large").status_code == 403
        claimed = chat(gateway, key, metadata={"user_tier": "premium", "user_id": "walt"})
        assert claimed.headers["x-orchestration-tier"] == "free"
        assert chat(gateway, key, "large", metadata={"user_tier": "premium"}).status_code == 403

    def test_those_of_the_file_work_beside_the_database(self, gateway: Gateway):
        answer = chat(gateway, KEYS["ada"])
        assert answer.headers["x-orchestration-tier"] == "premium"
        assert gateway.event(answer).user_id == "ada"
        assert chat(gateway, KEYS["ada"], "large").status_code in (401, 403)
        assert chat(gateway, KEYS["ada"], "smart").headers["x-orchestration-model"] == "small"

    def test_one_of_the_file_cannot_make_keys(self, gateway: Gateway):
        with gateway.client("ada") as client:
            assert client.post("/key/generate", json={"models": ["large"]}).status_code in (401, 403)


class TestTeams:
    def test_a_teams_metadata_grants_tier_and_groups(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey], new_team: Callable[..., str]
    ):
        team = new_team(metadata={"tier": "premium", "groups": ["ai", "labs"]})
        answer = chat(gateway, new_key(team_id=team), "large")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-tier"] == "premium"
        event = gateway.event(answer)
        assert (event.team_id, event.groups, event.tier) == (team, ("ai", "labs"), "premium")

    def test_a_keys_metadata_narrows_it_and_nothing_else(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey], new_team: Callable[..., str]
    ):
        team = new_team(metadata={"tier": "silver", "groups": ["ai", "labs"]})
        narrowed = new_key(team_id=team, metadata={"tier": "free", "groups": ["ai", "writers"]})
        answer = chat(gateway, narrowed)
        assert answer.headers["x-orchestration-tier"] == "free"
        assert gateway.event(answer).groups == ("ai",)
        assert chat(gateway, narrowed, "other").status_code == 403
        raised = new_key(team_id=team, metadata={"tier": "premium"})
        assert chat(gateway, raised, "other").status_code == 200
        assert chat(gateway, raised, "large").status_code == 403, "both tiers have to permit it"

    def test_a_changed_team_is_seen(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey], new_team: Callable[..., str]
    ):
        team = new_team(metadata={"tier": "premium"})
        key = new_key(team_id=team)
        assert chat(gateway, key, "large").status_code == 200
        admin(gateway, "/team/update", {"team_id": team, "metadata": {"tier": "free"}})
        eventually_sync(lambda: chat(gateway, key, "large").status_code == 403, within=10, what="the lower tier")

    def test_a_teams_models_limit_what_a_policy_leads_to(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey], new_team: Callable[..., str]
    ):
        team = new_team(models=["small", "smart"], metadata={"tier": "premium"})
        key = new_key(team_id=team)
        assert chat(gateway, key, "large").status_code in (401, 403)
        answer = chat(gateway, key, "smart")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-orchestration-model"] == "small"
        assert {attempt.model for attempt in gateway.provider.attempts} == {"small"}
        assert listed(gateway, key) == {"small", "smart"}

    @pytest.mark.parametrize("owner", ["key", "team"])
    def test_an_alias_does_not_lead_out_of_a_tier(
        self, owner: str, gateway: Gateway, new_key: Callable[..., HiddenKey], new_team: Callable[..., str]
    ):
        aliases = {"small": "large", "mine": "large"}
        team = new_team(model_aliases=aliases) if owner == "team" else new_team()
        key = new_key(team_id=team, **({"aliases": aliases} if owner == "key" else {}))
        for name in ("small", "mine"):
            chat(gateway, key, name)
        assert "large" not in {attempt.model for attempt in gateway.provider.attempts}

    def test_an_alias_within_the_tier_works_and_is_recorded(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        key = new_key(aliases={"mine": "small"})
        answer = chat(gateway, key, "mine")
        assert answer.status_code == 200, answer.text
        event = gateway.event(answer)
        assert (event.used_model, event.deployment, event.cost_nano) == ("small", "small-id", cost_nano("small", 4, 8))


class TestUsers:
    def test_a_user_is_known_by_the_id_litellm_gives(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        user = admin(gateway, "/user/new", {"user_email": "zoe@example.org", "auto_create_key": False})["user_id"]
        event = gateway.event(chat(gateway, new_key(user_id=user)))
        assert event.user_id == user

    def test_a_users_models_limit_the_candidates(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        body = {"user_email": "yan@example.org", "auto_create_key": False, "models": ["other"]}
        user = admin(gateway, "/user/new", body)["user_id"]
        assert chat(gateway, new_key(user_id=user)).status_code in (401, 403)

    def test_an_internal_users_new_key_does_not_bring_a_higher_tier(
        self, gateway: Gateway, new_key: Callable[..., HiddenKey]
    ):
        user = admin(
            gateway,
            "/user/new",
            {"user_email": "max@example.org", "user_role": "internal_user", "auto_create_key": False},
        )["user_id"]
        own = new_key(user_id=user)
        with gateway.proxy.client(own) as client:
            made = client.post("/key/generate", json={"metadata": {"tier": "premium"}, "user_id": user})
        if made.status_code == 200:
            assert chat(gateway, made.json()["key"], "large").status_code == 403


class TestAdministration:
    def test_viewers_may_look_and_only_administrators_change(self, gateway: Gateway, new_key: Callable[..., HiddenKey]):
        for role, status, changing in (
            ("proxy_admin_viewer", 200, 403),
            ("internal_user", 403, 403),
            ("proxy_admin", 200, 200),
        ):
            body = {"user_email": f"{role}@example.org", "user_role": role, "auto_create_key": False}
            user = admin(gateway, "/user/new", body)["user_id"]
            with gateway.proxy.client(new_key(user_id=user)) as client:
                for path in ("status", "secrets", "secrets/audit"):
                    assert client.get(f"/orchestration/{path}").status_code == status, (role, path)
                assert client.post("/orchestration/secrets/refresh").status_code == changing, role


def test_the_databases_address_may_be_a_reference(
    provider: FakeProvider, litellm_database: LiteLLMDatabase, tmp_path: Path
) -> None:
    vault = FileVault(tmp_path)
    vault.put(LITELLM_DATABASE=litellm_database.url, OPENAI="sk-provider")
    config = {
        **OURS,
        "model_list": [model("small", provider.url, api_key="os.environ/env://OPENAI")],
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "database_url": "os.environ/env://LITELLM_DATABASE",
            **MANAGER,
        },
        "orchestration": {"secrets": {"providers": {"local": {"file": str(vault.path)}}}},
    }
    environ = {name: value for name, value in litellm_database.env.items() if name != "DATABASE_URL"}
    with ProxyProcess(config, env=environ) as proxy:
        with proxy.client() as admin:
            key = admin.post("/key/generate", json={"models": ["small"]}).raise_for_status().json()["key"]
        with proxy.client(key) as client:
            answer = client.post("/v1/chat/completions", json={"model": "small", "messages": MESSAGES})
        assert answer.status_code == 200, answer.text
        assert litellm_database.url not in proxy.log_text()
