"""The admin API that changes a running proxy: in force at once or not at all, after a restart, on every instance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from core.llm_orchestration import (
    GatewayError,
    GatewayRequest,
    KeyVaultClientService,
    ModelPriority,
    get_gateway,
)
from tests.support.eventually import eventually_sync
from tests.support.gateway import MESSAGES, OURS, model
from tests.support.postgres import PostgresServer
from tests.support.provider import FakeProvider
from tests.support.proxy import HiddenKey, ProxyProcess
from tests.support.redis import RedisServer
from tests.support.secret_proxy import MANAGER, FileVault
from tests.support.transcript import Shell, matches, steps

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

ROLES = """
from litellm.proxy._types import UserAPIKeyAuth

ROLES = {"sk-test-viewer": "proxy_admin_viewer", "sk-test-user": "internal_user", "sk-test-admin": "proxy_admin"}


async def authenticate(request, api_key):
    import os

    role = "proxy_admin" if api_key == os.environ["LITELLM_MASTER_KEY"] else ROLES[api_key]
    return UserAPIKeyAuth(api_key=api_key, user_id=f"the-{role}", user_role=role)
"""
BUDGET = {"total_budget": 5000.0, "reset_period": "MONTHLY", "user_groups": ["ai_team"]}


def config_of(provider: FakeProvider, vault: FileVault, **more: Any) -> dict[str, Any]:
    """Two models, a policy, tiers and a budget; `more` goes into `orchestration:`."""
    return {
        "litellm_settings": OURS["litellm_settings"],
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", **MANAGER},
        "model_list": [model("small", provider.url), model("large", provider.url, api_key="sk-written-out-here")],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "secrets": {"providers": {"local": {"file": str(vault.path)}}},
            "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
            "budgets": [{"budget_id": "everyone", "total_budget": 20, "reset_period": "DAILY", "at_limit": "warn"}],
            **more,
        },
    }


class Admin:
    """An administrator at a proxy."""

    def __init__(self, proxy: ProxyProcess, key: str | None = None) -> None:
        self.proxy = proxy
        self.client = proxy.client(None if key is None else HiddenKey(key))

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.client.get(f"/orchestration/{path}", params=query)

    def put(self, path: str, entry: Any, etag: str | None = None) -> httpx.Response:
        headers = {} if etag is None else {"if-match": etag}
        return self.client.put(f"/orchestration/{path}", json=entry, headers=headers)

    def delete(self, path: str, etag: str | None = "*", **query: Any) -> httpx.Response:
        headers = {} if etag is None else {"if-match": etag}
        return self.client.delete(f"/orchestration/{path}", headers=headers, params=query)

    def config(self) -> dict[str, Any]:
        return self.get("status").raise_for_status().json()["config"]

    def models(self) -> set[str]:
        return {one["id"] for one in self.client.get("/v1/models").raise_for_status().json()["data"]}

    def chat(self, name: str) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES})


def clean(admin: Admin) -> None:
    """Take back all that an overlay has."""
    for section, entries in admin.get("overlay").json()["entries"].items():
        for name in entries:
            if section == "disabled":
                admin.client.post(f"/orchestration/models/{name}/enable")
            else:
                there = admin.get(f"{section}/{name}").headers.get("etag")
                admin.delete(f"{section}/{name}", there, revert="true")


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> FileVault:
    made = FileVault(tmp_path_factory.mktemp("vault"))
    made.put(NEW_KEY="value-of-the-new-key")
    return made


@pytest.fixture(scope="module")
def running(shared_provider: FakeProvider, vault: FileVault) -> Iterator[ProxyProcess]:
    config = config_of(shared_provider, vault)
    config["general_settings"]["custom_auth"] = "roles.authenticate"
    proxy = ProxyProcess(config)
    (proxy.config.parent / "roles.py").write_text(ROLES)
    with proxy:
        yield proxy


@pytest.fixture
def admin(running: ProxyProcess, provider: FakeProvider) -> Iterator[Admin]:
    admin = Admin(running)
    yield admin
    clean(admin)
    assert admin.get("overlay").json()["entries"] == {}


def served(admin: Admin) -> None:
    eventually_sync(lambda: admin.chat("small").status_code == 200, within=5, what="an answer of small")


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()["error"]


class TestEntries:
    def test_a_budget_is_put_seen_changed_and_taken_away(self, admin: Admin):
        before = admin.config()
        made = admin.put("budgets/team_ai", BUDGET)
        assert made.status_code == 201, made.text
        assert made.json()["entry"] == {"budget_id": "team_ai", **BUDGET}
        assert made.json()["source"] == "overlay"
        read = admin.get("budgets/team_ai")
        assert (read.status_code, read.headers["etag"]) == (200, made.headers["etag"])
        listed = admin.get("budgets").json()
        assert [one["id"] for one in listed["budgets"]] == ["everyone", "team_ai"]
        now = admin.config()
        assert (now["version"], now["overlay_version"]) == (before["version"] + 1, before["overlay_version"] + 1)
        assert now["digest"] != before["digest"]

        changed = admin.put("budgets/team_ai", BUDGET | {"total_budget": 1.25}, read.headers["etag"])
        assert changed.status_code == 200, changed.text
        assert admin.put("budgets/team_ai", BUDGET, read.headers["etag"]).status_code == 412
        assert admin.put("budgets/team_ai", BUDGET).status_code == 428
        assert admin.delete("budgets/team_ai", None).status_code == 428
        assert admin.delete("budgets/team_ai", read.headers["etag"]).status_code == 412
        assert admin.delete("budgets/team_ai", changed.headers["etag"]).status_code == 200
        assert admin.get("budgets/team_ai").status_code == 404
        assert admin.config()["digest"] == before["digest"]

    def test_a_budget_holds_from_the_moment_it_is_put(self, admin: Admin):
        served(admin)
        assert admin.put("budgets/tight", {"total_budget": 0.000000001}).status_code == 201
        refused = admin.chat("small")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "budget_exceeded")
        assert admin.delete("budgets/tight").status_code == 200
        served(admin)

    @pytest.mark.parametrize(
        ("section", "name", "entry"),
        [
            ("tiers", "gold", {"models": ["large"]}),
            ("groups", "ai_team", {"users": ["ada"]}),
            ("policies", "frugal", {"candidates": ["small"]}),
            ("rules", "long", {"when": {"task_type": "chat"}, "use": ["large"]}),
            (
                "experiments",
                "sizes",
                {"policy": "smart", "variants": [{"id": "a", "model": "small"}, {"id": "b", "model": "large"}]},
            ),
        ],
    )
    def test_so_is_every_other_kind(self, section: str, name: str, entry: dict[str, Any], admin: Admin):
        assert admin.put(f"{section}/{name}", entry).status_code == 201
        shown = admin.get(f"{section}/{name}").json()
        assert shown["entry"].items() >= entry.items()
        document = yaml.safe_load(admin.get("config", format="yaml").text)["orchestration"]
        found = document["routing"][section] if section in document["routing"] else document[section]
        assert name in json.dumps(found)
        assert admin.delete(f"{section}/{name}", shown["etag"]).json() == {"id": name, "deleted": True}

    def test_a_policy_can_be_asked_for_at_once(self, admin: Admin, provider: FakeProvider):
        assert admin.put("policies/frugal", {"candidates": ["small"]}).status_code == 201
        assert "frugal" in admin.models()
        assert admin.chat("frugal").headers["x-orchestration-model"] == "small"
        assert admin.delete("policies/frugal").status_code == 200
        assert "frugal" not in admin.models()

    def test_what_the_file_says_can_be_overridden_deleted_and_brought_back(self, admin: Admin):
        first = admin.get("budgets/everyone").json()
        del first["standing"]  # which is no part of the entry
        assert (first["source"], first["overrides_file"]) == ("config.yaml", False)
        changed = admin.put("budgets/everyone", {"total_budget": 7}, first["etag"]).json()
        assert (changed["source"], changed["overrides_file"]) == ("overlay", True)
        assert admin.delete("budgets/everyone", changed["etag"]).status_code == 200
        assert admin.get("budgets/everyone").status_code == 404
        assert admin.get("overlay").json()["entries"] == {"budgets": {"everyone": None}}
        assert admin.delete("budgets/everyone", None, revert="true").json() == first
        assert admin.get("overlay").json()["entries"] == {}

    def test_a_list_has_pages(self, admin: Admin):
        for number in range(5):
            assert admin.put(f"groups/g{number}", {"users": ["ada"]}).status_code == 201
        names: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = admin.get("groups", limit=2, **cursor).json()
            names += [one["id"] for one in page["groups"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert names == [f"g{number}" for number in range(5)]
        assert admin.get("groups", limit="0").status_code == 400
        assert admin.get("groups", cursor="gone").status_code == 400

    def test_of_many_at_once_one_wins(self, admin: Admin):
        etag = admin.put("budgets/raced", BUDGET).headers["etag"]

        def change(number: int) -> int:
            with admin.proxy.client() as client:
                entry = BUDGET | {"total_budget": number + 1}
                answer = client.put("/orchestration/budgets/raced", json=entry, headers={"if-match": etag})
                return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(change, range(16)))
        assert sorted(statuses) == [200] + [412] * 15

    def test_who_did_what_is_in_the_audit(self, admin: Admin):
        admin.put("budgets/audited", BUDGET)
        admin.put("budgets/audited", BUDGET | {"total_budget": 1}, "*")
        admin.delete("budgets/audited")
        history = admin.get("overlay/history", limit=2).json()
        assert [one["action"] for one in history["versions"]] == ["budget.delete", "budget.put"]
        assert admin.get("overlay/history", limit=1, cursor=history["next_cursor"]).status_code == 200
        found = admin.get("audit", subject="budgets/audited").json()["records"]
        assert [(one["action"], one["actor"]) for one in found] == [
            ("budget.delete", "the-proxy_admin"),
            ("budget.put", "the-proxy_admin"),
            ("budget.put", "the-proxy_admin"),
        ]
        detail = found[1]["detail"]
        assert (detail["before"]["total_budget"], detail["after"]["total_budget"]) == (5000.0, 1)


class TestBadChanges:
    @pytest.mark.parametrize(
        ("path", "entry", "complaint"),
        [
            ("budgets/bad", {"total_budget": -1}, "budgets/bad: total_budget: must be greater than or equal to 0"),
            ("budgets/bad", {"total_bugdet": 1}, "did you mean 'total_budget'"),
            ("budgets/bad", {"total_budget": 1, "reset_period": "YEARLY"}, "DAILY, WEEKLY"),
            ("budgets/bad", {"total_budget": 1, "budget_id": "other"}, "budget_id is not the id in the address"),
            ("budgets/bad%20id", {"total_budget": 1}, "budget_id"),
            ("tiers/bad", {"models": ["lagre"]}, "did you mean 'large'"),
            ("policies/small", {"candidates": ["large"]}, "also a model of model_list"),
            ("policies/bad", {"candidates": []}, "candidates"),
            ("models/bad", {"model_name": "bad", "litellm_params": {"model": "nonsense/x"}}, "models/bad"),
            ("models/bad", {"model_name": "bad"}, "litellm_params"),
        ],
    )
    def test_one_changes_nothing_and_says_what_would_be_valid(
        self, path: str, entry: Any, complaint: str, admin: Admin
    ):
        before = admin.config()
        answer = admin.put(path, entry)
        assert answer.status_code == 400, answer.text
        assert complaint in error_of(answer)["message"]
        assert error_of(answer)["type"] == "invalid_request_error"
        after = admin.config()
        assert (after["version"], after["overlay_version"]) == (before["version"], before["overlay_version"])
        assert after["errors"] == []
        assert admin.get(path).status_code == 404 or path == "policies/small"
        assert admin.chat("smart").status_code == 200

    def test_a_model_that_serves_is_not_lost_to_a_bad_change(self, admin: Admin, provider: FakeProvider):
        for params in ({"model": "nonsense/x"}, {"model": "openai/x", "rpm": "many"}):
            entry = {"model_name": "small", "litellm_params": params}
            answer = admin.put("models/small-id", entry, "*")
            assert answer.status_code == 400
            assert "litellm_params." in error_of(answer)["message"]
            assert admin.chat("small").status_code == 200
            assert provider.attempts[-1].model == "small"

    def test_a_model_that_a_policy_needs_is_not_deleted(self, admin: Admin):
        answer = admin.delete("models/large-id")
        assert answer.status_code == 400
        assert "config.yaml:" in error_of(answer)["message"] and "candidates" in error_of(answer)["message"]
        assert admin.chat("large").status_code == 200

    def test_a_bad_edit_of_the_file_keeps_no_administrator_from_changing_things(self, admin: Admin):
        text = admin.proxy.config.read_text()
        try:
            admin.proxy.config.write_text(text.replace("tiers:", "teirs:"))
            eventually_sync(lambda: admin.config()["errors"])
            assert admin.put("budgets/urgent", BUDGET).status_code == 201
            assert any("teirs" in error for error in admin.config()["errors"])
        finally:
            admin.proxy.config.write_text(text)
        eventually_sync(lambda: admin.config()["errors"] == [])

    def test_an_edit_of_the_file_that_the_overlay_does_not_fit_is_refused(self, admin: Admin):
        admin.put("tiers/gold", {"models": ["large", "smart"]})
        text = admin.proxy.config.read_text()
        document = yaml.safe_load(text)
        document["orchestration"]["routing"] = {"policies": {"clever": {"candidates": ["large"]}}}
        version = admin.config()["version"]
        try:
            admin.proxy.config.write_text(yaml.safe_dump(document, sort_keys=False))
            eventually_sync(lambda: admin.config()["errors"])
            [error] = admin.config()["errors"]
            assert error.startswith("the overlay's tiers/gold error models[1]: 'smart'")
            assert admin.config()["version"] == version
            assert admin.chat("smart").status_code == 200
        finally:
            admin.proxy.config.write_text(text)
        eventually_sync(lambda: admin.config()["errors"] == [])


class TestModels:
    def test_a_model_serves_at_once_with_the_key_of_the_vault(self, admin: Admin, provider: FakeProvider):
        entry = {
            "model_name": "tiny",
            "litellm_params": {
                "model": "openai/tiny",
                "api_base": provider.url,
                "api_key": "os.environ/env://NEW_KEY",
            },
            "model_info": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01},
        }
        assert admin.chat("tiny").status_code in (400, 404)
        assert admin.put("models/acme%2Ftiny", entry).status_code == 201
        assert "tiny" in admin.models()
        answer = admin.chat("tiny")
        assert answer.status_code == 200, answer.text
        assert provider.attempts[-1].api_key == "value-of-the-new-key"
        assert answer.headers["x-orchestration-cost"] == "0.084000000"
        shown = admin.get("models/acme%2Ftiny").json()
        assert shown["id"] == "acme/tiny"
        assert shown["entry"]["litellm_params"]["api_key"] == "os.environ/env://NEW_KEY"
        assert admin.get("secrets").text.count("env://NEW_KEY") >= 1
        assert admin.delete("models/acme%2Ftiny").status_code == 200
        assert "tiny" not in admin.models()

    def test_one_of_the_file_is_changed_and_goes_back(self, admin: Admin, provider: FakeProvider):
        first = admin.get("models/small-id").json()
        changed = json.loads(json.dumps(first["entry"]))
        changed["litellm_params"] |= {"model": "openai/renamed", "api_key": "os.environ/env://NEW_KEY"}
        assert admin.put("models/small-id", changed, first["etag"]).status_code == 200
        admin.chat("small")
        assert provider.attempts[-1].model == "renamed"
        assert admin.delete("models/small-id", revert="true").status_code == 200
        admin.chat("small")
        assert (provider.attempts[-1].model, provider.attempts[-1].api_key) == ("small", "sk-provider")

    def test_a_written_out_secret_is_refused_and_repeated_nowhere(self, admin: Admin, provider: FakeProvider):
        for params in ({"api_key": "hunter2-hunter2"}, {"extra_headers": {"authorization": "hunter2-hunter2"}}):
            entry = {"model_name": "tiny", "litellm_params": {"model": "openai/tiny", **params}}
            answer = admin.put("models/tiny", entry)
            assert answer.status_code == 400
            assert "must be a reference" in error_of(answer)["message"]
            assert "hunter2" not in answer.text
        assert "hunter2" not in admin.proxy.log_text()

    def test_a_reference_in_a_place_for_something_else_is_not_read_out(self, admin: Admin):
        salt = admin.proxy.env["LITELLM_SALT_KEY"]
        for name in ("rpm", "custom_llm_provider", "model", "timeout", "api_version"):
            params = {name: "os.environ/LITELLM_SALT_KEY"}
            entry = {"model_name": "tiny", "litellm_params": {"model": "openai/tiny", **params}}
            answer = admin.put("models/tiny", entry)
            assert salt not in answer.text
            assert salt not in json.dumps(admin.config())
            admin.chat("tiny")
            admin.delete("models/tiny")
        assert salt not in admin.proxy.log.read_text()

    def test_secrets_of_the_file_are_never_shown(self, admin: Admin):
        for path in ("models", "models/large-id", "config", "config?format=yaml", "config?defaults=true", "overlay"):
            text = admin.get(path).raise_for_status().text
            assert "sk-written-out-here" not in text and "sk-provider" not in text
            assert str(admin.proxy.key) not in text
        assert admin.get("config").json()["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"

    def test_one_is_disabled_and_enabled(self, admin: Admin):
        for word, enabled in (("disable", False), ("disable", False), ("enable", True)):
            answer = admin.client.post(f"/orchestration/models/small-id/{word}")
            assert (answer.status_code, answer.json()["enabled"]) == (200, enabled)
        assert admin.client.post("/orchestration/models/no-such-model/disable").status_code == 404


class TestRoles:
    def test_a_viewer_looks_and_changes_nothing(self, admin: Admin):
        viewer = Admin(admin.proxy, "sk-test-viewer")
        for path in ("budgets", "budgets/everyone", "models", "config", "overlay", "overlay/history"):
            assert viewer.get(path).status_code == 200
        assert viewer.put("budgets/mine", BUDGET).status_code == 403
        assert viewer.delete("budgets/everyone").status_code == 403
        assert viewer.client.post("/orchestration/models/small-id/disable").status_code == 403
        assert viewer.client.post("/orchestration/config/check", content="{}").status_code == 403

    def test_an_ordinary_key_sees_nothing(self, admin: Admin):
        user = Admin(admin.proxy, "sk-test-user")
        for path in ("budgets", "budgets/everyone", "budgets/none", "models", "config", "overlay", "overlay/history"):
            answer = user.get(path)
            assert answer.status_code == 403
            assert "everyone" not in answer.text
        assert user.put("budgets/mine", BUDGET).status_code == 403

    def test_nobody_sees_nothing(self, admin: Admin):
        for key in ("sk-unknown", ""):
            with httpx.Client(base_url=admin.proxy.url, trust_env=False) as client:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                assert client.get("/orchestration/budgets", headers=headers).status_code in (401, 403)


class TestHostileRequests:
    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"x" * (2 << 20), 413),
            (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
            (b'{"a":' * 200 + b"1" + b"}" * 200, 400),
            (b"[]", 400),
            (b"null", 400),
            (b"", 400),
            (b"\xff\xfe", 400),
            (b'{"total_budget": 1e400}', 400),
            (b'{"total_budget": NaN}', 400),
            (b'{"total_budget": "\\ud800"}', 400),
            (b'{"total_budget": 1, "name": "\\u0000"}', 201),
        ],
    )
    def test_a_body_that_is_none_is_refused(self, body: bytes, status: int, admin: Admin):
        answer = admin.client.put("/orchestration/budgets/hostile", content=body)
        assert answer.status_code == status, answer.text[:300]

    @pytest.mark.parametrize(
        "name",
        ["a%2Fb", "..%2F..%2Fetc", "%00", "%E2%80%AE", "x" * 5000, "a%0Ab", "%FF", "a?b", "'; drop table--", "a;b=c"],
    )
    @pytest.mark.parametrize("section", ["budgets", "tiers", "models"])
    def test_an_odd_id_is_an_entry_like_any_other_or_refused(self, section: str, name: str, admin: Admin):
        entries = {
            "budgets": BUDGET,
            "tiers": {"models": ["small"]},
            "models": {"model_name": "odd", "litellm_params": {"model": "openai/odd"}},
        }
        put = admin.put(f"{section}/{name}", entries[section])
        if put.status_code == 201:
            assert admin.get(f"{section}/{name}").status_code == 200
            assert admin.delete(f"{section}/{name}").status_code == 200
        else:
            # An id with a line break is in no address that the table of routes knows.
            assert put.status_code in (400, 403), put.text[:300]
            assert admin.get(f"{section}/{name}").status_code in (403, 404)

    def test_a_bomb_in_a_text_to_check_does_not_go_off(self, admin: Admin):
        laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
        )
        for text in (laughs, "[" * 900_000, "include: [/etc/passwd]"):
            answer = admin.client.post("/orchestration/config/check", content=text, timeout=10)
            assert answer.status_code == 200
            assert answer.json()["valid"] is False
            assert "root:" not in answer.text
        assert admin.client.post("/orchestration/config/check", content=b"x" * (2 << 20)).status_code == 413

    def test_a_text_is_checked_as_the_command_checks_it(self, admin: Admin):
        answer = admin.client.post("/orchestration/config/check", content=admin.proxy.config.read_text()).json()
        assert answer["valid"] is True
        text = admin.proxy.config.read_text().replace("candidates:", "candidate:")
        answer = admin.client.post("/orchestration/config/check", content=text).json()
        [error, *_] = [one for one in answer["findings"] if one["severity"] == "error"]
        assert (error["file"], error["path"]) == ("config.yaml", "orchestration.routing.policies.smart.candidate")
        assert "did you mean 'candidates'" in error["message"] and error["line"] > 1


class TestPythonApi:
    async def test_a_model_is_added_as_the_specification_shows(self, admin: Admin, provider: FakeProvider):
        claude_secret_ref = KeyVaultClientService.create_secret_reference(provider="local", secret_identifier="NEW_KEY")
        async with get_gateway(base_url=admin.proxy.url, api_key=admin.proxy.key) as gateway:
            success = await gateway.admin_add_model(
                model_id="claude-3-haiku",
                provider="anthropic",
                model_name="claude-3-haiku-20240307",
                api_key_secret_ref=claude_secret_ref,
                priority=ModelPriority.HIGH,
                cost_per_token=0.00025,
                max_tokens=200000,
                api_base=provider.origin,
            )
            assert success is True
            response = await gateway.process_request(
                GatewayRequest(prompt="one two three four", model="claude-3-haiku")
            )
            assert response.model_used == "claude-3-haiku"
            assert response.cost_estimate > 0
            assert provider.attempts[-1].api_key == "value-of-the-new-key"
            info = admin.get("models/claude-3-haiku").json()["entry"]["model_info"]
            assert (info["priority"], info["max_tokens"]) == (1, 200000)
            with pytest.raises(GatewayError) as caught:
                await gateway.admin_add_model("claude-3-haiku", "anthropic", "claude-3-haiku-20240307")
            assert caught.value.status == 412

    async def test_a_model_of_another_provider_too(self, admin: Admin):
        secret_ref = KeyVaultClientService.create_secret_reference(provider="local", secret_identifier="NEW_KEY")
        async with get_gateway(base_url=admin.proxy.url, api_key=admin.proxy.key) as gateway:
            with pytest.raises(GatewayError, match="models/new-model"):
                await gateway.admin_add_model(
                    model_id="new-model",
                    provider="provider_name",
                    model_name="model-name",
                    api_key_secret_ref=secret_ref,
                )
            await gateway.admin_add_model(
                model_id="new-model", provider="openai", model_name="model-name", api_key_secret_ref=secret_ref
            )
        assert "new-model" in admin.models()


def test_the_commands_of_the_page_print_what_it_says(admin: Admin):
    page = Path(__file__).resolve().parents[2] / "docs" / "admin-api.md"
    shell = Shell(
        admin.proxy.cwd, {"PATH": os.environ["PATH"], "LITELLM_MASTER_KEY": str(admin.proxy.key), "NO_PROXY": "*"}
    )
    try:
        for step in steps(page):
            printed = shell.run(step.command.replace("http://127.0.0.1:4000", admin.proxy.url))
            assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
    finally:
        shell.close()


def test_what_was_changed_is_there_after_a_restart(admin: Admin, provider: FakeProvider):
    entry = {
        "model_name": "tiny",
        "litellm_params": {"model": "openai/tiny", "api_base": provider.url, "api_key": "os.environ/env://NEW_KEY"},
    }
    assert admin.put("models/tiny-id", entry).status_code == 201
    assert admin.put("budgets/team_ai", BUDGET).status_code == 201
    assert admin.delete("tiers/premium").status_code == 200
    before = admin.config()
    admin.proxy.restart()
    eventually_sync(lambda: admin.config()["overlay_version"] == before["overlay_version"])
    assert admin.config()["digest"] == before["digest"]
    assert admin.chat("tiny").status_code == 200
    assert provider.attempts[-1].api_key == "value-of-the-new-key"
    assert admin.get("budgets/team_ai").json()["entry"]["total_budget"] == 5000.0
    assert admin.get("tiers/premium").status_code == 404
    assert "sk-written-out-here" not in admin.proxy.log_text()


def test_another_instance_takes_a_change_over_and_a_store_that_is_away_takes_nothing_away(
    provider: FakeProvider,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    postgres_url: str,
    vault: FileVault,
):
    config = config_of(provider, vault, store={"url": postgres_url}, shared_state={"url": redis_server.url})
    with ExitStack() as stack:
        proxies = [ProxyProcess(config) for _ in range(2)]
        for proxy in proxies:
            proxy.spawn()
            stack.callback(proxy.close)
        for proxy in proxies:
            proxy.wait_until_ready()
        one, other = (Admin(proxy) for proxy in proxies)
        for admin in (one, other):
            eventually_sync(lambda admin=admin: admin.get("status").json()["shared_state"]["connected"])
        tiny = model("tiny", provider.url, api_key="os.environ/env://NEW_KEY")
        assert one.put("models/tiny-id", tiny).status_code == 201
        eventually_sync(lambda: other.chat("tiny").status_code == 200, within=1)
        assert other.get("models/tiny-id").headers["etag"] == one.get("models/tiny-id").headers["etag"]

        def change(number: int) -> int:
            with proxies[number % 2].client() as client:
                entry = BUDGET | {"total_budget": number + 1}
                return client.put("/orchestration/budgets/raced", json=entry).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(change, range(8)))
        assert sorted(statuses) == [201] + [428] * 7
        eventually_sync(lambda: one.config()["overlay_version"] == other.config()["overlay_version"] == 2, within=1)
        assert one.get("budgets/raced").json() == other.get("budgets/raced").json()

        redis_server.stop()
        assert other.put("tiers/gold", {"models": ["tiny"]}).status_code == 201
        eventually_sync(lambda: one.get("tiers/gold").status_code == 200, within=10)

        redis_server.start()
        one.proxy.stop()
        postgres_server.stop()
        answer = other.put("tiers/silver", {"models": ["tiny"]})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "store_unavailable")
        assert other.get("tiers/silver").status_code == 404
        one.proxy.start()
        eventually_sync(lambda: one.config()["overlay_version"] == 3, within=30)
        assert one.chat("tiny").status_code == 200
        postgres_server.start()
        eventually_sync(lambda: other.put("tiers/silver", {"models": ["tiny"]}).status_code == 201, within=30)
        eventually_sync(lambda: one.get("tiers/silver").status_code == 200, within=30)
