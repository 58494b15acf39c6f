"""The pages of docs/ do what they say: their commands and programs run as a reader would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy import ProxyProcess
from tests.support.transcript import Shell, blocks, matches, steps

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BINARIES = Path(sys.executable).parent


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """`llm-orchestration serve` in a folder of its own with the config.yaml of the repository."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copy(ROOT / "config.yaml", folder)
    environ = {"LITELLM_MASTER_KEY": ""}
    with ProxyProcess(folder / "config.yaml", cwd=folder, command="llm-orchestration", env=environ) as proxy:
        yield proxy


def test_the_first_ten_minutes_go_as_the_page_says(quickstart: ProxyProcess) -> None:
    page = DOCS / "first-ten-minutes.md"
    folder = quickstart.cwd
    (program,) = blocks(page, "python")
    (folder / "hello.py").write_text(program.replace("http://127.0.0.1:4000", quickstart.url))
    environ = {"PATH": f"{BINARIES}:{os.environ['PATH']}", "HOME": str(folder), "COLUMNS": "200"}
    shell = Shell(folder, environ)
    try:
        for step in steps(page):
            if step.command == "make serve":
                assert matches(step.expected, quickstart.log_text().partition("INFO:")[0])
                continue
            printed = shell.run(step.command.replace("http://127.0.0.1:4000", quickstart.url))
            assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
    finally:
        shell.close()


def test_what_the_first_run_made_is_for_its_owner_alone_and_printed_nowhere(quickstart: ProxyProcess) -> None:
    keys = quickstart.cwd / ".orchestration" / "keys.env"
    assert keys.stat().st_mode & 0o777 == 0o600
    values = [line.split("=", 1)[1] for line in keys.read_text().splitlines() if "=" in line]
    assert len(values) == 3
    log = quickstart.log.read_text()
    assert not any(value in log for value in values)


def test_the_programs_of_the_python_page_run_as_written(quickstart: ProxyProcess, tmp_path: Path) -> None:
    here, remote, choosing = blocks(DOCS / "python-api.md", "python")
    shutil.copy(ROOT / "config.yaml", tmp_path)
    printed = run_program(here, tmp_path, {})
    assert "Response: large heard: Explain quantum computing in simple terms" in printed
    assert "Model used: large" in printed
    assert "Cost: $0.000105" in printed
    assert "Cached: False" in printed
    assert printed.rstrip().endswith("large heard: Explain quantum computing in simple terms")

    keys = (quickstart.cwd / ".orchestration" / "keys.env").read_text()
    master = next(line.split("=", 1)[1] for line in keys.splitlines() if line.startswith("LITELLM_MASTER_KEY="))
    environ = {"LITELLM_MASTER_KEY": master}
    printed = run_program(remote.replace("http://127.0.0.1:4000", quickstart.url), tmp_path, environ)
    assert "small heard: Hello 1 4" in printed
    assert "no-such-model" in printed
    assert run_program(choosing.replace("http://127.0.0.1:4000", quickstart.url), tmp_path, environ) == "small\n"


def run_program(program: str, folder: Path, environ: dict[str, str]) -> str:
    file = folder / "program.py"
    file.write_text(program)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}
    done = subprocess.run(
        [sys.executable, str(file)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_status_that_the_operations_page_shows_has_the_fields_it_explains(quickstart: ProxyProcess) -> None:
    page = DOCS / "operations.md"
    (step,) = steps(page)
    shell = Shell(quickstart.cwd, {"PATH": os.environ["PATH"]})
    try:
        shell.run("set -a; . ./.orchestration/keys.env; set +a")
        status = json.loads(shell.run(step.command.replace("http://127.0.0.1:4000", quickstart.url)))
    finally:
        shell.close()
    explained = re.findall(r"`((?:config|store|journal)\.(?!yaml)\w+)`", page.read_text())
    assert len(explained) >= 8
    for path in explained:
        section, name = path.split(".")
        assert name in status[section], path
