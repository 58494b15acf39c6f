"""The secrets of a process: what a configuration may use, placeholders for LiteLLM, values for calls."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from core.errors import ConfigError
from core.settings import Settings
from core.settings.models import Secrets
from secrets_manager.provider import Reason, SecretProvider, SecretUnavailable
from secrets_manager.resolver import Happened, SecretEvent
from secrets_manager.service import PLACEHOLDER, SecretService
from tests.support.clock import Clock
from tests.support.vault_of_values import VaultOfValues

KEY = "os.environ/azure://key"


def document(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_list": list(models), **more}


def model(name: str = "gpt", **parameters: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": f"openai/{name}", **parameters}}


class Bench:
    """A service in front of a vault of values, without threads."""

    def __init__(self, **values: str) -> None:
        self.vault, self.clock = VaultOfValues(**values), Clock()
        self.made = 0
        self.service = SecretService({}, make=self._make, clock=self.clock, background=False)
        self.events: list[SecretEvent] = []
        self.service.listen(self.events.append)

    def _make(
        self, settings: Secrets, environ: Mapping[str, str], *, production: bool
    ) -> Callable[[str], SecretProvider]:
        self.made += 1
        return lambda scheme: self.vault

    def configure(self, config: dict[str, Any], **settings: Any) -> SecretService:
        self.service.configure(Settings.model_validate(settings), config)
        return self.service


def test_litellm_gets_a_placeholder_for_what_is_put_into_calls_and_values_for_the_rest() -> None:
    bench = Bench(key="value", base="https://api.example", webhook="https://hook")
    config = document(
        model(api_key=KEY, api_base="os.environ/azure://base"),
        litellm_settings={"cache_params": {"password": "os.environ/azure://webhook"}},
    )
    service = bench.configure(config)
    assert service.for_litellm("azure://key") == f"{PLACEHOLDER}azure://key"
    assert service.for_litellm("azure://base") == "https://api.example"
    assert service.for_litellm("azure://webhook") == "https://hook"
    assert service.for_litellm("azure://from-a-database") == f"{PLACEHOLDER}azure://from-a-database"


def test_a_reference_that_litellm_needs_somewhere_else_as_well_is_given_to_it() -> None:
    service = Bench(key="value").configure(document(model(api_key=KEY), general_settings={"a": KEY}))
    assert service.for_litellm("azure://key") == "value"


def test_a_model_for_pass_through_routes_has_its_key_from_the_start() -> None:
    service = Bench(key="value").configure(document(model(api_key=KEY, use_in_pass_through=True)))
    assert service.for_litellm("azure://key") == "value"


def test_a_call_gets_the_current_values_and_its_headers_too() -> None:
    bench = Bench(key="first", header="Bearer x")
    headers = {"Authorization": "os.environ/azure://header", "x": "y"}
    service = bench.configure(document(model(api_key=KEY, extra_headers=headers)))
    inside = {"Authorization": f"{PLACEHOLDER}azure://header", "x": "y"}
    call = {"model": "gpt", "api_key": f"{PLACEHOLDER}azure://key", "extra_headers": inside, "messages": []}
    put = service.put_into(call, "gpt")
    assert (call["api_key"], call["extra_headers"]) == ("first", {"Authorization": "Bearer x", "x": "y"})
    assert inside["Authorization"] == f"{PLACEHOLDER}azure://header", "the deployment's own parameters stay as they are"
    assert "first" not in repr(call)
    assert [one.reference.uri for one in put] == ["azure://key", "azure://header"]


async def test_a_rejected_value_is_replaced_at_once() -> None:
    bench = Bench(key="first")
    service = bench.configure(document(model(api_key=KEY)))
    call = {"api_key": f"{PLACEHOLDER}azure://key"}
    put = service.put_into(call, "gpt")
    bench.vault["key"] = "second"
    assert await service.rejected(put)
    call = {"api_key": f"{PLACEHOLDER}azure://key"}
    service.put_into(call, "gpt")
    assert call["api_key"] == "second"


def test_nothing_is_put_in_halfway() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model(api_key=KEY)))
    call = {"api_key": f"{PLACEHOLDER}azure://key", "token": f"{PLACEHOLDER}azure://never-read"}
    before = dict(call)
    with pytest.raises(SecretUnavailable):
        service.put_into(call, "gpt")
    assert call == before


async def test_models_of_a_database_are_read_when_they_are_first_called() -> None:
    bench = Bench(key="value")
    service = bench.configure(document())
    call = {"api_key": f"{PLACEHOLDER}azure://key"}
    with pytest.raises(SecretUnavailable):
        service.put_into(call, "from-a-database")
    await service.read_missing(call, "from-a-database")
    service.put_into(call, "from-a-database")
    assert call["api_key"] == "value"


# ---- Access ----

RULES = {"secrets": {"access": [{"models": ["gpt*"], "allow": ["os.environ/azure://key", "azure://open-*"]}]}}


def test_a_configuration_that_breaks_the_rules_is_refused_and_audited() -> None:
    bench = Bench(key="value")
    with pytest.raises(
        ConfigError, match=r"model_list\[0\].litellm_params.api_key: model 'claude' may not use azure://key"
    ):
        bench.configure(document(model("claude", api_key=KEY)), **RULES)
    assert bench.vault.calls == []
    assert [event.what for event in bench.events] == [Happened.DENIED]
    bench.configure(document(model("gpt-4", api_key=KEY)), **RULES)


def test_a_model_of_a_database_that_breaks_the_rules_gets_nothing() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model("gpt", api_key=KEY)), **RULES)
    call = {"api_key": f"{PLACEHOLDER}azure://key"}
    with pytest.raises(SecretUnavailable, match="may not use azure://key") as raised:
        service.put_into(call, "evil")
    assert raised.value.reason is Reason.FORBIDDEN
    assert bench.events[-1].what is Happened.DENIED
    unknown = {"api_key": f"{PLACEHOLDER}azure://payroll"}
    with pytest.raises(SecretUnavailable, match="may not use"):
        service.put_into(unknown, None)


# ---- Starting and changing ----


def test_in_development_a_model_without_its_secret_is_unavailable_until_it_has_one() -> None:
    bench = Bench()
    service = bench.configure(document(model(api_key=KEY)))
    parameters = {"api_key": f"{PLACEHOLDER}azure://key"}
    assert service.anything_broken
    assert not service.usable(parameters)
    bench.vault["key"] = "at last"
    bench.clock.advance(6)
    service.resolver.tick()
    assert service.usable(parameters)
    assert not service.anything_broken


@pytest.mark.parametrize("place", ["general_settings", "litellm_settings", "router_settings"])
def test_what_litellm_needs_at_once_stops_the_start_in_development_too(place: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{place}.master_key: os.environ/azure://key has no value: key is not there"
    ):
        Bench().configure({place: {"master_key": KEY}})


def test_in_production_every_missing_secret_stops_the_start_and_all_are_named() -> None:
    config = document(model("a", api_key=KEY), model("b", api_key="os.environ/azure://other"))
    with pytest.raises(ConfigError) as raised:
        Bench().configure(config, environment="production")
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"model_list[{n}].litellm_params.api_key" for n in (0, 1)]


def test_a_configuration_that_is_refused_changes_nothing() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model(api_key=KEY)))
    with pytest.raises(ConfigError):
        bench.configure({"general_settings": {"master_key": "os.environ/azure://missing"}})
    call = {"api_key": f"{PLACEHOLDER}azure://key"}
    service.put_into(call, "gpt")
    assert call["api_key"] == "value"
    assert {place for one in service.statuses() for place in one.places} == {"model_list[0].litellm_params.api_key"}


def test_another_provider_setting_makes_a_new_resolver_and_wipes_the_old_values() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model(api_key=KEY)))
    _, resolved = service.current(f"{PLACEHOLDER}azure://key", "gpt")
    bench.configure(document(model(api_key=KEY)))
    assert (bench.made, resolved.value.empty) == (1, False)
    bench.configure(document(model(api_key=KEY)), secrets={"cache": {"ttl": 10}})
    assert (bench.made, resolved.value.empty) == (2, True)


def test_a_bare_name_is_one_of_the_default_provider() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model(api_key="os.environ/secret://key")), secrets={"default_provider": "azure"})
    assert [one.state.reference.uri for one in service.statuses()] == ["azure://key"]
    assert service.value("key") == "value"


def test_refreshing_reads_again_and_says_what_went_wrong() -> None:
    bench = Bench(key="first")
    service = bench.configure(document(model(api_key=KEY)))
    bench.vault["key"] = "second"
    assert service.refresh(["azure://key"], "test") == {"azure://key": None}
    assert service.value("azure://key") == "second"
    bench.vault.failing = Reason.SEALED
    assert service.refresh(None, "test") == {"azure://key": "key: sealed"}
    with pytest.raises(KeyError):
        service.refresh(["azure://unknown"], "test")


def test_a_status_has_the_models_and_no_value() -> None:
    bench = Bench(key="marked-value")
    service = bench.configure(document(model("a", api_key=KEY), model("b", api_key=KEY)))
    (status,) = service.statuses()
    assert (status.models, status.state.state, status.state.version) == (("a", "b"), "fresh", "1")
    assert "marked-value" not in repr(status)


def test_closing_wipes_everything() -> None:
    bench = Bench(key="value")
    service = bench.configure(document(model(api_key=KEY)))
    _, resolved = service.current(f"{PLACEHOLDER}azure://key", "gpt")
    service.close()
    assert resolved.value.empty
    with pytest.raises(ConfigError):
        _ = service.resolver
