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
