"""Editing config.yaml under a running proxy: what is valid takes effect within moments, what is not changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.books import Books
from tests.support.eventually import eventually_sync
from tests.support.gateway import KEYS, MESSAGES, OURS, key_environment, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

pytestmark = pytest.mark.live

WITHIN = 5.0
"""Seconds from an edit to its effect."""


class Edited:
    """A running proxy and the file it runs on."""

    def __init__(self, proxy: ProxyProcess, config: dict[str, Any]) -> None:
        self.proxy = proxy
        self.path = proxy.config
        self.start = config
        self.now = copy.deepcopy(config)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the file in place, as an editor that truncates and writes does."""
        change(self.now)
        self.write(text_of(self.now))

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def replace(self, text: str) -> None:
        """Change the file as careful editors and Kubernetes do: another file takes its name."""
        fresh = self.path.with_name("config.new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def restore(self) -> None:
        """The configuration the proxy was started with, in force again."""
        self.now = copy.deepcopy(self.start)
        self.write(text_of(self.start))
        digest = self.first_digest
        self.eventually(lambda config: config["digest"] == digest and not config["errors"])

    @property
    def first_digest(self) -> str:
        if not hasattr(self, "_first_digest"):
            self._first_digest = self.config_status()["digest"]
        return self._first_digest

    def config_status(self) -> dict[str, Any]:
        return Books(self.proxy).status()["config"]

    def eventually(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status of the configuration as soon as `condition` holds for it."""
        found: list[dict[str, Any]] = []

        def holds() -> bool:
            found[:] = [self.config_status()]
            return condition(found[0])

        eventually_sync(holds, within=WITHIN, what="the edit taking effect")
        return found[0]

    def chat(self, name: str, who: str = "ada") -> httpx.Response:
        with self.proxy.client(KEYS[who]) as client:
            return client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES})

    def becomes(self, status: int, name: str, who: str = "ada") -> httpx.Response:
        """Ask until the answer has this status."""
        answers: list[httpx.Response] = []

        def asked() -> bool:
            answers[:] = [self.chat(name, who)]
            return answers[0].status_code == status

        eventually_sync(asked, within=WITHIN, what=f"{status} for {name}")
        return answers[0]


def text_of(config: dict[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)


@pytest.fixture(scope="module")
def running(shared_provider: FakeProvider) -> Iterator[Edited]:
    config = {
        **OURS,
        "model_list": [model("small", shared_provider.url), model("large", shared_provider.url)],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "orchestration": {
            "keys": [
                {"key": "os.environ/KEY_ADA", "user_id": "ada", "tier": "premium"},
                {"key": "os.environ/KEY_BOB", "user_id": "bob", "tier": "free"},
            ],
            "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
            "default_tier": "free",
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
        },
    }
    with ProxyProcess(config, env=key_environment()) as proxy:
        edited = Edited(proxy, config)
        Books(proxy).mark()  # the store is there
        assert edited.first_digest
        yield edited


@pytest.fixture
def proxy(running: Edited, provider: FakeProvider) -> Iterator[Edited]:
    yield running
    running.restore()


class TestSettings:
    def test_a_tier_that_is_widened_and_narrowed_holds_at_once(self, proxy: Edited):
        assert proxy.chat("large", who="bob").status_code == 403
        proxy.edit(lambda config: config["orchestration"]["tiers"]["free"]["models"].append("large"))
        proxy.becomes(200, "large", who="bob")
        proxy.edit(lambda config: config["orchestration"]["tiers"]["free"].update(models=["small"]))
        proxy.becomes(403, "large", who="bob")

    def test_a_new_key_is_let_in_and_a_removed_one_is_not(self, proxy: Edited):
        assert proxy.chat("small", who="carl").status_code == 401
        entry = {"key": "os.environ/KEY_CARL", "user_id": "carl", "tier": "free", "models": ["small"]}
        proxy.edit(lambda config: config["orchestration"]["keys"].append(entry))
        assert proxy.becomes(200, "small", who="carl").headers["x-orchestration-tier"] == "free"
        proxy.edit(lambda config: config["orchestration"]["keys"].pop())
        proxy.becomes(401, "small", who="carl")

    def test_a_key_that_is_limited_loses_the_rest(self, proxy: Edited):
        assert proxy.chat("large").status_code == 200
        proxy.edit(lambda config: config["orchestration"]["keys"][0].update(models=["small"]))
        eventually_sync(lambda: proxy.chat("large").status_code in (401, 403), within=WITHIN)
        assert proxy.chat("small").status_code == 200

    def test_a_new_policy_can_be_asked_for_and_a_removed_one_not(self, proxy: Edited):
        policies: dict[str, Any] = {"frugal": {"candidates": ["small"]}, "smart": {"candidates": ["small"]}}
        proxy.edit(lambda config: config["orchestration"]["routing"].update(policies=policies))
        assert proxy.becomes(200, "frugal").headers["x-orchestration-model"] == "small"
        assert proxy.chat("smart").headers["x-orchestration-model"] == "small"
        proxy.edit(lambda config: config["orchestration"]["routing"]["policies"].pop("frugal"))
        eventually_sync(lambda: proxy.chat("frugal").status_code in (400, 403, 404), within=WITHIN)

    def test_the_version_counts_up_and_the_books_go_on(self, proxy: Edited):
        before = proxy.config_status()["version"]
        proxy.edit(lambda config: config["orchestration"].update(limits={"max_body_bytes": 5000}))
        after = proxy.eventually(lambda config: config["version"] == before + 1)
        assert after["errors"] == [] and after["restart_needed"] == []
        with proxy.proxy.client(KEYS["ada"]) as client:
            large = client.post("/v1/chat/completions", json={"model": "small", "x": "x" * 6000})
        assert large.status_code == 413


class TestModelList:
    def test_an_entry_that_is_added_serves_and_one_that_is_removed_does_not(
        self, proxy: Edited, provider: FakeProvider
    ):
        assert proxy.chat("tiny").status_code == 400
        proxy.edit(lambda config: config["model_list"].append(model("tiny", provider.url)))
        proxy.becomes(200, "tiny")
        assert provider.attempts[-1].model == "tiny"
        proxy.edit(lambda config: config["model_list"].pop())
        eventually_sync(lambda: proxy.chat("tiny").status_code in (400, 404), within=WITHIN)

    def test_a_changed_entry_is_what_the_next_request_uses(self, proxy: Edited, provider: FakeProvider):
        proxy.edit(lambda config: config["model_list"][0]["litellm_params"].update(model="openai/renamed"))

        def renamed() -> bool:
            proxy.chat("small")
            return provider.attempts[-1].model == "renamed"

        eventually_sync(renamed, within=WITHIN)

    def test_a_changed_price_is_what_the_next_request_costs(self, proxy: Edited):
        assert proxy.chat("small").headers["x-orchestration-cost"] == "0.000020000"
        prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}
        proxy.edit(lambda config: config["model_list"][0]["model_info"].update(prices))
        eventually_sync(lambda: proxy.chat("small").headers["x-orchestration-cost"] == "0.084000000", within=WITHIN)

    def test_an_entry_without_an_id_needs_a_restart_and_says_so(self, proxy: Edited, provider: FakeProvider):
        anonymous = model("tiny", provider.url)
        del anonymous["model_info"]["id"]
        proxy.edit(lambda config: config["model_list"].append(anonymous))
        status = proxy.eventually(lambda config: bool(config["restart_needed"] or config["errors"]))
        assert status["errors"] == []
        assert any("model_list" in name for name in status["restart_needed"])


class TestBadEdits:
    @pytest.mark.parametrize(
        ("before", "after", "complaint"),
        [
            ("default_tier: free", "default_teir: free", "default_tier"),
            ("- large\n", "- lagre\n", "lagre"),
            ("default_tier: free", "default_tier: gold", "gold"),
            ("default_tier: free", "default_tier: [free", ""),
        ],
        ids=["unknown-field", "unknown-model", "unknown-tier", "no-yaml"],
    )
    def test_one_changes_nothing_and_is_named_with_its_line(
        self, before: str, after: str, complaint: str, proxy: Edited
    ):
        version = proxy.config_status()["version"]
        # Widens a tier as well: a bad file is refused whole.
        proxy.now["orchestration"]["tiers"]["free"]["models"] = ["*"]
        text = text_of(proxy.now)
        assert text.count(before) == 1, text
        line = 1 + text[: text.index(before)].count("\n")
        log_before = len(proxy.proxy.log_text())
        proxy.write(text.replace(before, after))
        status = proxy.eventually(lambda config: bool(config["errors"]))
        assert status["version"] == version
        [error] = status["errors"]
        # The line after for what only shows there, such as a bracket that is not closed.
        assert any(f"config.yaml:{number}" in error for number in range(line, line + 3)), error
        assert complaint in error
        assert proxy.chat("large", who="bob").status_code == 403
        assert proxy.chat("small").status_code == 200
        logged = [text for text in proxy.proxy.log_text()[log_before:].splitlines() if "the old settings stay" in text]
        assert len(logged) == 1, logged
        assert "config.yaml" in logged[0] and complaint in logged[0], "all of it in one line"

    def test_an_empty_file_is_a_bad_edit(self, proxy: Edited):
        """An editor that truncates before it writes shows one for a moment."""
        proxy.write("")
        status = proxy.config_status()
        assert proxy.chat("small").status_code == 200
        assert proxy.chat("large", who="bob").status_code == 403
        assert proxy.chat("small", who="carl").status_code == 401
        eventually_sync(lambda: proxy.config_status()["errors"], within=WITHIN)
        assert proxy.config_status()["version"] == status["version"]
        assert proxy.chat("large", who="bob").status_code == 403

    def test_a_good_edit_afterwards_clears_the_error(self, proxy: Edited):
        proxy.write("orchestration: {nonsense: 1}\n")
        proxy.eventually(lambda config: bool(config["errors"]))
        proxy.edit(lambda config: config["orchestration"]["tiers"]["free"]["models"].append("large"))
        proxy.becomes(200, "large", who="bob")
        assert proxy.config_status()["errors"] == []

    def test_a_model_that_the_router_refuses_leaves_the_others_as_they_were(
        self, proxy: Edited, provider: FakeProvider
    ):
        def change(config: dict[str, Any]) -> None:
            config["model_list"][0]["litellm_params"]["model"] = "openai/renamed"
            unknown = model("tiny", provider.url)
            unknown["litellm_params"]["api_key"] = "os.environ/NO_SUCH_VARIABLE_ANYWHERE"
            config["model_list"].append(unknown)

        proxy.edit(change)
        status = proxy.eventually(lambda config: bool(config["errors"]))
        assert "NO_SUCH_VARIABLE_ANYWHERE" in status["errors"][0]
        proxy.chat("small")
        assert provider.attempts[-1].model == "small"


class TestFiles:
    def test_a_file_that_takes_the_place_of_the_old_one_is_seen_time_and_again(self, proxy: Edited):
        for models, status in ((["small", "large"], 200), (["small"], 403), (["*"], 200)):
            proxy.now["orchestration"]["tiers"]["free"]["models"] = models
            proxy.replace(text_of(proxy.now))
            proxy.becomes(status, "large", who="bob")

    def test_of_two_quick_edits_the_later_one_holds(self, proxy: Edited):
        proxy.edit(lambda config: config["orchestration"]["tiers"]["free"].update(models=["small", "large"]))
        proxy.edit(lambda config: config["orchestration"].update(limits={"max_body_bytes": 6000}))
        proxy.edit(lambda config: config["orchestration"]["tiers"]["free"].update(models=["small"]))
        proxy.edit(lambda config: config["orchestration"]["tiers"].update(silver={"models": ["small"]}))
        keys = proxy.now["orchestration"]["keys"]
        keys[1]["tier"] = "silver"
        proxy.replace(text_of(proxy.now))

        def in_force() -> bool:
            return proxy.chat("small", who="bob").headers["x-orchestration-tier"] == "silver"

        eventually_sync(in_force, within=WITHIN)
        assert proxy.chat("large", who="bob").status_code == 403
        assert proxy.config_status()["errors"] == []

    def test_a_comment_is_no_change(self, proxy: Edited):
        version = proxy.config_status()["version"]
        proxy.write("# a comment\n" + text_of(proxy.start))
        proxy.edit(lambda config: config["orchestration"].update(limits={"max_body_bytes": 7000}))
        assert proxy.eventually(lambda config: config["version"] > version)["version"] == version + 1

    def test_other_sections_are_named_as_needing_a_restart(self, proxy: Edited):
        proxy.edit(lambda config: config["general_settings"].update(max_parallel_requests=7))
        status = proxy.eventually(lambda config: bool(config["restart_needed"]))
        assert status["restart_needed"] == ["general_settings"]
        assert status["errors"] == []
        proxy.edit(lambda config: config["general_settings"].pop("max_parallel_requests"))
        proxy.eventually(lambda config: config["restart_needed"] == [])


def test_requests_in_flight_during_an_edit_are_answered(proxy: Edited, provider: FakeProvider):
    """They keep the settings they began with, and none is dropped."""
    from concurrent.futures import ThreadPoolExecutor

    provider.script(first_byte_delay=0.02)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(proxy.chat, "smart") for _ in range(80)]
        for models in (["small"], ["large", "small"], ["small", "large"]):
            proxy.edit(
                lambda config, m=models: config["orchestration"]["routing"]["policies"]["smart"].update(candidates=m)
            )
            version = proxy.config_status()["version"]
            assert version
        assert {request.result().status_code for request in asked} == {200}


def test_no_key_is_in_the_log(proxy: Edited):
    text = Path(proxy.proxy.log).read_text()
    assert not any(key in text for key in KEYS.values())
