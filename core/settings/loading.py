"""From a config.yaml and an environment to settings, or to everything that is wrong with them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from core.settings.crosscheck import cross_check, model_names_of
from core.settings.environment import effective_environ, overridden
from core.settings.finding import Finding, InvalidConfig, Loc, errors, for_variables, in_order
from core.settings.models import Settings
from core.settings.references import denied_findings, reference_findings
from core.settings.source import SECTION, Source, read
from core.settings.unbuilt import unbuilt
from core.settings.unsafe import unsafe
from core.settings.validation import validated


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used."""

    settings: Settings
    document: dict[str, Any]
    """The whole configuration as LiteLLM sees it, included files merged in; Any because it is YAML."""
    path: Path
    files: tuple[Path, ...]
    """Every file that was read, to watch for changes; `path` first."""
    digest: str
    """sha256 of the files' bytes, in hex: with no `include`, of the file's own."""
    findings: tuple[Finding, ...]
    """Warnings only."""


def load(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read, check and freeze a configuration. Raises InvalidConfig (a ConfigError) that carries every finding."""
    source = read(Path(path))
    environ = effective_environ(source.document, environ)
    section, findings = _section(source.document)
    section, variables, contradictions = overridden(section, environ)
    settings, problems = validated(section)
    default = settings.secrets.default_provider if settings is not None else "local"
    references = reference_findings(source.document, default)
    # The section's own check has found those in it as well, but not at which character they are wrong.
    problems = [problem for problem in problems if problem.loc not in {one.loc for one in references}]
    findings += [*contradictions, *problems, *references, *unbuilt(section, variables)]
    if settings is not None:
        findings += cross_check(
            settings, model_names_of(source.document), models_may_come_later=_database_models(source.document, environ)
        )
        findings += denied_findings(source.document, settings.secrets)
        findings += unsafe(settings, source.document, environ)
    placed = in_order([*source.findings, *(_placed(finding, source, variables) for finding in findings)])
    if settings is None or errors(placed):
        raise InvalidConfig(placed)
    return Loaded(settings, source.document, source.path, source.files, source.digest, placed)


def _section(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """`orchestration:` without the parts that are left empty (every line below them commented out)."""
    value: object = document.get(SECTION)
    if value is None:
        return {}, []
    if not isinstance(value, dict):
        return {}, [Finding("error", (SECTION,), "must be a mapping of fields")]
    return {str(name): part for name, part in cast(dict[object, Any], value).items() if part is not None}, []


def _placed(finding: Finding, source: Source, variables: Mapping[Loc, str]) -> Finding:
    finding = for_variables(finding, variables)
    if finding.variable:
        return replace(finding, file=None, line=None, column=None)
    return source.locate(finding, key=finding.message.startswith("unknown field"))


def _database_models(document: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether LiteLLM takes models from its database too, where we cannot see them from here."""
    general: object = document.get("general_settings")
    flag: object = cast(dict[str, object], general).get("store_model_in_db") if isinstance(general, dict) else None
    return str(flag).lower() == "true" or environ.get("STORE_MODEL_IN_DB", "").lower() == "true"
