"""`llm-orchestration secrets` and `doctor secrets`, without a proxy."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.audit import AuditRecord
from core.cli.doctor import command as doctor
from core.store import open_store
from secrets_manager.cli import command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("LITELLM_MASTER_KEY", "LLM_GATEWAY_DB_URL", "DATABASE_URL", "KEY_VAULT_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def filled() -> None:
    import time

    async def fill() -> None:
        store = open_store("sqlite:///orchestration.db")
        await store.upgrade()
        records = [
            AuditRecord(int(time.time() * 1000), "ada", f"secret.{action}", f"azure://{name}")
            for action, name in (("fetched", "openai"), ("rotated", "openai"), ("fetched", "claude"))
        ]
        await store.audit.append("here", records)
        await store.close()

    asyncio.run(fill())


def test_the_audit_is_shown_and_filtered() -> None:
    filled()
    shown = CliRunner().invoke(command, ["audit"])
    assert (shown.exit_code, shown.stdout.count("azure://openai")) == (0, 2), shown.output
    found = CliRunner().invoke(command, ["audit", "--reference", "azure://cl*", "--json"])
    assert [one["reference"] for one in json.loads(found.stdout)["records"]] == ["azure://claude"]
    rotated = CliRunner().invoke(command, ["audit", "--action", "rotated", "--json"])
    assert [one["action"] for one in json.loads(rotated.stdout)["records"]] == ["secret.rotated"]


def test_verifying_tells_an_intact_audit_from_one_that_was_changed(folder: Path) -> None:
    filled()
    intact = CliRunner().invoke(command, ["audit", "--verify"])
    assert (intact.exit_code, "4 records in 1 chains: intact" in intact.stdout) == (0, True)
    Path("heads.json").write_text(CliRunner().invoke(command, ["audit", "--verify", "--json"]).stdout)
    assert CliRunner().invoke(command, ["audit", "--against", "heads.json"]).exit_code == 0
    connection = sqlite3.connect(folder / "orchestration.db")
    connection.execute("DROP TRIGGER audit_records_no_delete")
    connection.execute("DELETE FROM audit_records WHERE seq = 4")
    connection.commit()
    connection.close()
    assert CliRunner().invoke(command, ["audit", "--verify"]).exit_code == 0, "an end that nothing follows yet"
    against = CliRunner().invoke(command, ["audit", "--against", "heads.json"])
    assert (against.exit_code, "record 4" in against.stdout) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "--since", "yesterday"], "since must be 30m"),
        (["audit", "--config", "missing.yaml"], "missing.yaml is not there"),
        (["list"], "LITELLM_MASTER_KEY"),
        (["refresh", "--url", "http://127.0.0.1:1"], "LITELLM_MASTER_KEY"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(arguments: list[str], message: str) -> None:
    filled()
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-test")
    result = CliRunner().invoke(command, ["list", "--url", "http://127.0.0.1:1"])
    assert (result.exit_code, "http://127.0.0.1:1 does not answer" in result.output) == (1, True)
    assert "sk-test" not in result.output


def config(reference: str) -> None:
    Path("config.yaml").write_text(
        "general_settings: {key_management_system: custom}\n"
        f"model_list: [{{model_name: m, litellm_params: {{model: openai/m, api_key: os.environ/{reference}}}}}]\n"
    )


def test_doctor_secrets_says_what_a_vault_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI", "marked-value")
    config("env://OPENAI")
    good = CliRunner().invoke(doctor, ["secrets"])
    assert (good.exit_code, "env: env://OPENAI is set" in good.stdout) == (0, True), good.output
    assert "marked-value" not in good.output
    config("env://MISSING")
    missing = CliRunner().invoke(doctor, ["secrets", "config.yaml", "--json"])
    assert missing.exit_code == 1
    assert "env: env://MISSING has no value" in [one["what"] for one in json.loads(missing.stdout)]


def test_doctor_secrets_names_a_vault_without_an_address() -> None:
    config("azure://openai")
    result = CliRunner().invoke(doctor, ["secrets"])
    assert (result.exit_code, "vault_url" in result.output) == (1, True), result.output
