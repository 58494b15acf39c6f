"""The secrets of one process: what its configuration uses, where the values are, and who may have them."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

from core.errors import ConfigError
from core.settings import Settings
from core.settings.models import Environment, Secrets
from core.settings.reference import PREFIX, MalformedReference, SecretReference
from core.settings.secret_access import SecretAccess
from core.settings.secret_uses import Use, is_credential, uses_of
from secrets_manager.provider import Check, Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers import Providers
from secrets_manager.resolver import ALERTS, Happened, Listener, Resolved, Resolver, SecretEvent, SecretState
from secrets_manager.value import MaskedText

_LOG = logging.getLogger("orchestration.secrets")

PLACEHOLDER = "put-in-per-request:"
"""What LiteLLM keeps in place of a credential, followed by its reference. It is no secret, and no provider takes it."""


class Make(Protocol):
    """Makes what gives the provider of a scheme."""

    def __call__(
        self, settings: Secrets, environ: Mapping[str, str], *, production: bool
    ) -> Callable[[str], SecretProvider]: ...


@dataclass(frozen=True, slots=True)
class Put:
    """A value that was put into a call: which reference, and the how manieth of its values."""

    reference: SecretReference
    serial: int


@dataclass(frozen=True, slots=True)
class ReferenceStatus:
    """What administrators see of a reference: never a value."""

    state: SecretState
    models: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _InForce:
    """One configuration's part in this; swapped whole."""

    secrets: Secrets
    default_provider: str
    access: SecretAccess
    uses: Mapping[SecretReference, tuple[Use, ...]]


