"""No container engine is needed here: the Dockerfile is linted, and what its commands name is looked up."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from core.settings.environment import OVERRIDES

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of this name, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_health_check_is_a_program_that_fails_where_nothing_answers() -> None:
    (check,) = instructions("HEALTHCHECK")
    words = json.loads(check[check.index("[") :])
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=30)
    assert words[0] == "python"
    assert done.returncode == 1
    assert "URLError" in done.stderr  # the script itself is fine: only the connection was refused


def test_the_entry_point_is_our_command_with_options_it_has() -> None:
    (entrypoint,) = instructions("ENTRYPOINT")
    command, subcommand, *options = json.loads(entrypoint)
    assert command in PYPROJECT["project"]["scripts"]
    shown = subprocess.run(
        [Path(sys.executable).with_name(command), subcommand, "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    for option in options[::2]:
        assert option in shown.stdout


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = set((ROOT / ".dockerignore").read_text().splitlines())
    sources = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {source for source in sources if f"!{source}" not in sent} == set()
    assert set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= sources


def test_the_extras_are_those_of_the_project() -> None:
    assert set(re.findall(r"--extra (\w+)", DOCKERFILE)) == set(PYPROJECT["project"]["optional-dependencies"])


def test_the_lock_file_has_a_hash_for_every_pin_the_image_installs() -> None:
    pins = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert [pin.split("\n", 1)[0] for pin in pins if "==" in pin and "--hash=sha256:" not in pin] == []


def test_the_tools_version_is_the_one_of_the_makefile() -> None:
    (pinned,) = set(re.findall(r"uv==[\d.]+", (ROOT / "Makefile").read_text()))
    assert pinned in DOCKERFILE


def test_the_image_runs_as_a_numbered_user_that_owns_the_volume() -> None:
    (user,), (volume,) = instructions("USER"), instructions("VOLUME")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    uid, gid = user.split(":")
    assert f"-o {uid} -g {gid} {volume}" in DOCKERFILE


@pytest.fixture(scope="module")
def compose() -> dict[str, dict[str, dict[str, object]]]:
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def test_compose_keeps_what_must_last_in_volumes(compose: dict[str, dict[str, dict[str, object]]]) -> None:
    for name, service in compose["services"].items():
        named = [str(volume).split(":")[0] for volume in service["volumes"] if not str(volume).startswith(".")]
        assert named, f"{name} keeps nothing"
        assert set(named) <= set(compose["volumes"])


def test_compose_sets_only_variables_that_mean_something(compose: dict[str, dict[str, dict[str, object]]]) -> None:
    environment = compose["services"]["proxy"]["environment"]
    assert isinstance(environment, dict)
    assert set(environment) <= {"LITELLM_MASTER_KEY", *(override.variable for override in OVERRIDES)}


@pytest.mark.live
def test_the_commands_of_the_build_stage_work_outside_a_container(tmp_path: Path) -> None:
    """With other folders, and without downloading what the versions and hashes resolve to."""
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for line in instructions("COPY"):
        if "--from" not in line:
            for word in line.split()[:-1]:
                (source / word).symlink_to(ROOT / word)
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    environment = {**os.environ, "UV_PYTHON": str(venv / "bin" / "python"), "PATH": f"{uv.parent}:{os.environ['PATH']}"}
    commands = [line for line in instructions("RUN") if line.startswith("uv ")]
    for command, option in zip(commands, ("--dry-run", ""), strict=True):
        shell = command.replace("uv pip install ", f"uv pip install {option} ", 1).replace("/dist", f"{tmp_path}/dist")
        done = subprocess.run(["sh", "-euc", shell], cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (venv / "bin" / "llm-orchestration").exists()
