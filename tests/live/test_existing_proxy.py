"""A team's own proxy, in its own folder, with its own `plugins.py` and `core/`, takes us in from an installed wheel."""

import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import httpx
import pytest

from litellm_orchestration import __version__
from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.provider import FakeProvider

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
HOUSE_KEY = "sk-of-the-house"
CONFIG = """\
# The team's proxy, older than us.
model_list:
  - model_name:  house     # their spacing
    litellm_params: {model: openai/house-model, api_key: "none", mock_response: 'hello from the house'}
  - model_name: keyed
    litellm_params: {model: openai/gpt-4o, api_base: os.environ/HOUSE_URL, api_key: os.environ/env://HOUSE_KEY}
  - model_name: locked
    litellm_params: {model: openai/gpt-4o, api_base: os.environ/HOUSE_URL, api_key: os.environ/azure://house-key}

litellm_settings:
    callbacks: [plugins.my_handler]   # theirs
    modify_params: os.environ/HOUSE_FLAG

general_settings: { master_key: os.environ/LITELLM_MASTER_KEY }
"""
PLUGINS = """\
from pathlib import Path

import litellm
from core.y import thing
from litellm.integrations.custom_logger import CustomLogger


class Mine(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        Path(__file__).with_name("mine.txt").write_text(f"{thing} {kwargs['model']} {litellm.modify_params!r}")


my_handler = Mine()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with our wheel in it; its dependencies are those of this project's own."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    uv, python = Path(sys.executable).with_name("uv"), folder / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True)
    # A .pth file adds the folder but does not run the .pth files in it, so the editable install stays out of sight.
    here = Path(httpx.__file__).parents[1]
    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{here}\n")
    command = Path(sys.executable).with_name("litellm").read_text().splitlines(keepends=True)
    script = python.with_name("litellm")
    script.write_text("".join([f"#!{python}\n", *command[1:]]))
    script.chmod(0o755)
    where = run(python, "-P", "-c", "import core; print(core.__file__)", folder=folder).stdout.strip()
    assert Path(where) == site_packages / "core" / "__init__.py"
    return python.parent


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The team's folder as it was before us; `core` is a folder without an `__init__.py`."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "plugins.py").write_text(PLUGINS)
    (folder / "core").mkdir()
    (folder / "core" / "y.py").write_text("thing = 'theirs'\n")
    return folder


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")}
    return {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **more}


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def proxy(installed: Path, team: Path, shared_provider: FakeProvider) -> Iterator[httpx.Client]:
    """The team's usual command after `init`, as a client of it."""
    done = run(installed / "llm-orchestration", "init", "config.yaml", "--yes", folder=team)
    assert done.returncode == 0, done.stderr
    key, port = f"sk-{secrets.token_urlsafe(32)}", processes.free_port()
    command = [installed / "litellm", "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    house = {"HOUSE_KEY": HOUSE_KEY, "HOUSE_URL": shared_provider.url, "HOUSE_FLAG": "false"}
    with (team / "proxy.log").open("wb") as log:
        server = processes.start(command, cwd=team, env=environment(LITELLM_MASTER_KEY=key, **house), output=log)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
            eventually_sync(
                lambda: server.poll() is not None or client.get("/health/liveliness").is_success,
                within=90,
                what="the start of the proxy",
            )
            assert server.poll() is None, (team / "proxy.log").read_text()[-8000:]
            yield client
    finally:
        processes.stop(server)


def test_a_chat_runs_their_callback_and_ours(proxy: httpx.Client, team: Path) -> None:
    answer = proxy.post("/v1/chat/completions", json={"model": "house", "messages": [{"role": "user", "content": "?"}]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hello from the house"
    assert answer.headers["x-orchestration-request-id"]
    assert eventually_sync(lambda: (team / "mine.txt").read_text(), what="their callback") == (
        "theirs house-model False"  # HOUSE_FLAG is "false"
    )

    def recorded() -> list[tuple[object, ...]]:
        with sqlite3.connect(f"file:{team / 'orchestration.db'}?mode=ro", uri=True) as store:
            return store.execute("SELECT request_id, asked_model FROM usage_events").fetchall()

    assert eventually_sync(recorded, within=20, what="the usage event") == [
        (answer.headers["x-orchestration-request-id"], "house")
    ]


def test_a_reference_becomes_the_key_that_is_sent(proxy: httpx.Client, provider: FakeProvider) -> None:
    answer = proxy.post("/v1/chat/completions", json={"model": "keyed", "messages": [{"role": "user", "content": "?"}]})
    assert answer.status_code == 200, answer.text
    assert [attempt.api_key for attempt in provider.attempts] == [HOUSE_KEY]


def test_all_the_secret_manager_logs_is_what_has_no_value(proxy: httpx.Client, team: Path) -> None:
    log = (team / "proxy.log").read_text()
    assert log.count("azure://house-key has no value: secrets.providers.azure.vault_url is not set") == 1
    assert "Traceback" not in log
    assert "Defaulting to os.environ" not in log
    assert HOUSE_KEY not in log


def test_a_reference_that_has_no_value_is_never_sent_as_a_key(proxy: httpx.Client, provider: FakeProvider) -> None:
    answer = proxy.post(
        "/v1/chat/completions", json={"model": "locked", "messages": [{"role": "user", "content": "?"}]}
    )
    assert answer.status_code >= 400
    assert provider.attempts == []


def test_both_sides_stay_importable(installed: Path, team: Path) -> None:
    """In an interpreter whose path ends with the team's folder, as LiteLLM's command leaves it."""
    script = dedent("""
        import os, sys
        sys.path.append(os.getcwd())
        import litellm_orchestration, core.usage, plugins.admin
        from core.y import thing
        from plugins import my_handler
        print(thing, type(my_handler).__name__, core.y.thing, litellm_orchestration.__version__)
    """)
    done = run(installed / "python", "-P", "-c", script, folder=team)
    assert done.stdout.split() == ["theirs", "Mine", "theirs", __version__], done.stderr


def test_their_folder_in_front_of_ours_stops_with_the_reason(installed: Path, team: Path) -> None:
    """`python -c` without -P puts the working directory first, as PYTHONPATH=. does."""
    done = run(installed / "python", "-c", "import litellm_orchestration", folder=team)
    assert done.returncode != 0
    assert f"{team / 'plugins.py'} hides the package 'plugins' of litellm-orchestration" in done.stderr


def test_doctor_finds_nothing_wrong(proxy: httpx.Client, installed: Path, team: Path) -> None:
    done = run(installed / "llm-orchestration", "doctor", "config.yaml", "--json", folder=team)
    assert [finding for finding in json.loads(done.stdout) if finding["level"] == "error"] == []
    assert done.returncode == 0


def test_undo_restores_the_file_byte_for_byte(proxy: httpx.Client, installed: Path, team: Path) -> None:
    assert (team / "config.yaml").read_text() != CONFIG
    done = run(installed / "llm-orchestration", "init", "config.yaml", "--undo", "--yes", folder=team)
    assert done.returncode == 0, done.stderr
    assert (team / "config.yaml").read_text() == CONFIG
    assert not (team / "orchestration_secrets.py").exists()
