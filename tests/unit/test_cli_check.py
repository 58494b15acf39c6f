"""`llm-orchestration check` and `schema`, and what the files we ship say to them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from core.cli import COMMANDS, main
from core.settings import OVERRIDES
from core.settings.pages import renewed, tables
from core.settings.schema import json_schema

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
CLEAN: dict[str, str | None] = {override.variable: None for override in OVERRIDES}


def run(*arguments: str, **environ: str) -> Any:
    return CliRunner(env={**CLEAN, **environ}).invoke(main, list(arguments))


def test_a_valid_file_exits_with_0(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("orchestration: {}\n")
    result = run("check", str(tmp_path / "config.yaml"))
    assert result.exit_code == 0
    assert result.output.endswith("config.yaml: no errors, no warnings\n")


def test_warnings_alone_exit_with_0(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("orchestration: {journal: {redis: stream}}\n")
    result = run("check", str(tmp_path / "config.yaml"))
    assert (result.exit_code, "no errors, 1 warning" in result.output) == (0, True)


def test_an_error_is_one_line_that_editors_can_jump_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("orchestration:\n  tiers:\n    free:\n      modles: []\n")
    result = run("check")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "config.yaml:4:7 error orchestration.tiers.free.modles: unknown field; did you mean 'models'?",
        "config.yaml: 1 error, no warnings",
    ]


def test_json_is_a_list_of_findings(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("orchestration: {environment: prod}\n")
    result = run("check", "--json", str(tmp_path / "config.yaml"))
    (finding,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert finding["path"] == "orchestration.environment"
    assert (finding["line"], finding["column"], finding["value"]) == (1, 30, "prod")
    assert finding["valid"] == ["development", "production"]


def test_variables_are_checked_too(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("")
    result = run("check", str(tmp_path / "config.yaml"), CACHE_TTL="soon")
    assert result.exit_code == 1
    assert result.output.startswith("environment CACHE_TTL error orchestration.caching.default_ttl: ")


def test_a_file_that_is_not_there_exits_with_2(tmp_path: Path):
    assert run("check", str(tmp_path / "nowhere.yaml")).exit_code == 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_we_ship_are_valid_without_a_warning(path: Path):
    result = run("check", "--json", str(path))
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_we_ship_give_every_model_an_id_and_fit_the_schema(path: Path):
    document = yaml.safe_load(path.read_text())
    assert all(model["model_info"]["id"] for model in document["model_list"])
    assert list(Draft202012Validator(json_schema()).iter_errors(document)) == []


def test_the_quickstart_still_loads_with_its_commented_provider_in(tmp_path: Path):
    text = (ROOT / "config.yaml").read_text()
    for line in ("- model_name: gpt", "  litellm_params: {model: openai/gpt", "  model_info: {id: openai-gpt}"):
        assert f"  # {line}" in text
        text = text.replace(f"  # {line}", f"  {line}")
    (tmp_path / "config.yaml").write_text(text.replace("candidates: [large,", "candidates: [gpt,"))
    assert run("check", str(tmp_path / "config.yaml")).exit_code == 0


def test_the_schema_is_valid_2020_12_and_refuses_what_check_refuses():
    schema = json.loads(run("schema").output)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for good in (
        {},
        {"anything": 1, "litellm_settings": {"x": 1}},
        {"orchestration": None},
        {"orchestration": {"budgets": None}},
    ):
        assert validator.is_valid(good)
    for bad in (
        {"orchestration": {"x": 1}},
        {"orchestration": {"tiers": {"free": {"modles": []}}}},
        {"model_list": [{}]},
    ):
        assert not validator.is_valid(bad)


def test_every_field_says_what_it_means():
    for line in tables().partition("## Environment")[0].splitlines()[4:-1]:
        _, field, _, meaning, _ = line.replace("\\|", "/").split("|")
        assert meaning.strip(), field


def test_the_page_about_configuration_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == renewed(page), "run: python -m core.settings.pages docs/configuration.md"


def test_help_lists_every_command_and_imports_none():
    code = (
        "from core.cli import main; main(['-h'], standalone_mode=False); import sys; print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("False\n")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_a_command_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(COMMANDS, "ghost", ("core.cli.ghost:command", "Not there."))
    result = run("ghost")
    assert (result.exit_code, "'ghost' is not part of this installation" in result.output) == (2, True)
    assert run("--help").exit_code == 0


def test_check_imports_nothing_that_would_keep_its_user_waiting():
    code = (
        "import sys; from core.cli import main; main(['check'], standalone_mode=False); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    environ = {name: value for name, value in os.environ.items() if name not in CLEAN}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environ
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "core" in imported
    slow = {"litellm", "openai", "sqlalchemy", "alembic", "redis", "fastapi", "httpx", "numpy", "rich", "apprise"}
    assert not imported & slow
