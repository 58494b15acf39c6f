"""`llm-orchestration init` as a person or a script meets it."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core.cli.init import command
from core.installation import SECRETS_FILE, SECRETS_SOURCE
from core.settings import load

CONFIG = "model_list: []\nlitellm_settings:\n  callbacks: plugins.mine # ours\n"
COMMAND = [sys.executable, "-c", "from core.cli import main; main()", "init"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_yes_writes_and_undo_restores_every_byte_without_litter(config: Path) -> None:
    done = run(config, "--yes")
    assert done.exit_code == 0, done.output
    assert '+  callbacks: [plugins.mine, "litellm_orchestration.callback"] # ours' in done.output
    assert "orchestration:" in config.read_text()

    assert run(config, "--undo", "--yes").exit_code == 0
    assert config.read_text() == CONFIG
    assert list(config.parent.iterdir()) == [config]


def test_a_second_run_changes_nothing_and_says_so(config: Path) -> None:
    run(config, "--yes")
    status = config.stat()
    done = run(config)  # nothing to write, so nothing to ask
    assert done.exit_code == 0
    assert "has litellm_orchestration.callback already" in done.output
    assert "orchestration: is there already" in done.output
    assert config.stat().st_mtime_ns == status.st_mtime_ns


def test_without_a_terminal_and_without_yes_nothing_is_written(config: Path) -> None:
    done = run(config)
    assert done.exit_code == 2
    assert "Add --yes" in done.output
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(("answer", "code", "written"), [("y\n", 0, True), ("n\n", 1, False)])
def test_at_a_terminal_it_asks(config: Path, answer: str, code: int, written: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run([*COMMAND, str(config)], stdin=theirs, capture_output=True, text=True, timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"Write {config}?" in done.stdout
    assert ("litellm_orchestration" in config.read_text()) is written


def test_mode_and_symbolic_link_survive(config: Path) -> None:
    config.chmod(0o640)
    link = config.parent / "current.yaml"
    link.symlink_to(config.name)
    assert run(link, "--yes").exit_code == 0
    assert link.is_symlink()
    assert config.stat().st_mode & 0o777 == 0o640
    assert "litellm_orchestration" in config.read_text()


def test_json_tells_a_program_what_happened(config: Path) -> None:
    outcome = json.loads(run(config, "--yes", "--json").output)
    assert outcome["changed"] is True
    assert "+orchestration:" in outcome["diff"]
    assert json.loads(run(config, "--json").output)["changed"] is False


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe", b"- a\n", b"include: [gone.yaml]\n"])
def test_what_cannot_be_edited_is_left_alone(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    done = run(config, "--yes")
    assert done.exit_code == 1
    assert str(config) in done.output
    assert config.read_bytes() == content


def test_an_include_that_would_hide_our_line_is_named(config: Path) -> None:
    config.write_text("include: [settings.yaml]\n")
    (config.parent / "settings.yaml").write_text("litellm_settings: {drop_params: true}\n")
    done = run(config, "--yes")
    assert done.exit_code == 1
    assert f"Run init on {config.parent / 'settings.yaml'}" in done.output


def secrets_file(config: Path) -> Path:
    return config.with_name(SECRETS_FILE)


def test_the_file_with_the_secret_manager_is_shown_written_and_removed_again(config: Path) -> None:
    config.chmod(0o640)
    done = run(config, "--yes")
    assert f"+++ {secrets_file(config)} (new)" in done.output
    assert "+from secrets_manager.proxy import SecretManager" in done.output
    assert secrets_file(config).read_text() == SECRETS_SOURCE
    assert secrets_file(config).stat().st_mode & 0o777 == 0o640  # who may read the config may read what it names

    done = run(config, "--undo", "--yes")
    assert f"Removed {secrets_file(config)}." in done.output
    assert not secrets_file(config).exists()


def test_the_file_is_written_again_when_it_is_gone(config: Path) -> None:
    run(config, "--yes")
    secrets_file(config).unlink()
    assert run(config, "--yes").exit_code == 0
    assert secrets_file(config).read_text() == SECRETS_SOURCE


def test_a_file_somebody_changed_stays_whatever_init_does(config: Path) -> None:
    secrets_file(config).write_text("# theirs\n")
    assert f"Kept {secrets_file(config)}: it is not as init writes it." in run(config, "--yes").output
    assert f"Kept {secrets_file(config)}: it is not as init writes it." in run(config, "--undo", "--yes").output
    assert secrets_file(config).read_text() == "# theirs\n"
    assert config.read_text() == CONFIG


def test_a_file_that_another_config_needs_stays(config: Path) -> None:
    other = config.with_name("other.yaml")
    other.write_text(CONFIG)
    run(config, "--yes")
    run(other, "--yes")
    assert f"{other} names it too" in run(config, "--undo", "--yes").output
    assert secrets_file(config).exists()
    run(other, "--undo", "--yes")
    assert not secrets_file(config).exists()


def test_no_secrets_leaves_general_settings_alone(config: Path) -> None:
    assert run(config, "--yes", "--no-secrets").exit_code == 0
    assert "general_settings" not in config.read_text()
    assert not secrets_file(config).exists()


def test_an_include_in_another_folder_gets_no_secret_manager(config: Path) -> None:
    config.write_text("include: [more/settings.yaml]\n")
    (config.parent / "more").mkdir()
    (config.parent / "more" / "settings.yaml").write_text("litellm_settings: {drop_params: true}\n")
    assert f"Run init --no-secrets on {config.parent / 'more' / 'settings.yaml'}" in run(config, "--yes").output


def test_a_module_beside_the_config_that_ours_would_hide_is_a_warning(config: Path) -> None:
    (config.parent / "core").mkdir()
    (config.parent / "core" / "errors.py").write_text("")
    (config.parent / "core" / "fine.py").write_text("")
    done = run(config, "--yes")
    assert done.exit_code == 0
    assert "Warning: `import core.errors` in your own code finds our module" in done.output
    assert "core.fine" not in done.output


def test_a_file_that_cannot_be_replaced_is_a_sentence_not_a_traceback(config: Path) -> None:
    config = config.rename(config.with_name("c" * 250 + ".yaml"))  # no room for the temporary file's longer name
    done = run(config, "--yes")
    assert done.exit_code == 1
    assert "was left as it is" in done.output
    assert "File name too long" in done.output
    assert config.read_text() == CONFIG
    assert list(config.parent.iterdir()) == [config]  # nor is the other file left behind


def test_the_documentation_shows_what_it_really_prints(config: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "existing-proxy.md").read_text()
    shown = page.split("```diff\n")[1].split("```")[0]
    config.write_text("".join(f"{line[1:]}\n" for line in shown.splitlines() if line[0] in " -"))
    printed = run(config, "--yes").output
    assert shown in printed
    assert f"```python\n{SECRETS_SOURCE}```" in page


def test_every_example_in_the_new_section_is_a_valid_setting(config: Path) -> None:
    run(config, "--yes")
    config.write_text(re.sub(r"^  # (?=\w+: )", "  ", config.read_text(), flags=re.MULTILINE))
    loaded = load(config, {"LLM_GATEWAY_DB_URL": "sqlite:///usage.db"})
    assert loaded.settings.default_tier == "free"
    assert loaded.settings.groups["ai_team"].users == ("ada",)
    assert "usage.db" in loaded.settings.store.url
