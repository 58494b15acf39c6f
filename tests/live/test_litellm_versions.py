"""The oldest LiteLLM we support, in an environment of its own; everything else here runs against the newest."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import processes
from tests.support.eventually import eventually_sync
from tests.support.provider import FakeProvider
from tests.support.secret_proxy import CALLS as SECRET_CALLS
from tests.support.secret_proxy import FileVault, proxy_with

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
CALLS = [
    ("/v1/chat/completions", {"model": "smart", **CHAT}, 42_500),
    ("/v1/chat/completions", {"model": "small", "stream": True, **CHAT}, 2_550),
    ("/v1/completions", {"model": "small", "prompt": "Hello"}, 2_550),
    ("/v1/completions", {"model": "small", "prompt": "Hello", "stream": True}, 2_550),
    ("/v1/embeddings", {"model": "embed", "input": "Hello"}, 20),
    ("/v1/responses", {"model": "small", "input": "Hello"}, 2_550),
    ("/v1/responses", {"model": "small", "input": "Hello", "stream": True}, 2_550),
    ("/v1/messages", {"model": "small", "max_tokens": 50, **CHAT}, 2_550),
    ("/v1/messages", {"model": "small", "max_tokens": 50, "stream": True, **CHAT}, 2_550),
]


def oldest() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = (line for line in project["dependencies"] if line.startswith("litellm"))
    found = re.search(r">=([\d.]+)", requirement)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of an environment like the locked one, but with the oldest LiteLLM."""
    environment = ROOT / ".test-cache" / f"litellm-{oldest()}"
    python = environment / "bin" / "python"
    done = environment / "ready"
    if done.exists() and done.stat().st_mtime >= (ROOT / "requirements.lock").stat().st_mtime:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(exist_ok=True)
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    freeze = [uv, "pip", "freeze", "-q", "--python", sys.executable, "--exclude-editable"]
    pins = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    constraints = environment / "constraints.txt"
    constraints.write_text("\n".join(pin for pin in pins if not pin.startswith("litellm")))
    install = [uv, "pip", "install", "-q", "--python", python, "-c", constraints, "-r", ROOT / "pyproject.toml"]
    subprocess.run([*install, f"litellm[proxy]=={oldest()}"], check=True)
    done.touch()
    return python


@pytest.fixture(scope="module")
def folder(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A quickstart proxy on the oldest LiteLLM: its folder and its address."""
    folder = tmp_path_factory.mktemp("oldest")
    shutil.copy(ROOT / "config.yaml", folder)
    port = processes.free_port()
    log = folder / "proxy.log"
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", "litellm_orchestration", "serve", "--port", str(port)]
    with log.open("ab") as output:
        process = processes.start(command, env=environ, cwd=folder, output=output)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually_sync(lambda: answers(url), within=90, what="the proxy answering")
        yield folder, url
    finally:
        processes.stop(process)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_every_endpoint_is_served_and_charged_alike_on_the_oldest_litellm(folder: tuple[Path, str]) -> None:
    where, url = folder
    lines = (where / ".orchestration" / "keys.env").read_text().splitlines()
    keys = dict(line.split("=", 1) for line in lines if "=" in line)
    ada = {"authorization": f"Bearer {keys['DEMO_KEY_ADA']}"}
    admin = {"authorization": f"Bearer {keys['LITELLM_MASTER_KEY']}"}
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        asked: dict[str, int] = {}
        for path, body, cost in CALLS:
            answer = http.post(path, json=body, headers=ada)
            assert answer.status_code == 200, f"{path}: {answer.text[:500]}"
            asked[answer.headers["x-orchestration-request-id"]] = cost
        bob = {"authorization": f"Bearer {keys['DEMO_KEY_BOB']}"}
        listed = http.get("/v1/models", headers=bob).json()["data"]
        assert [model["id"] for model in listed] == ["smart", "small"]
        refused = http.post("/v1/chat/completions", json={"model": "large", **CHAT}, headers=bob)
        assert refused.status_code == 403
        status = http.get("/orchestration/status", headers=admin).json()
        assert status["config"]["errors"] == []

        def total() -> int:
            report = http.get("/orchestration/reports/usage", params={"status": "200"}, headers=admin)
            return report.json()["totals"]["cost_nano"]

        eventually_sync(lambda: total() == sum(asked.values()), within=15, what="the books being complete")


@pytest.mark.parametrize("status", [401, 403])
def test_a_rotated_key_fails_no_request_on_the_oldest_litellm(
    status: int, python: Path, provider: FakeProvider, tmp_path: Path
) -> None:
    vault = FileVault(tmp_path)
    vault.put(OPENAI="sk-0", ANTHROPIC="sk-claude")
    made = proxy_with(provider, vault)
    command: list[str | Path] = [python.with_name("litellm"), "--config", made.config, "--port", str(made.port)]
    environ = {**made.env, "PYTHONPATH": str(ROOT), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "proxy.log").open("ab") as output:
        process = processes.start([*command, "--host", "127.0.0.1"], env=environ, cwd=made.cwd, output=output)
    try:
        eventually_sync(lambda: answers(made.url), within=90, what="the proxy answering")
        with made.client() as client:
            for number, (path, body) in enumerate(
                call for call in SECRET_CALLS.values() if call[1]["model"] != "claude"
            ):
                vault.put(OPENAI=f"sk-{number + 1}")
                provider.script(api_key=f"sk-{number}", status=status)
                answer = client.post(path, json=body)
                assert answer.status_code == 200, f"{path}: {answer.text[:500]}"
                assert provider.attempts[-1].api_key == f"sk-{number + 1}"
    finally:
        processes.stop(process)
        made.close()
