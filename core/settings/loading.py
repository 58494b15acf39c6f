"""From a config.yaml and an environment to settings, or to everything that is wrong with them."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from core.overlay import SETTINGS, Merged, Overlay, put_setting
from core.settings.crosscheck import cross_check, model_names_of
from core.settings.environment import effective_environ, overridden
from core.settings.finding import Finding, InvalidConfig, Loc, errors, for_variables, in_order, shown_name
from core.settings.models import Objective, Settings
from core.settings.references import denied_findings, reference_findings
from core.settings.rule_check import rule_findings
from core.settings.source import SECTION, Source, read
from core.settings.unbuilt import unbuilt
from core.settings.unsafe import unsafe
from core.settings.validation import validated


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used."""

    settings: Settings
    document: dict[str, Any]
    """The whole configuration as LiteLLM sees it, included files merged in, the overlay over it; Any because it is
    YAML."""
    path: Path
    files: tuple[Path, ...]
    """Every file that was read, to watch for changes; `path` first."""
    digest: str
    """sha256 of the files' bytes, in hex: with no `include`, of the file's own. With an overlay, of both."""
    findings: tuple[Finding, ...]
    """Warnings only."""
    source: Source = field(repr=False, compare=False)
    """What the files say, without an overlay."""

    def under(self, overlay: Overlay, environ: Mapping[str, str] = os.environ) -> "Loaded":
        """The same files with this overlay over them, without reading them again. Raises InvalidConfig as `load`."""
        return _loaded(self.source, environ, overlay)


_NO_OVERLAY = Overlay()


def load(
    path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ, overlay: Overlay = _NO_OVERLAY
) -> Loaded:
    """Read, check and freeze a configuration with an overlay over it.

    Raises InvalidConfig (a ConfigError) that carries every finding; those in the overlay name its entry.
    """
    return _loaded(read(Path(path)), environ, overlay)


def _loaded(source: Source, environ: Mapping[str, str], overlay: Overlay) -> Loaded:
    merged = Merged(source.document, overlay)
    document = merged.document
    environ = effective_environ(document, environ)
    section, findings = _section(document)
    section, variables, contradictions = overridden(section, environ)
    _put_settings(section, overlay, variables)
    settings, problems = validated(section)
    default = settings.secrets.default_provider if settings is not None else "local"
    references = reference_findings(document, default)
    # The section's own check has found those in it as well, but not at which character they are wrong.
    problems = [problem for problem in problems if problem.loc not in {one.loc for one in references}]
    findings += [*contradictions, *problems, *references, *unbuilt(section, variables)]
    if settings is not None:
        findings += cross_check(
            settings, model_names_of(document), models_may_come_later=_database_models(document, environ)
        )
        findings += rule_findings(settings)
        places = {finding.loc for finding in findings}  # an objective that is none has been found already
        findings += [one for one in _strategies(settings, source.path.parent) if one.loc not in places]
        findings += denied_findings(document, settings.secrets)
        findings += unsafe(settings, document, environ)
    placed = in_order([*source.findings, *(_placed(finding, source, merged, variables) for finding in findings)])
    if settings is None or errors(placed):
        raise InvalidConfig(placed)
    return Loaded(settings, document, source.path, source.files, overlay.over(source.digest), placed, source)


def _strategies(settings: Settings, folder: Path) -> list[Finding]:
    """Custom strategies that cannot be loaded. What loads them is no part of the core, so it is reached by name."""
    if not settings.routing.strategies and all(
        policy.objective in set(Objective) for policy in settings.routing.policies.values()
    ):
        return []
    module = importlib.import_module("custom_router.strategies")
    found: list[Finding] = module.strategy_findings(settings.routing, folder)
    return found


def _section(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """`orchestration:` without the parts that are left empty (every line below them commented out)."""
    value: object = document.get(SECTION)
    if value is None:
        return {}, []
    if not isinstance(value, dict):
        return {}, [Finding("error", (SECTION,), "must be a mapping of fields")]
    return {str(name): part for name, part in cast(dict[object, Any], value).items() if part is not None}, []


def _put_settings(section: dict[str, Any], overlay: Overlay, variables: dict[Loc, str]) -> None:
    """Administrators have the last word: what they set holds against the environment."""
    for name, value in overlay.entries.get(SETTINGS, {}).items():
        loc = put_setting(section, name, value)
        if loc is not None:
            variables.pop((SECTION, *loc), None)


def _placed(finding: Finding, source: Source, merged: Merged, variables: Mapping[Loc, str]) -> Finding:
    finding = for_variables(finding, variables)
    if finding.variable:
        return replace(finding, file=None, line=None, column=None)
    entry, loc = merged.origin(finding.loc)
    finding = replace(finding, loc=loc)
    if entry is not None:
        return replace(finding, file=f"the overlay's {shown_name(entry)}")
    return source.locate(finding, key=finding.message.startswith("unknown field"))


def _database_models(document: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether LiteLLM takes models from its database too, where we cannot see them from here."""
    general: object = document.get("general_settings")
    flag: object = cast(dict[str, object], general).get("store_model_in_db") if isinstance(general, dict) else None
    return str(flag).lower() == "true" or environ.get("STORE_MODEL_IN_DB", "").lower() == "true"