class SecretService:
    """Built once a process. `configure` takes a configuration over, as a whole or not at all."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        make: Make = Providers,
        clock: Callable[[], float] = time.time,
        background: bool = True,
    ) -> None:
        self._environ = environ
        self._make = make
        self._clock = clock
        self._background = background
        self._lock = threading.Lock()
        self._early: list[SecretEvent] | None = []
        """What has happened, until somebody listens who wants that too."""
        self._listeners: list[Listener] = [_log, self._remember]
        self._in_force: _InForce | None = None
        self._providers: Any = None
        self._resolver: Resolver | None = None
        self._broken: frozenset[SecretReference] = frozenset()

    # -- configuration -------------------------------------------------------------------------------------------

    def configure(self, settings: Settings, document: Mapping[str, Any]) -> None:
        """Take a configuration over: every reference in it is read, in parallel. Blocks for the vaults.

        Raises ConfigError, and changes nothing, where `secrets.access` forbids a use, or where a secret cannot be read
        that LiteLLM needs at the start, or any at all in production. In development the models concerned are
        unavailable, and reading is tried again.
        """
        secrets, production = settings.secrets, settings.environment is Environment.PRODUCTION
        default = secrets.default_provider.value
        uses = uses_of(document, default)
        access = SecretAccess(secrets.access)
        denied = list(access.denied(uses))
        by_reference: dict[SecretReference, list[Use]] = {}
        for use in uses:
            by_reference.setdefault(use.reference, []).append(use)
        with self._lock:
            before = self._in_force
            fresh = (
                before is None or before.secrets.providers != secrets.providers or before.secrets.cache != secrets.cache
            )
            providers = self._make(secrets, self._environ, production=production) if fresh else self._providers
            resolver = self._new_resolver(providers, secrets) if fresh or self._resolver is None else self._resolver
            if denied:
                self._refuse(resolver, denied)
            failed = resolver.keep(by_reference, "the configuration")
            errors = _unbearable(failed, by_reference, production)
            if errors:
                if resolver is not self._resolver:
                    _close(resolver, providers)
                elif before is not None:
                    resolver.keep(before.uses, "the configuration")
                raise ConfigError("\n".join(errors))
            replaced = self._resolver if resolver is not self._resolver else None
            its_providers = self._providers
            grouped = {reference: tuple(found) for reference, found in by_reference.items()}
            self._resolver, self._providers = resolver, providers
            self._in_force = _InForce(secrets, default, access, grouped)
            self._broken = frozenset(reference.document for reference in failed)
        for reference, error in failed.items():
            places = ", ".join(use.place for use in by_reference[reference])
            _LOG.error("%s has no value: %s Used by %s, which is unavailable until then.", reference, error, places)
        if replaced is not None:
            _close(replaced, its_providers)

    def _new_resolver(self, providers: Any, secrets: Secrets) -> Resolver:
        resolver = Resolver(providers, secrets.cache, clock=self._clock, background=self._background)
        for listener in (*self._listeners, self._note_broken):
            resolver.listen(listener)
        return resolver

    def _refuse(self, resolver: Resolver, denied: Sequence[Use]) -> None:
        for use in denied:
            resolver.tell_denied(use.reference, f"model {use.model}", f"{use.place} is not permitted by secrets.access")
        lines = [
            f"{use.place}: model '{use.model}' may not use {use.reference}; no rule of orchestration.secrets.access "
            "permits it"
            for use in denied
        ]
        if resolver is not self._resolver:
            resolver.close()
        raise ConfigError("\n".join(lines))

    # -- values --------------------------------------------------------------------------------------------------

    @property
    def resolver(self) -> Resolver:
        """Raises ConfigError before `configure`."""
        if self._resolver is None:
            raise ConfigError("no configuration with secrets has been read yet")
        return self._resolver

    def parse(self, text: str) -> SecretReference:
        """A reference, with or without `os.environ/`. Raises MalformedReference."""
        return SecretReference.parse(text, self._in_force.default_provider if self._in_force else "local")

    def for_litellm(self, text: str) -> str:
        """What LiteLLM gets for a reference: a placeholder where the value is put into each call, else the value.

        What no configuration names comes from models and credentials of LiteLLM's database, which anybody who may add
        a model can write: they get the value at each call, where it is known which model asks. Raises
        SecretUnavailable and MalformedReference.
        """
        reference = self.parse(text)
        uses = self._in_force.uses.get(reference, ()) if self._in_force else ()
        if all(use.per_request for use in uses):
            return f"{PLACEHOLDER}{reference.uri}"
        return MaskedText(self.resolver.resolve(reference, "LiteLLM").value.reveal())

    def value(self, text: str) -> str:
        """The value in use of a reference that the configuration names, for a part of ours; never asks the vault.

        Raises SecretUnavailable and MalformedReference.
        """
        return MaskedText(self.resolver.current(self.parse(text)).value.reveal())

    def put_into(self, call: dict[str, Any], model: str | None) -> tuple[Put, ...]:
        """Replace the placeholders in a call's arguments by the current values; what was put in.

        Raises SecretUnavailable where there is no value, or `model` may not use it.
        """
        found: list[Put] = []
        changed: dict[str, Any] = {}
        for name, value in call.items():
            # On the way of every attempt: exact types, no calls for what cannot be one.
            if type(value) is str:
                if value.startswith(PLACEHOLDER):
                    changed[name] = self._put(value, model, found)
            elif type(value) is dict and _is_credential(name):
                inside = {
                    inner: self._put(text, model, found)
                    for inner, text in cast("dict[str, object]", value).items()
                    if type(text) is str and text.startswith(PLACEHOLDER)
                }
                if inside:
                    changed[name] = {**value, **inside}
        if changed:
            call.update(changed)
        return tuple(found)

    def _put(self, placeholder: str, model: str | None, found: list[Put]) -> str:
        reference, resolved = self.current(placeholder, model)
        found.append(Put(reference, resolved.serial))
        return MaskedText(resolved.value.reveal())

    def current(self, placeholder: str, model: str | None) -> tuple[SecretReference, Resolved]:
        """The value in use behind a placeholder. Raises SecretUnavailable."""
        reference = _reference_of(placeholder)
        in_force = self._in_force
        if in_force is not None and not in_force.access.permits(model, reference):
            known = in_force.uses.get(reference, ())
            if model is not None or not known:
                message = (
                    f"Model '{model}' may not use {reference}; no rule of orchestration.secrets.access permits it."
                )
                self.resolver.tell_denied(reference, f"model {model}", message)
                raise SecretUnavailable(message, Reason.FORBIDDEN)
        return reference, self.resolver.current(reference)

    async def read_missing(self, call: Mapping[str, Any], model: str | None) -> None:
        """Ask the vaults for what a call needs and was never read: models that came from LiteLLM's database."""
        for value in _placeholders(call):
            reference = _reference_of(value)
            if self._in_force is None or self._in_force.access.permits(model, reference):
                await self.resolver.resolve_soon(reference, f"model {model}")

    # -- rotation ------------------------------------------------------------------------------------------------

    async def rejected(self, put: Iterable[Put]) -> bool:
        """A provider refused a call with these values: whether another try would be made with others."""
        found = [await self.resolver.rejected_soon(one.reference, one.serial) for one in put]
        return any(found)

    @property
    def anything_broken(self) -> bool:
        """Whether a secret of the configuration has no value now."""
        return bool(self._broken)

    def usable(self, parameters: Mapping[str, Any]) -> bool:
        """Whether every secret of a deployment has a value."""
        return not any(_reference_of(value).document in self._broken for value in _placeholders(parameters))

    def refresh(self, texts: Sequence[str] | None, why: str) -> dict[str, str | None]:
        """Read these references again now, None: all; each with what went wrong. Blocks. Raises MalformedReference,
        and KeyError with a reference that is not in use."""
        references = None if texts is None else [self.parse(text) for text in texts]
        if references is not None:
            known = {state.reference.document for state in self.resolver.states()}
            for reference in references:
                if reference.document not in known:
                    raise KeyError(reference.uri)
        found = self.resolver.refresh(references, why)
        return {reference.uri: None if error is None else str(error) for reference, error in sorted(found.items())}

    def _note_broken(self, event: SecretEvent) -> None:
        if event.what is Happened.LOST:
            self._broken |= {event.reference}
        elif event.what in (Happened.FETCHED, Happened.RECOVERED, Happened.ROTATED) and self._broken:
            self._broken -= {event.reference}

    # -- watching ------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener, *, from_the_start: bool = False) -> None:
        """Call `listener` with everything that happens to secrets from now on, on any thread, and, for one listener,
        with what has happened since the process began."""
        with self._lock:
            self._listeners.append(listener)
            if self._resolver is not None:
                self._resolver.listen(listener)
            early, self._early = (self._early, None) if from_the_start else ([], self._early)
        for event in early or ():
            listener(event)

    def _remember(self, event: SecretEvent) -> None:
        early = self._early
        if early is not None and len(early) < _MOST_EARLY:
            early.append(event)

    def texts(self) -> list[str]:
        """The values that were given out, for whoever has to keep them out of a log."""
        return self._resolver.texts() if self._resolver else []

    def states(self) -> list[SecretState]:
        """Every reference that is known, by name; none before `configure` and after `close`."""
        return self._resolver.states() if self._resolver else []

    def statuses(self) -> list[ReferenceStatus]:
        """Every reference in use, by name."""
        uses: Mapping[SecretReference, tuple[Use, ...]] = self._in_force.uses if self._in_force else {}
        return [
            ReferenceStatus(
                state,
                tuple(dict.fromkeys(use.model for use in uses.get(state.reference, ()) if use.model)),
                tuple(use.place for use in uses.get(state.reference, ())),
            )
            for state in self.states()
        ]

    def diagnose(self, settings: Settings, document: Mapping[str, Any]) -> Iterable[tuple[str, Check]]:
        """What every provider that a configuration uses says about itself, with the provider's name."""
        uses = uses_of(document, settings.secrets.default_provider.value)
        production = settings.environment is Environment.PRODUCTION
        providers = self._make(settings.secrets, self._environ, production=production)
        wanted: dict[str, dict[str, str]] = {}
        for use in uses:
            wanted.setdefault(use.reference.provider, {})[use.reference.secret_identifier] = use.reference.version
        for name, identifiers in wanted.items():
            try:
                checks = list(providers(name).diagnose(identifiers))
            except SecretUnavailable as error:
                checks = [Check("error", str(error))]
            for check in checks:
                yield name, check

    def close(self) -> None:
        """Stop and overwrite every value."""
        with self._lock:
            resolver, providers = self._resolver, self._providers
            self._resolver = self._providers = self._in_force = None
        if resolver is not None:
            _close(resolver, providers)


