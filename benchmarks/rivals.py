"""The proxies that are compared: LiteLLM alone and with ours, from one configuration, in front of one fake provider."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support import processes
from tests.support.proxy import MASTER_KEY, ProxyProcess

_ROOT = Path(__file__).resolve().parents[1]
_PLAIN = _ROOT / ".test-cache" / "plain-litellm"

# The same strong key for a user of the `quickstart` proxy, so that one request fits all of them.
_USER_KEY = "BENCHMARK_KEY"


Config = dict[str, Any]
"""What a config.yaml holds."""


def bare(provider_url: str) -> Config:
    """LiteLLM alone. A model with a published price, so that LiteLLM computes costs as it does in earnest."""
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{model}", "api_base": provider_url, "api_key": "sk-provider"},
                "model_info": {"id": f"{name}-id"},
            }
            for name, model in (("small", "gpt-4o-mini"), ("large", "gpt-4o"))
        ],
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


def with_ours(provider_url: str) -> Config:
    """The same, and everything of ours that a request can meet; whoever asks is still LiteLLM's to say."""
    return bare(provider_url) | {
        "litellm_settings": {"callbacks": ["litellm_orchestration.callback"]},
        "orchestration": {
            "groups": {"ai_team": {"users": ["ada"], "teams": ["research"]}},
            "tiers": {"free": {"models": ["small"]}, "premium": {"models": ["*"]}},
            "default_tier": "premium",
            "routing": {"policies": {"smart": {"candidates": ["large", "small"]}}},
        },
    }


def with_ours_and_keys(provider_url: str) -> Config:
    """As the quickstart has it: the callers' keys are ours too, and LiteLLM asks our authentication."""
    config = with_ours(provider_url)
    config["litellm_settings"]["enable_post_custom_auth_checks"] = True
    config["general_settings"] |= {
        "custom_auth": "litellm_orchestration.authenticate",
        "custom_auth_run_common_checks": True,
    }
    key_hash = "sha256:" + hashlib.sha256(USER_KEY.encode()).hexdigest()
    config["orchestration"]["keys"] = [{"key_hash": key_hash, "user_id": "ada", "models": ["small", "large", "smart"]}]
    return config


USER_KEY = MASTER_KEY[:-4] + "user"


def plain_environment() -> Path:
    """The `litellm` command of what `pip install litellm[proxy]` gives, in an environment made once.

    The same LiteLLM; everything else is what the package index serves when the environment is made.
    """
    command = _PLAIN / "bin" / "litellm"
    wanted = f"litellm[proxy]=={version('litellm')}"
    made_with = _PLAIN / "made-with"
    if not made_with.exists() or made_with.read_text() != wanted:
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--clear", "--quiet", "--python", sys.executable, _PLAIN], check=True)
        python = _PLAIN / "bin" / "python"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, wanted], check=True)
        made_with.write_text(wanted)
    return command


_KEEP_OPEN = ("--keepalive_timeout", "120")


class Rival(ProxyProcess):
    """A proxy that is measured. `program` runs another environment's LiteLLM in place of this one's.

    Without `bytecode` Python finds no compiled modules and writes none, as where an image is built with uv, which
    compiles nothing, and sets PYTHONDONTWRITEBYTECODE, or where the installation cannot be written to.
    """

    def __init__(
        self,
        config: Config,
        *,
        program: Path | None = None,
        user_key: str | None = None,
        bytecode: bool = True,
    ) -> None:
        # A connection waits while it is the other proxy's turn, on a busy machine longer than uvicorn keeps it open.
        super().__init__(config, arguments=_KEEP_OPEN)
        if not bytecode:
            self.env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(self.cwd / "no-bytecode")}
        self.user_key = user_key or str(self.key)
        self._program = program

    def spawn(self) -> None:
        """As the test bed starts it, or with the other environment's command and nothing of this one on its path."""
        if self._program is None:
            super().spawn()
            return
        self._starts_before = self._count_starts()
        self.env["PATH"] = self.env["PATH"].replace(str(Path(sys.executable).parent), str(self._program.parent))
        command = [self._program, "--config", self.config, "--host", "127.0.0.1", "--port", str(self.port)]
        command += _KEEP_OPEN
        with self.log.open("ab") as output:
            self._process = processes.start(command, env=self.env, cwd=self.cwd, output=output)

    @property
    def cpu(self) -> float:
        """CPU seconds so far to the nanosecond, user and system, of all threads living and gone.

        The kernel's clock of another process, as clock_getcpuclockid(3) numbers it: /proc/<pid>/stat counts in
        hundredths of a second, which is a whole per cent of a window. A proxy with one worker is one process.
        """
        return time.clock_gettime((~self.pid << 3) | 2)
