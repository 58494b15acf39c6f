"""Reading secrets of AWS in tests: who is logged in, the provider, and what it says when it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from core.settings.models import AwsSecrets
from secrets_manager.provider import Check, SecretUnavailable
from secrets_manager.providers.aws import AwsSecretsManager

ADMIN = {"AWS_ACCESS_KEY_ID": "testing-administrator", "AWS_SECRET_ACCESS_KEY": "testing"}
REGION = "eu-central-1"


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Only an administrator's keys in the environment: nothing of this machine's own AWS set-up counts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    sign_in(monkeypatch, ADMIN)


def sign_in(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def sign_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADMIN:
        monkeypatch.delenv(name)


def manager(url: str, **settings: object) -> AwsSecretsManager:
    """The provider, with its services at `url` unless `settings` say otherwise."""
    fields = {"region": REGION, "endpoint_url": url, "sts_endpoint_url": url, **settings}
    return AwsSecretsManager(AwsSecrets.model_validate(fields), os.environ)


def text(provider: AwsSecretsManager, identifier: str = "openai", version: str = "latest") -> str:
    return provider.fetch(identifier, version).value.reveal()


def refusal(provider: AwsSecretsManager, identifier: str = "openai", version: str = "latest") -> SecretUnavailable:
    """Why it does not give the secret; nothing may hang on the exception that could quote an answer."""
    with pytest.raises(SecretUnavailable) as raised:
        provider.fetch(identifier, version)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    return raised.value


def lines(checks: Iterable[Check]) -> list[tuple[str, str]]:
    return [(check.level, check.what) for check in checks]
