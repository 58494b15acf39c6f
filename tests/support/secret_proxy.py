"""A proxy whose models have their keys by reference, the file that is its vault, and a call for each endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.gateway import NO_BREAKERS, model
from tests.support.provider import FakeProvider
from tests.support.proxy import ProxyProcess

MANAGER = {
    "key_management_system": "custom",
    "key_management_settings": {"custom_secret_manager": "orchestration_secrets.SecretManager"},
}
CHAT = {"messages": [{"role": "user", "content": "What is the answer?"}]}
CALLS = {
    "chat": ("/v1/chat/completions", {"model": "small", **CHAT}),
    "chat-stream": ("/v1/chat/completions", {"model": "small", **CHAT, "stream": True}),
    "completion": ("/v1/completions", {"model": "small", "prompt": "What is the answer?"}),
    "completion-stream": ("/v1/completions", {"model": "small", "prompt": "What is the answer?", "stream": True}),
    "embedding": ("/v1/embeddings", {"model": "embed", "input": "What is the answer?"}),
    "responses": ("/v1/responses", {"model": "small", "input": "What is the answer?"}),
    "responses-stream": ("/v1/responses", {"model": "small", "input": "What is the answer?", "stream": True}),
    "messages": ("/v1/messages", {"model": "claude", "max_tokens": 20, **CHAT}),
    "messages-stream": ("/v1/messages", {"model": "claude", "max_tokens": 20, **CHAT, "stream": True}),
    "messages-of-openai": ("/v1/messages", {"model": "small", "max_tokens": 20, **CHAT}),
}


class FileVault:
    """The file of the local provider: a vault whose secrets a test writes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "secrets.env"
        self.values: dict[str, str] = {}

    def put(self, **values: str) -> None:
        self.values.update(values)
        fresh = self.path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text("".join(f"{name}={value}\n" for name, value in self.values.items()))
        fresh.replace(self.path)


def proxy_with(provider: FakeProvider, vault: FileVault, **more: Any) -> ProxyProcess:
    """Not started yet; `more` goes into `orchestration:`."""
    config = {
        "litellm_settings": {"callbacks": ["litellm_orchestration.callback"]},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", **MANAGER},
        "model_list": [
            model("small", provider.url, api_key="os.environ/env://OPENAI"),
            model("claude", provider.origin, provider="anthropic", api_key="os.environ/env://ANTHROPIC"),
            model("embed", provider.url, mode="embedding", api_key="os.environ/env://OPENAI"),
            model("other", provider.url, api_key="sk-other"),
        ],
        "orchestration": {
            "secrets": {"providers": {"local": {"file": str(vault.path)}}},
            "routing": {"policies": {"smart": {"candidates": ["small", "other"]}}},
            "resilience": NO_BREAKERS,
            **more,
        },
    }
    return ProxyProcess(config)
