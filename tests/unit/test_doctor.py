"""`llm-orchestration doctor`: each real problem is found, named, and comes with what to do."""

import json
import os
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.cli.doctor import BEFORE, OLDEST, Finding, command, examine, file_system, journal_finding, store_finding
from core.cli.init import command as init
from core.installation import SECRETS_FILE

ROOT = Path(__file__).resolve().parents[2]
LOADED = "litellm_settings: {callbacks: litellm_orchestration.callback}\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "LLM_GATEWAY_DB_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def problems(config: Path | None) -> list[Finding]:
    return [finding for finding in examine(config) if finding.level != "ok"]


def configured(text: str) -> Path:
    file = Path("config.yaml")
    file.write_text(text)
    return file


def test_the_range_of_versions_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [line for line in project["dependencies"] if line.startswith("litellm")]
    assert requirement == f"litellm[proxy]>={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, BEFORE))}"


def test_a_config_with_our_callback_has_no_errors() -> None:
    assert [finding for finding in problems(configured(LOADED)) if finding.level == "error"] == []


def test_a_config_without_our_callback_is_an_error_that_names_init() -> None:
    result = CliRunner().invoke(command, [str(configured("model_list: []\n"))])
    assert result.exit_code == 1
    assert "config.yaml does not load us" in result.output
    assert "-> llm-orchestration init config.yaml" in result.output


def test_config_yaml_in_this_folder_is_looked_at_unasked() -> None:
    configured("model_list: []\n")
    result = CliRunner().invoke(command, ["--json"])
    assert {"level": "error", "what": "config.yaml does not load us.", "do": "llm-orchestration init config.yaml"} in (
        json.loads(result.stdout)
    )


def test_an_include_that_replaces_the_callbacks_is_what_counts() -> None:
    Path("more.yaml").write_text("litellm_settings: {drop_params: true}\n")
    found = problems(configured(f"{LOADED}include: [more.yaml]\n"))
    assert "config.yaml does not load us." in [finding.what for finding in found]


def test_a_secret_manager_without_its_file_is_an_error_and_a_changed_file_a_warning() -> None:
    Path("config.yaml").write_text("model_list: []\n")
    CliRunner().invoke(init, ["config.yaml", "--yes"])
    config, file = Path("config.yaml"), Path(SECRETS_FILE)
    assert [finding for finding in problems(config) if SECRETS_FILE in finding.what] == []

    file.write_text("# theirs\n")
    (changed,) = [finding for finding in problems(config) if SECRETS_FILE in finding.what]
    assert (changed.level, changed.what) == ("warning", f"{SECRETS_FILE} is not as init writes it.")

    file.unlink()
    (missing,) = [finding for finding in problems(config) if SECRETS_FILE in finding.what]
    assert missing.level == "error"
    assert "LiteLLM cannot start" in missing.what
    assert missing.do.startswith("llm-orchestration init config.yaml")


def test_keys_without_the_settings_that_check_them_are_errors() -> None:
    keys = "orchestration: {keys: [{key: os.environ/DEMO_KEY, user_id: ada}]}\n"
    found = problems(
        configured(f"{LOADED}{keys}general_settings: {{custom_auth: litellm_orchestration.authenticate}}\n")
    )
    assert [finding.do for finding in found if "orchestration.keys" in finding.what] == [
        "Set custom_auth_run_common_checks: true under general_settings:",
        "Set enable_post_custom_auth_checks: true under litellm_settings:",
    ]


def test_a_module_that_ours_hides_is_a_warning() -> None:
    Path("core").mkdir()
    Path("core/errors.py").touch()
    (found,) = [finding for finding in problems(configured(LOADED)) if "core.errors" in finding.what]
    assert found.level == "warning"
    assert str(Path("core/errors.py").resolve()) in found.what


def test_prices_that_cannot_be_fetched_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP")
    monkeypatch.setenv("LITELLM_MODEL_COST_MAP_URL", "https://nowhere.invalid/prices.json")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "export LITELLM_LOCAL_MODEL_COST_MAP=True" in [finding.do for finding in problems(None)]


@pytest.mark.slow
def test_litellm_is_never_imported() -> None:
    configured(LOADED)
    script = """if True:
        import sys
        from core.cli import main
        main(["doctor", "config.yaml"])
    """
    done = subprocess.run([sys.executable, "-X", "importtime", "-P", "-c", script], capture_output=True, text=True)
    assert "litellm_orchestration" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == "litellm"] == []


def test_a_journal_folder_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    finding = journal_finding(tmp_path / "a" / "journal")
    assert f"{tmp_path / 'a' / 'journal'} is on {file_system(tmp_path)} with" in finding.what
    assert finding.level in ("ok", "warning")  # a warning where the tests run in a container's own file system
    assert list(tmp_path.iterdir()) == []


def test_a_journal_in_memory_is_a_warning() -> None:
    shared_memory = Path("/dev/shm")
    if file_system(shared_memory) != "tmpfs":
        pytest.skip("no tmpfs on this machine")
    finding = journal_finding(shared_memory / "journal")
    assert (finding.level, "Mount a volume" in finding.do) == ("warning", True)


def test_a_journal_that_cannot_be_written_is_an_error() -> None:
    finding = journal_finding(Path("/proc/journal"))  # where not even root can write
    assert finding.level == "error"
    assert "cannot be written" in finding.what


async def test_a_store_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    finding = await store_finding(f"sqlite:///{tmp_path}/orchestration.db")
    assert (finding.level, list(tmp_path.iterdir())) == ("ok", [])
    assert "made at the first start" in finding.what


async def test_a_store_at_the_head_revision_is_fine(tmp_path: Path) -> None:
    from core.store import open_store

    url = f"sqlite:///{tmp_path}/orchestration.db"
    store = open_store(url)
    await store.upgrade()
    await store.close()
    assert "answers and is at revision" in (await store_finding(url)).what


async def test_a_store_of_a_newer_version_is_an_error(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    finding = await store_finding(f"sqlite:///{tmp_path}/new.db")
    assert finding.level == "error"
    assert "tables of revision 9999" in finding.what


async def test_a_store_that_does_not_answer_is_an_error_without_its_password() -> None:
    pytest.importorskip("asyncpg")
    finding = await store_finding("postgresql://ada:hush-hush@127.0.0.1:1/db")
    assert finding.level == "error"
    assert "hush-hush" not in finding.what + finding.do
    assert os.strerror(111).lower() in finding.what.lower() or "connect" in finding.what.lower()
