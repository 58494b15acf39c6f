"""A problem in the configuration: what, where, and what would be valid."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.errors import ConfigError
from core.settings.urls import redacted

Loc = tuple[str | int, ...]
"""Where in the file: names of fields and indexes of lists, from the top."""
Severity = Literal["error", "warning"]

# Anything under these names may be, or may contain, a secret.
_SECRET_NAME = re.compile(r"key|token|secret|password|credential|salt|channels|headers|auth$", re.IGNORECASE)
_NOT_SECRET = {"max_tokens", "tokens_per_minute", "trust_key_metadata", "keys", "secrets", "key_management_settings"}
_SECRET_VALUE = re.compile(r"^(sk-|hvs\.|xox|AKIA|gh[pousr]_|AIza|ey[JK])|[0-9a-f]{32}|\S{40}", re.IGNORECASE)
MASK = "***"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. `line` and `column` count from 1; `value` is masked where it could be a secret."""

    severity: Severity
    loc: Loc
    message: str
    value: str | None = None
    valid: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    column: int | None = None
    variable: str | None = None
    """The environment variable that the value came from."""
    offset: int = 0
    """How many characters into the value it is wrong."""

    @property
    def path(self) -> str:
        """The field as people write it: `orchestration.keys[0].tier`."""
        text = ""
        for part in self.loc:
            text += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}"
        return text.removeprefix(".")

    def __str__(self) -> str:
        if self.variable:
            place = f"environment {self.variable}"
        else:
            place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        path = f" {self.path}" if self.loc else ""
        return f"{place} {self.severity}{path}: {self.message}".lstrip()

    def as_json(self) -> dict[str, Any]:
        """The finding for programs; Any because it is JSON."""
        return {
            "severity": self.severity,
            "path": self.path,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "variable": self.variable,
            "value": self.value,
            "message": self.message,
            "valid": list(self.valid),
        }


class InvalidConfig(ConfigError):
    """The configuration is refused; `findings` are all its errors and warnings, in the order of the file."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = in_order(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings if finding.severity == "error"))


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings without repetitions, in the order of the file."""
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (f.file or "", f.line or 0, f.column or 0, f.severity)))


def errors(findings: Iterable[Finding]) -> bool:
    """Whether one of them is an error."""
    return any(finding.severity == "error" for finding in findings)


def for_variables(finding: Finding, variables: Mapping[Loc, str]) -> Finding:
    """The finding, with the environment variable that its value came from, if any."""
    variable = variables.get(finding.loc)
    return replace(finding, variable=variable) if variable else finding


def shown_name(name: str) -> str:
    """The name of a field, unless it looks like a secret that slipped to the wrong side of the colon."""
    return MASK if _SECRET_VALUE.search(name) else name


def shown(loc: Loc, value: object) -> str | None:
    """The value as it may be printed: masked where it could be a secret, None where it is not a single value."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if not isinstance(value, (str, int, float)):
        return None
    # Only the innermost name decides; `orchestration.keys[0].tier` is not a secret.
    names = [part for part in loc if isinstance(part, str)]
    if "channels" in names or any(_SECRET_NAME.search(n) for n in names[-1:] if n not in _NOT_SECRET):
        return MASK
    text = str(value)
    if "://" in text:
        return redacted(text)
    return MASK if _SECRET_VALUE.search(text) else text[:80]
