"""The admin overlay: put over a configuration, checked with it, kept in versions, and shown by the admin API."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import BadField, ConfigError, IfMatchRequired, StaleEntry, StoreError
from core.live_overlay import Change, LiveOverlay
from core.overlay import PLACES, Merged, Overlay, entries_of, merged
from core.settings import InvalidConfig, load
from core.store import AuditQuery, Store, open_store
from plugins.admin.configuration import _findings
from plugins.admin.entries import Conditions, _check_depth, _model, etag
from plugins.admin.public import public, written_secrets
from tests.support.clock import Clock
from tests.support.eventually import eventually

DOCUMENT: dict[str, Any] = {
    "model_list": [
        {"model_name": "small", "litellm_params": {"model": "openai/small"}, "model_info": {"id": "small-id"}},
        {"model_name": "large", "litellm_params": {"model": "openai/large"}, "model_info": {"id": "large-id"}},
        {"model_name": "nameless", "litellm_params": {"model": "openai/nameless"}},
    ],
    "orchestration": {
        "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
        "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
        "budgets": [
            {"budget_id": "first", "total_budget": 1},
            {"budget_id": "second", "total_budget": 2},
            {"budget_id": "third", "total_budget": 3},
        ],
    },
}

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.sampled_from(["first", "second", "third", "fourth", "small-id", "free", "smart", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def entry(section: str, name: str, more: dict[str, Any]) -> dict[str, Any]:
    """One whose id is `name`, wherever a section has it."""
    match PLACES[section].id_at:
        case ("model_info", "id"):
            return {**more, "model_info": {"id": name}}
        case (field,):
            return {**more, field: name}
        case _:
            return more


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, str, dict[str, Any] | None]:
    section, name = draw(st.sampled_from(sorted(PLACES))), draw(names)
    more = draw(st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3))
    return section, name, None if more is None else entry(section, name, more)


documents = st.fixed_dictionaries(
    {}, optional={"model_list": json_values, "orchestration": json_values, "general_settings": json_values}
)


class TestMerging:
    @relaxed
    @given(documents)
    def test_an_empty_overlay_changes_nothing(self, document: dict[str, Any]):
        assert merged(document, Overlay()) == document
        assert merged(document, Overlay(7)) == document

    @relaxed
    @given(st.lists(changes(), max_size=8))
    def test_the_last_word_about_an_entry_holds(self, made: list[tuple[str, str, dict[str, Any] | None]]):
        overlay = Overlay()
        for section, name, value in made:
            overlay = overlay.with_entry(section, name, value)
        assert overlay.version == len(made)
        document = merged(DOCUMENT, overlay)
        said = {(section, name): value for section, name, value in made}
        for section in PLACES:
            found, before = entries_of(document, section), entries_of(DOCUMENT, section)
            for name in {*found, *before, *(name for one, name in said if one == section)}:
                assert found.get(name) == said.get((section, name), before.get(name))

    @relaxed
    @given(documents, st.lists(changes(), max_size=5))
    def test_no_document_makes_it_fail_and_none_is_altered(
        self, document: dict[str, Any], made: list[tuple[str, str, dict[str, Any] | None]]
    ):
        overlay = Overlay()
        for section, name, value in made:
            overlay = overlay.with_entry(section, name, value)
        before = copy.deepcopy(document)
        merged(document, overlay.with_entry("settings", "limits.max_body_bytes", 5))
        assert document == before

    @relaxed
    @given(st.lists(changes(), max_size=5))
    def test_an_overlay_is_read_as_it_was_written(self, made: list[tuple[str, str, dict[str, Any] | None]]):
        overlay = Overlay()
        for section, name, value in made:
            overlay = overlay.with_entry(section, name, value)
        assert Overlay.parse(overlay.version, overlay.text) == overlay

    def test_an_entry_keeps_its_place_and_a_new_one_comes_behind(self):
        overlay = Overlay().with_entry("budgets", "fourth", {"budget_id": "fourth", "total_budget": 4})
        overlay = overlay.with_entry("budgets", "second", {"budget_id": "second", "total_budget": 20})
        overlay = overlay.with_entry("budgets", "first", None)
        found = merged(DOCUMENT, overlay)["orchestration"]["budgets"]
        assert [(one["budget_id"], one["total_budget"]) for one in found] == [
            ("second", 20),
            ("third", 3),
            ("fourth", 4),
        ]

    def test_taking_an_entry_back_brings_the_files_again(self):
        overlay = Overlay().with_entry("tiers", "free", None)
        assert "free" not in entries_of(merged(DOCUMENT, overlay), "tiers")
        overlay = overlay.without("tiers", "free")
        assert merged(DOCUMENT, overlay) == DOCUMENT
        assert (overlay.version, overlay.entries, overlay.over("abc")) == (2, {}, "abc")

    def test_entries_without_an_id_are_left_alone(self):
        overlay = Overlay().with_entry("models", "small-id", None)
        assert [one["model_name"] for one in merged(DOCUMENT, overlay)["model_list"]] == ["large", "nameless"]

    def test_places_are_traced_to_the_file_or_to_the_overlay(self):
        overlay = Overlay().with_entry("budgets", "first", None).with_entry("budgets", "new", {"budget_id": "new"})
        overlay = overlay.with_entry("tiers", "free", {}).with_entry("settings", "limits.max_body_bytes", 5)
        where = Merged(DOCUMENT, overlay)
        budgets = ("orchestration", "budgets")
        assert where.origin((*budgets, 0, "total_budget")) == (None, (*budgets, 1, "total_budget"))
        assert where.origin((*budgets, 2, "total_budget")) == ("budgets/new", ("total_budget",))
        assert where.origin(("orchestration", "tiers", "free", "models", 0)) == ("tiers/free", ("models", 0))
        assert where.origin(("orchestration", "tiers", "premium"))[0] is None
        assert where.origin(("orchestration", "limits", "max_body_bytes")) == ("settings/limits.max_body_bytes", ())
        assert where.origin(budgets) == (None, budgets)


class TestChecking:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(DOCUMENT, sort_keys=False))
        return path

    def test_what_is_wrong_in_the_overlay_names_its_entry_and_what_would_be_valid(self, file: Path):
        overlay = Overlay().with_entry("budgets", "team_ai", {"budget_id": "team_ai", "total_budget": -1})
        with pytest.raises(InvalidConfig) as caught:
            load(file, {}, overlay)
        assert str(caught.value).startswith("the overlay's budgets/team_ai error total_budget: must be greater than")
        with pytest.raises(InvalidConfig, match=r"the overlay's tiers/gold error models\[0\]: 'lagre' .*'large'"):
            load(file, {}, Overlay().with_entry("tiers", "gold", {"models": ["lagre"]}))

    def test_what_it_breaks_in_the_file_names_the_line_there(self, file: Path):
        number = 1 + file.read_text().split("\n").index("        - large")
        with pytest.raises(InvalidConfig) as caught:
            load(file, {}, Overlay().with_entry("models", "large-id", None))
        assert f"config.yaml:{number}:" in str(caught.value)

    def test_lines_of_list_items_stay_right_when_one_before_them_is_deleted(self, file: Path):
        file.write_text(file.read_text().replace("total_budget: 3", "total_budget: -3"))
        number = 1 + file.read_text().split("\n").index("    total_budget: -3")
        with pytest.raises(InvalidConfig, match=f"config.yaml:{number}:"):
            load(file, {}, Overlay().with_entry("budgets", "first", None))

    def test_the_overlay_is_part_of_the_digest_and_an_empty_one_is_not(self, file: Path):
        plain = load(file, {})
        changed = plain.under(Overlay().with_entry("tiers", "gold", {}), {})
        assert "gold" in changed.settings.tiers
        assert changed.digest != plain.digest == plain.under(Overlay(9), {}).digest
        assert plain.under(Overlay().with_entry("disabled", "small-id", True), {}).digest != plain.digest

    def test_what_administrators_set_holds_against_the_environment(self, file: Path):
        overlay = Overlay().with_entry("settings", "limits.max_concurrent_requests", 7)
        environ = {"MAX_CONCURRENT_REQUESTS": "5", "CACHE_TTL": "60"}
        settings = load(file, environ, overlay).settings
        assert (settings.limits.max_concurrent_requests, settings.caching.default_ttl) == (7, 60)
        assert load(file, environ).settings.limits.max_concurrent_requests == 5

    def test_a_model_may_not_use_what_secrets_access_forbids_it(self, file: Path):
        document = copy.deepcopy(DOCUMENT)
        document["orchestration"]["secrets"] = {"access": [{"models": ["large"], "allow": ["azure://prod-*"]}]}
        document["general_settings"] = {"key_management_system": "custom"}
        file.write_text(yaml.safe_dump(document))
        params = {"model": "openai/x", "api_key": "os.environ/azure://prod-key"}
        one = {"model_name": "thief", "litellm_params": params, "model_info": {"id": "thief"}}
        with pytest.raises(InvalidConfig, match=r"the overlay's models/thief error litellm_params\.api_key"):
            load(file, {}, Overlay().with_entry("models", "thief", one))


class TestStore:
    async def test_the_newest_version_is_in_force_and_all_are_kept(self, store: Store):
        assert (await store.overlay.latest(), await store.overlay.version()) == (Overlay(), 0)
        one = Overlay().with_entry("tiers", "größe\0", {"models": ["*"]})
        assert await store.overlay.write(one, actor="ada\0", change='{"n": 1}')
        two = one.with_entry("tiers", "free", None)
        assert await store.overlay.write(two, actor="bob", change='{"n": 2}')
        assert await store.overlay.latest() == two
        assert [(v.version, v.change) for v in await store.overlay.history(5)] == [(2, '{"n": 2}'), (1, '{"n": 1}')]
        assert [v.version for v in await store.overlay.history(5, before=2)] == [1]

    async def test_of_two_that_change_the_same_version_one_is_told(self, store: Store):
        one, other = Overlay().with_entry("tiers", "a", {}), Overlay().with_entry("tiers", "b", {})
        assert await store.overlay.write(one, actor="ada", change="{}")
        assert not await store.overlay.write(other, actor="bob", change="{}")
        assert await store.overlay.latest() == one

    async def test_a_version_cannot_be_left_out(self, store: Store):
        assert not await store.overlay.write(Overlay(5), actor="ada", change="{}")

    async def test_old_versions_keep_what_was_changed_and_lose_the_rest(self, store: Store):
        overlay = Overlay()
        for number in range(103):
            overlay = overlay.with_entry("tiers", "free", {"models": [str(number)]})
            assert await store.overlay.write(overlay, actor="ada", change=f'{{"n": {number}}}')
        assert await store.overlay.latest() == overlay
        assert len(await store.overlay.history(200)) == 103

    async def test_without_its_table_it_says_so(self, tmp_path: Path):
        empty = open_store(f"sqlite:///{tmp_path}/empty.db")
        with pytest.raises(StoreError):
            await empty.overlay.latest()
        await empty.close()


class Worker:
    """One instance: what `renew` was given last is in force, unless it holds what does not fit here."""

    def __init__(self, folder: Path, name: str, clock: Clock) -> None:
        self.in_force = Overlay()
        self.misfits: set[str] = set()
        self.live = LiveOverlay(self.renew, asyncio.Lock(), name, folder, clock)

    async def renew(self, overlay: Overlay) -> bool:
        if misfits := self.misfits & set(overlay.entries.get("tiers", {})):
            raise ConfigError(f"{misfits} does not fit")
        self.in_force = overlay
        return True

    def putting(self, name: str) -> Callable[[], Change]:
        return lambda: Change(self.live.current.with_entry("tiers", name, {}), "tier.put", f"tiers/{name}", "{}")

    @property
    def tiers(self) -> set[str]:
        assert self.in_force.entries == self.live.current.entries
        return set(self.in_force.entries.get("tiers", {}))


class TestLiveOverlay:
    @pytest.fixture
    def one(self, tmp_path: Path, clock: Clock) -> Worker:
        (tmp_path / "one").mkdir()
        return Worker(tmp_path / "one", "one", clock)

    @pytest.fixture
    def other(self, tmp_path: Path, clock: Clock) -> Worker:
        (tmp_path / "other").mkdir()
        return Worker(tmp_path / "other", "other", clock)

    async def test_a_change_is_in_force_in_the_store_and_in_the_audit(self, one: Worker, store: Store):
        await one.live.change(one.putting("gold"), actor="ada", store=store)
        assert one.tiers == {"gold"}
        assert await store.overlay.latest() == one.live.current
        [record] = (await store.audit.query(AuditQuery(0, 1 << 52, action="tier.put"))).entries
        assert (record.record.actor, record.record.subject) == ("ada", "tiers/gold")

    async def test_another_instance_follows(self, one: Worker, other: Worker, store: Store):
        await other.live.begin(store)
        following = asyncio.create_task(other.live.follow(store))
        await one.live.change(one.putting("gold"), actor="ada", store=store)
        await other.live.hear({"version": 1})
        await eventually(lambda: other.tiers == {"gold"}, within=2)
        following.cancel()

    async def test_one_that_was_slower_goes_on_from_what_the_faster_wrote(
        self, one: Worker, other: Worker, store: Store
    ):
        asked = 0

        async def overtaken(overlay: Overlay) -> bool:
            nonlocal asked
            asked += 1
            if asked == 1:
                await other.live.change(other.putting("silver"), actor="bob", store=store)
            return await one.renew(overlay)

        one.live = LiveOverlay(overtaken, asyncio.Lock(), "one", Path("/nonexistent"))
        await one.live.change(one.putting("gold"), actor="ada", store=store)
        assert one.tiers == {"gold", "silver"}
        assert (await store.overlay.latest()).version == 2

    async def test_what_does_not_fit_gets_nowhere(self, one: Worker, store: Store):
        one.misfits = {"gold"}
        with pytest.raises(ConfigError):
            await one.live.change(one.putting("gold"), actor="ada", store=store)
        assert (one.tiers, await store.overlay.version()) == (set(), 0)

    async def test_what_cannot_be_written_is_not_in_force_either(self, one: Worker, store: Store):
        async def gone(*_: Any, **__: Any) -> bool:
            raise StoreError("away")

        await one.live.change(one.putting("gold"), actor="ada", store=store)
        write, store.overlay.write = store.overlay.write, gone  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await one.live.change(one.putting("silver"), actor="ada", store=store)
        assert one.tiers == {"gold"}
        store.overlay.write = write  # type: ignore[method-assign]
        await one.live.change(one.putting("silver"), actor="ada", store=store)
        assert one.tiers == {"gold", "silver"}

    async def test_a_version_that_does_not_fit_here_is_named_until_one_does(
        self, one: Worker, other: Worker, store: Store
    ):
        other.misfits = {"gold"}
        following = asyncio.create_task(other.live.follow(store))
        await one.live.change(one.putting("gold"), actor="ada", store=store)
        await other.live.hear({})
        await eventually(lambda: "gold" in str(other.live.problems), within=2)
        assert other.tiers == set()
        other.misfits = set()
        await one.live.change(one.putting("silver"), actor="ada", store=store)
        await other.live.hear({})
        await eventually(lambda: other.tiers == {"gold", "silver"} and not other.live.problems, within=2)
        following.cancel()

    async def test_a_start_without_the_store_uses_the_last_one_seen(
        self, one: Worker, tmp_path: Path, clock: Clock, store: Store
    ):
        await one.live.change(one.putting("größe"), actor="ada", store=store)
        away = open_store(f"sqlite:///{tmp_path}/away.db")
        again = Worker(tmp_path / "one", "again", clock)
        await again.live.begin(away)
        await away.close()
        assert (again.tiers, again.live.current.version) == ({"größe"}, 1)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "one").iterdir()} == {0o600}

    async def test_a_copy_that_cannot_be_read_is_none(self, one: Worker, tmp_path: Path):
        (tmp_path / "one" / "overlay.json").write_text("5\n[]")
        away = open_store(f"sqlite:///{tmp_path}/away.db")
        await one.live.begin(away)
        await away.close()
        assert one.tiers == set()


class TestShowing:
    def test_secrets_are_masked_and_references_are_not(self):
        shown = public(
            {
                "litellm_params": {
                    "api_key": "sk-abc",
                    "aws_secret_access_key": 12345,
                    "vertex_credentials": {"private_key": "-----BEGIN", "type": "service_account"},
                    "extra_headers": {"authorization": "Bearer abc", "anthropic-beta": "x"},
                    "api_base": "https://me:hunter2@host/v1",
                    "model": "bedrock/us.anthropic.claude-3-5-sonnet-20241022-v2:0",
                    "max_tokens": 5,
                    "input_cost_per_token": 1e-6,
                },
                "environment_variables": {"ANYTHING": "hunter2", "OTHER": "os.environ/OTHER"},
                "api_key": "os.environ/azure://name",
                "keys": [{"key": "os.environ/KEY_ADA"}],
            }
        )
        params = shown["litellm_params"]
        assert params == {
            "api_key": "***",
            "aws_secret_access_key": "***",
            "vertex_credentials": {"private_key": "***", "type": "***"},
            "extra_headers": {"authorization": "***", "anthropic-beta": "x"},
            "api_base": "https://me:***@host/v1",
            "model": "bedrock/us.anthropic.claude-3-5-sonnet-20241022-v2:0",
            "max_tokens": 5,
            "input_cost_per_token": 1e-6,
        }
        assert shown["environment_variables"] == {"ANYTHING": "***", "OTHER": "os.environ/OTHER"}
        assert shown["api_key"] == "os.environ/azure://name"
        assert shown["keys"] == [{"key": "os.environ/KEY_ADA"}]

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
            ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
            ("postgresql://me:hun/ter2@host/db", "***"),
            ("https://host/v1?sig=hunter2", "https://host/v1?sig=***"),
            ("https://host/v1", "https://host/v1"),
            ("sqlite:///orchestration.db", "sqlite:///orchestration.db"),
        ],
    )
    def test_a_url_is_shown_without_what_is_secret_in_it(self, url: str, shown: str):
        assert public({"url": url}) == {"url": shown}

    def test_what_contains_itself_ends(self):
        loop: dict[str, Any] = {}
        loop["again"] = loop
        assert public(loop) == {"again": "(contains itself)"}

    @pytest.mark.parametrize(
        "params",
        [
            {"api_key": "abc"},
            {"api_key": 12345},
            {"aws_secret_access_key": "x"},
            {"vertex_credentials": {"a": "b"}},
            {"extra_headers": {"x-api-key": "abc"}},
            {"anything": "sk-abcdef"},
            {"api_base": "https://me:pw@host"},
            {"nested": [{"password": "x"}]},
        ],
    )
    def test_a_secret_that_is_written_out_is_found(self, params: dict[str, Any]):
        assert list(written_secrets(params))

    def test_what_is_none_is_not(self):
        params = {
            "api_key": "os.environ/azure://name",
            "litellm_credential_name": "shared",
            "max_tokens": 5,
            "input_cost_per_token": 1e-6,
            "extra_headers": {"anthropic-beta": "x"},
            "api_base": "https://host/v1",
        }
        assert list(written_secrets(params)) == []


class TestConditions:
    @staticmethod
    def of(match: str | None = None, none_match: str = "") -> Conditions:
        given = {"if-match": match, "if-none-match": none_match}
        headers = [(name.encode(), text.encode()) for name, text in given.items() if text]
        return Conditions.of(Request({"type": "http", "headers": headers}))

    def test_what_exists_is_changed_only_by_those_who_know_it(self):
        tag = etag({"a": 1})
        with pytest.raises(IfMatchRequired):
            self.of().check("x", {"a": 1})
        with pytest.raises(StaleEntry):
            self.of('"other"').check("x", {"a": 1})
        with pytest.raises(StaleEntry):
            self.of(tag, none_match="*").check("x", {"a": 1})
        for good in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            self.of(good).check("x", {"a": 1})

    def test_what_does_not_exist_is_created_without(self):
        self.of().check("x", None)
        self.of(none_match="*").check("x", None)
        with pytest.raises(StaleEntry):
            self.of("*").check("x", None)


class TestModels:
    GOOD: dict[str, Any] = {"model_name": "new", "litellm_params": {"model": "openai/new"}}  # noqa: RUF012

    def test_an_entry_gets_the_id_of_its_address(self):
        assert _model("new-id", self.GOOD)["model_info"] == {"id": "new-id"}

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"model_nam": "x"}, "did you mean 'model_name'"),
            ({"litellm_params": None}, "litellm_params: must be a mapping"),
            ({"litellm_params": {}}, "litellm_params.model: must be a name"),
            ({"model_name": "os.environ/SALT"}, "model_name: must be the name itself"),
            ({"litellm_params": {"model": "os.environ/SALT"}}, "litellm_params.model"),
            ({"model_info": {"id": "other"}}, "model_info.id is not the id in the address"),
            ({"model_info": {"note": "os.environ/SALT"}}, "takes no references"),
            (
                {"litellm_params": {"model": "openai/x", "api_key": "hunter2"}},
                "litellm_params.api_key: must be a refer",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], complaint: str):
        with pytest.raises(BadField, match=complaint) as caught:
            _model("new-id", self.GOOD | change)
        assert "hunter2" not in str(caught.value.body())

    def test_a_deep_body_is_refused(self):
        body: Any = {}
        for _ in range(900):
            body = {"a": [body]}
        with pytest.raises(BadField, match="60 levels"):
            _check_depth(body)


class TestCheckedTexts:
    def test_the_findings_are_those_of_check(self):
        [finding] = _findings(b"orchestration: {default_teir: free}\n", Overlay())
        assert (finding.file, finding.line, finding.path) == ("config.yaml", 1, "orchestration.default_teir")
        assert "default_tier" in finding.message
        assert _findings(b"model_list: []\n", Overlay()) == []

    def test_the_overlay_counts(self):
        overlay = Overlay().with_entry("tiers", "free", {"models": ["small"]})
        [finding] = _findings(b"model_list: []\n", overlay)
        assert finding.file == "the overlay's tiers/free"

    @pytest.mark.parametrize(
        "text",
        [
            "include: [/etc/passwd]",
            '"incl\\x75de": [/etc/passwd]',
            "a: &a {include: [/etc/passwd]}\n<<: *a",
            "a: &i include\n? *i\n: [/etc/passwd]",
        ],
    )
    def test_no_file_of_this_machine_is_read(self, text: str):
        [finding] = _findings(text.encode(), Overlay())
        assert finding.severity == "error" and "include" in finding.message

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        "text",
        [
            "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
            "a: &a {b: *a}",
            "a: &a {x0: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{','.join(['*a'] * 9)}]}}\n" for n in range(9)),
            "[" * 100_000,
            "a: " + "{a: " * 5_000,
            "a: " + "9" * 1_000_000,
            "\0",
            "a: !!python/object/apply:os.system [id]",
            "? [a, b]\n: c",
        ],
        ids=["laughs", "loop", "merges", "deep", "deep-mappings", "number", "nul", "python", "odd-key"],
    )
    def test_a_bomb_does_not_go_off(self, text: str):
        for finding in _findings(text.encode(), Overlay()):
            assert "/tmp" not in str(finding)

    def test_a_variable_of_this_machine_is_not_read_out(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HUNTER", "hunter2")
        text = "environment_variables: {CACHE_TTL: os.environ/HUNTER, LOG_LEVEL: os.environ/HUNTER}\n"
        for finding in _findings(text.encode(), Overlay()):
            assert "hunter2" not in str(finding.as_json())
