"""LiteLLM's `get_secret` with our manager: references get values, and every other name means what it did without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import litellm
import pytest
from litellm.types.secret_managers.main import KeyManagementSettings

from core.installation import SECRETS_FILE, SECRETS_SOURCE
from core.settings import Settings
from secrets_manager import proxy
from secrets_manager.proxy import SecretManager
from secrets_manager.service import PLACEHOLDER, SecretService

ROOT = Path(__file__).resolve().parents[2]
VALUES = {
    **{name: name for name in ("true", "True", "TRUE", "tRuE", "false", "False", "FALSE")},
    "WITH_SPACES": "  true ",
    "WITH_A_TAB": "\tFalse",
    "ONE": "1",
    "ZERO": "0",
    "NUMBER": "-12.5e3",
    "NONE": "None",
    "NULL": "null",
    "YES": "yes",
    "OFF": "off",
    "QUOTED": "'True'",
    "DOUBLE_QUOTED": '"false"',
    "LIST": "[True, 1]",
    "BRACES": '{"a": false}',
    "TUPLE": "True,",
    "EMPTY": "",
    "BLANK": " ",
    "KEY": "sk-1234567890",
    "URL": "postgresql://ada:secret@db/x?sslmode=require",
    "LINES": "-----BEGIN KEY-----\nabc\n",
    "NOT_ASCII": "schlüssel",
    "BROKEN": "((((",
    "REFERENCE": "os.environ/KEY",
}
NAMES = [*VALUES, "UNSET", "NICHT_GESETZT_Ä"]
RESOLVED = ["env://KEY", "env://false", "env://TRUE", "env://QUOTED"]
# What no configuration names belongs to a model of LiteLLM's database, and is put into its calls.
PER_REQUEST = ["azure://openai-key", "hashicorp://secret/llm#key", "env://UNSET"]
MALFORMED = "azzure://x"
SETTINGS = {f"setting_{n}": f"os.environ/{name}" for n, name in enumerate(RESOLVED)}
CONFIG = f"""
general_settings: {json.dumps({"key_management_system": "custom", **SETTINGS})}
model_list:
  - {{model_name: a, litellm_params: {{model: openai/a, api_key: os.environ/env://NUMBER}}}}
"""
ASK = """
import json, sys, types
import litellm
from litellm.secret_managers.custom_secret_manager_loader import load_custom_secret_manager
from litellm.secret_managers.main import get_secret, get_secret_bool, get_secret_str
from litellm.types.secret_managers.main import KeyManagementSettings

def answers(name):
    yield from (get_secret(name), get_secret("os.environ/" + name), get_secret_str(name), get_secret_bool(name))
    yield from (get_secret(name, "default"), get_secret(name, False), get_secret_bool(name, True))

def shown(answer):
    return repr(str(answer)) if isinstance(answer, str) else repr(answer)  # the repr of a secret is a mask

config, rounds = json.load(sys.stdin)
settings = {"custom_secret_manager": "orchestration_secrets.SecretManager"}
if config:
    # As the proxy has it when it loads its configuration.
    sys.modules["litellm.proxy.proxy_server"] = types.SimpleNamespace(user_config_file_path=config)
    litellm._key_management_settings = KeyManagementSettings(**settings)
    load_custom_secret_manager(config)
for names in rounds:
    print(json.dumps({name: [shown(answer) for answer in answers(name)] for name in names}))
    print("--", file=sys.stderr)
    if config:  # LiteLLM does so in the middle of loading a config
        litellm._key_management_settings = KeyManagementSettings(**settings)
"""
Answers = dict[str, list[str]]


def ask(config: Path | None, *rounds: list[str]) -> list[tuple[Answers, str]]:
    """What a fresh process answers to LiteLLM's three questions for the names of each round, and what it logs then.

    Between two rounds LiteLLM's settings are made anew.
    """
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([str(config) if config else None, rounds]),
        env={**environ, **VALUES},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return list(zip(map(json.loads, done.stdout.splitlines()), done.stderr.split("--\n"), strict=False))


@pytest.fixture(scope="module")
def without() -> Answers:
    ((answers, log),) = ask(None, NAMES)
    assert log == ""
    return answers


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Answers, str]]:
    folder = tmp_path_factory.mktemp("team")
    (folder / SECRETS_FILE).write_text(SECRETS_SOURCE)
    (folder / "config.yaml").write_text(CONFIG)
    return ask(folder / "config.yaml", NAMES, NAMES, RESOLVED, ["env://NUMBER", *PER_REQUEST], [MALFORMED])


@pytest.mark.slow
def test_every_name_means_what_it_means_without_a_manager(without: Answers, rounds: list[tuple[Answers, str]]) -> None:
    assert without["false"][:2] == ["False", "False"]
    assert without["UNSET"][:2] == ["None", "None"]
    assert rounds[0] == (without, "")


@pytest.mark.slow
def test_it_still_does_after_litellm_has_made_its_settings_anew(
    without: Answers, rounds: list[tuple[Answers, str]]
) -> None:
    assert rounds[1] == (without, "")


@pytest.mark.slow
def test_env_references_get_what_their_variable_means(without: Answers, rounds: list[tuple[Answers, str]]) -> None:
    answers, log = rounds[2]
    assert answers == {name: without[name.removeprefix("env://")] for name in RESOLVED}
    assert answers["env://KEY"][0] == "'sk-1234567890'"
    assert log == ""


@pytest.mark.slow
def test_what_is_put_in_per_request_is_a_placeholder_to_litellm(rounds: list[tuple[Answers, str]]) -> None:
    answers, log = rounds[3]
    assert {name: answers[name][0] for name in answers} == {
        name: repr(PLACEHOLDER + name) for name in ["env://NUMBER", *PER_REQUEST]
    }
    assert log == ""


def test_a_malformed_reference_is_none_and_one_line_that_does_not_repeat_it(
    rounds: list[tuple[Answers, str]],
) -> None:
    answers, log = rounds[4]
    assert set(answers[MALFORMED][:4]) == {"None"}
    (line,) = log.splitlines()
    assert "names an unknown provider" in line
    assert "did you mean 'azure://'" in line


async def test_who_asks_asynchronously_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    service = SecretService({"SOME_KEY": "value"})
    service.configure(Settings(), {"general_settings": {"alerting_key": "os.environ/env://SOME_KEY"}})
    monkeypatch.setattr(litellm, "_key_management_settings", KeyManagementSettings())
    monkeypatch.setattr(proxy, "_secrets", service)
    manager = SecretManager()
    assert await manager.async_read_secret("env://SOME_KEY") == "value"
    assert await manager.async_read_secret("aws://some") == f"{PLACEHOLDER}aws://some"
    service.close()
