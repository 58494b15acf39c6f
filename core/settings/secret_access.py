"""Which models may use which references: `secrets.access`."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Protocol

from core.settings.reference import SecretReference
from core.settings.secret_uses import Use


class _Rule(Protocol):
    @property
    def models(self) -> Iterable[str]: ...
    @property
    def allow(self) -> Iterable[str]: ...


class SecretAccess:
    """Without rules every model may use every reference; with rules each needs one that names both."""

    def __init__(self, rules: Iterable[_Rule]) -> None:
        self._rules = tuple((tuple(rule.models), tuple(_without_prefix(rule.allow))) for rule in rules)

    def permits(self, model: str | None, reference: SecretReference) -> bool:
        """Whether `model` may use `reference`; None is a caller whose model is not known."""
        if not self._rules:
            return True
        uri, document = reference.uri, reference.document.uri
        return any(
            any(model is not None and fnmatchcase(model, pattern) for pattern in models)
            and any(fnmatchcase(uri, pattern) or fnmatchcase(document, pattern) for pattern in allow)
            for models, allow in self._rules
        )

    def denied(self, uses: Iterable[Use]) -> Iterator[Use]:
        """The uses of models that the rules do not permit. Other places of a configuration belong to whoever writes
        it, as the rules themselves do."""
        for use in uses:
            if use.model is not None and not self.permits(use.model, use.reference):
                yield use


def _without_prefix(patterns: Iterable[str]) -> Iterator[str]:
    return (pattern.removeprefix("os.environ/") for pattern in patterns)
