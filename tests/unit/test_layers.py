"""Imports point one way: plugins, custom_router and secrets_manager to core; few modules know LiteLLM's proxy."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "custom_router", "litellm_orchestration", "plugins", "secrets_manager")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
KNOW_LITELLMS_PROXY = {"plugins/hooks.py", "plugins/compat.py", "plugins/in_process.py", "secrets_manager/proxy.py"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_core(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module in imported(path):
        top = module.partition(".")[0]
        if name.startswith("core/") and name != "core/cli/serve.py":
            assert top not in {"plugins", "custom_router", "secrets_manager", "litellm"}, f"{name} imports {module}"
        if name.startswith(("custom_router/", "secrets_manager/")):
            assert top != "plugins", f"{name} imports {module}"
        knows = name in KNOW_LITELLMS_PROXY or name.startswith("plugins/adapters/") or name == "core/cli/serve.py"
        if not knows:
            assert not module.startswith("litellm.proxy"), f"{name} imports {module}"


def test_the_edge_is_read_without_litellm() -> None:
    """What the edge imports at the top is light: no LiteLLM, so it can be tested and understood alone."""
    for name in ("edge", "exchange", "outcome", "receipt", "routes", "pricing"):
        tree = ast.parse((ROOT / "plugins" / f"{name}.py").read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = [alias.name for node in top for alias in node.names] + [
            getattr(node, "module", "") or "" for node in top
        ]
        assert not any(module.startswith("litellm") for module in modules), name