_MOST_EARLY = 10_000


_is_credential = lru_cache(maxsize=1000)(is_credential)
"""The names of a call's arguments are few, and come with each of them."""


@lru_cache(maxsize=10_000)
def _reference_of(placeholder: str) -> SecretReference:
    return SecretReference.parse(placeholder.removeprefix(PLACEHOLDER))


def _placeholders(call: Mapping[str, Any]) -> Iterable[str]:
    for name, value in call.items():
        if isinstance(value, str):
            if value.startswith(PLACEHOLDER):
                yield value
        elif isinstance(value, dict) and is_credential(name):
            yield from _placeholders(cast("dict[str, Any]", value))


def _unbearable(
    failed: Mapping[SecretReference, SecretUnavailable],
    uses: Mapping[SecretReference, Sequence[Use]],
    production: bool,
) -> list[str]:
    """What must not be started with: in production anything, else what LiteLLM needs at once. A proxy without its
    master key would be open to everybody."""
    lines: list[str] = []
    for reference, error in failed.items():
        needed = [use for use in uses[reference] if production or not _can_wait(use)]
        lines += [f"{use.place}: {PREFIX}{reference} has no value: {error}" for use in needed]
    return lines


def _can_wait(use: Use) -> bool:
    return use.per_request or use.path[:2] in (("orchestration", "keys"), ("orchestration", "alerts"))


def _close(resolver: Resolver, providers: Any) -> None:
    resolver.close()
    close = getattr(providers, "close", None)
    if close is not None:
        close()


def _log(event: SecretEvent) -> None:
    """A line for what somebody should know; what went as it should is for the audit alone."""
    if event.what in ALERTS or event.what is Happened.REJECTED:
        _LOG.error("secret %s: %s. %s", event.what, event.reference, event.message or event.why)
    elif event.what in (Happened.FAILED, Happened.RECOVERED, Happened.ROTATED):
        _LOG.warning("secret %s: %s. %s", event.what, event.reference, event.message or event.why)


def malformed(text: str, error: MalformedReference) -> str:
    """A sentence about a reference that is written wrongly; never the text itself, which may be a secret."""
    return f"a reference with a mistake at its character {error.position + 1}: it {error}"
