"""The references to vaults in a whole configuration, LiteLLM's sections included: whether they can be looked up."""

from collections.abc import Mapping
from typing import Any, cast

from core.settings.finding import Finding, shown_name
from core.settings.models import Secrets
from core.settings.reference import MalformedReference, SecretReference
from core.settings.secret_access import SecretAccess
from core.settings.secret_uses import uses_of, vault_references
from core.settings.source import SECTION


def reference_findings(document: Mapping[str, Any], default_provider: str) -> list[Finding]:
    """References that are written wrongly, with the character that is wrong, and those that LiteLLM cannot look up
    because it was not told to ask us. No message repeats a reference that is none: it may be a secret."""
    places = list(vault_references(document))
    findings: list[Finding] = []
    for loc, text in places:
        try:
            SecretReference.parse(text, default_provider)
        except MalformedReference as error:
            findings.append(Finding("error", loc, f"{error} (character {error.position + 1})", offset=error.position))
    litellms = [loc for loc, _ in places if loc[0] != SECTION]
    if litellms and not _asks_a_custom_manager(document):
        message = (
            "LiteLLM does not ask us for secrets yet; run `llm-orchestration init`, which adds "
            "general_settings.key_management_settings.custom_secret_manager"
        )
        findings.append(Finding("error", litellms[0], message))
    return findings


def denied_findings(document: Mapping[str, Any], secrets: Secrets) -> list[Finding]:
    """Models that use references which no rule of `secrets.access` permits them."""
    uses = uses_of(document, secrets.default_provider)
    return [
        Finding(
            "error",
            use.path,
            f"model '{shown_name(use.model or '')}' may not use this reference: no rule of "
            "orchestration.secrets.access permits it",
        )
        for use in SecretAccess(secrets.access).denied(uses)
    ]


def _asks_a_custom_manager(document: Mapping[str, Any]) -> bool:
    """Whether LiteLLM asks a secret manager from a file. It may be a team's own, made of ours."""
    settings: object = document.get("general_settings")
    return isinstance(settings, dict) and cast("dict[str, object]", settings).get("key_management_system") == "custom"
