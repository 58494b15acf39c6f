"""The `openai` package for Node, run against a server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal

from tests.support import npm

_SCRIPTS = Path(__file__).with_name("node")


class NodeClient:
    """Runs `node/chat.mjs` with a base URL and a key. Raises npm.NodeMissing where Node.js is absent."""

    def __init__(self) -> None:
        self._folder = npm.installed(_SCRIPTS)

    def __call__(
        self,
        action: Literal["chat", "stream", "embeddings", "models"],
        *,
        url: str,
        key: str,
        model: str = "",
        prompt: str = "",
    ) -> dict[str, Any]:
        """What the program printed: the answer's parts, or `{"error": {name, status, code, type, message}}`."""
        result = subprocess.run(
            [npm.node(), self._folder / "chat.mjs", action, model, prompt],
            env={"PATH": os.environ["PATH"], "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if result.returncode:
            raise AssertionError(f"chat.mjs failed:\n{result.stderr.replace(key, 'sk-...')}")
        return json.loads(result.stdout)
