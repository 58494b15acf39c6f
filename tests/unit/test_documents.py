"""What the pages of docs/ show is valid, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from core.settings import load
from tests.support.transcript import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_whole_configuration_on_a_page_passes_the_check(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        if "model_list:" in block and "orchestration:" in block:
            file = tmp_path / f"{number}.yaml"
            file.write_text(block)
            assert load(file, {}).findings == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}{anchor}"


def test_no_page_or_source_names_a_machine_or_a_registry() -> None:
    forbidden = re.compile(r"/work/|pypi\.org|files\.pythonhosted|registry\.npmjs")
    folders = ("core", "plugins", "custom_router", "secrets_manager", "litellm_orchestration", "docs", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*files, *PAGES, ROOT / "requirements.lock", ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.suffix not in (".pyc", ".png"):
            found = forbidden.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"
