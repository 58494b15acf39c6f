"""`/orchestration/budgets`, `/tiers` and the like: the entries of a configuration, read and changed one by one."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from core.errors import BadField, BodyTooLarge, ConfigError, IfMatchRequired, NotFound, StaleEntry
from core.live_overlay import Change
from core.overlay import DISABLED, PLACES, entries_of
from core.runtime import Runtime
from core.settings import Finding, InvalidConfig, is_reference
from core.settings.finding import shown_name
from core.settings.validation import nearest
from plugins.admin.access import Changer, Reader, actor_of, answered, ready
from plugins.admin.paging import limit_of
from plugins.admin.public import public, written_secrets

KINDS = {
    "budgets": "budget",
    "tiers": "tier",
    "groups": "group",
    "policies": "policy",
    "rules": "rule",
    "experiments": "experiment",
    "models": "model",
}
"""What an entry of each section is called."""

_MOST_BYTES = 1 << 20
_DEEPEST = 60
_LONGEST_ID = 256
_LONGEST_DETAIL = 16_384
_MODEL_FIELDS = ("model_name", "litellm_params", "model_info")


def entries_router(runtime: Runtime, standing: Callable[[str], Awaitable[dict[str, Any]]] | None = None) -> APIRouter:
    """`standing` is asked how a budget stands that is looked at, by its id."""
    router = APIRouter()
    for section, noun in KINDS.items():
        _add_routes(router, Entries(runtime, section, noun, standing if section == "budgets" else None))
    return router


def _add_routes(router: APIRouter, entries: "Entries") -> None:
    path, noun = f"/{entries.section}", entries.noun
    one = f"{path}/{{entry_id:path}}"

    @router.get(path, summary=f"The {entries.section} in force", name=f"list_{entries.section}")
    async def list_entries(_: Reader, request: Request) -> Response:
        return await answered(entries.listed(dict(request.query_params)))

    @router.get(one, summary=f"One {noun}, with its ETag", name=f"get_{noun}")
    async def get_entry(_: Reader, entry_id: str) -> Response:
        return await answered(entries.read(entry_id))

    @router.put(one, summary=f"Put a {noun} in force; If-Match where there is one of this id", name=f"put_{noun}")
    async def put_entry(auth: Changer, entry_id: str, request: Request) -> Response:
        return await answered(entries.put(entry_id, request, actor_of(auth)))

    @router.delete(one, summary=f"Take a {noun} away, or with revert=true back to the file's", name=f"delete_{noun}")
    async def delete_entry(auth: Changer, entry_id: str, request: Request) -> Response:
        return await answered(entries.delete(entry_id, request, actor_of(auth)))

    if entries.section == "models":
        for word in ("enable", "disable"):
            _add_switch(router, entries, word)


def _add_switch(router: APIRouter, entries: "Entries", word: str) -> None:
    @router.post(f"/models/{{entry_id:path}}/{word}", summary=f"{word.title()} a deployment", name=f"{word}_model")
    async def switch(auth: Changer, entry_id: str) -> Response:
        return await answered(entries.switch(entry_id, word == "enable", actor_of(auth)))


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of one section: those of config.yaml with the overlay over them."""

    runtime: Runtime
    section: str
    noun: str
    standing: Callable[[str], Awaitable[dict[str, Any]]] | None = None

    async def listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of entries, in their order. Raises BadField."""
        limit = limit_of(query)
        await ready(self.runtime)
        found = list(entries_of(self.runtime.document, self.section).items())
        start = 0
        if cursor := query.get("cursor"):
            names = [name for name, _ in found]
            if cursor not in names:
                raise BadField("cursor: the entry it names is not there any more; start again without one.")
            start = names.index(cursor) + 1
        page = found[start : start + limit]
        more = start + limit < len(found)
        shown = [self._shown(name, entry) for name, entry in page]
        return {self.section: shown, "next_cursor": page[-1][0] if more else None}

    async def read(self, name: str) -> Response:
        """One entry. Raises NotFound."""
        await ready(self.runtime)
        entry = self._present(name)
        if entry is None:
            raise self._missing(name)
        shown = self._shown(name, entry)
        if self.standing is not None:
            shown["standing"] = await self.standing(name)
        return JSONResponse(shown, 200, {"etag": etag(entry)})

    async def put(self, name: str, request: Request, actor: str) -> Response:
        """Create an entry or replace it whole. Raises BadField, BodyTooLarge, StaleEntry, IfMatchRequired."""
        value = self._entry(name, await json_body(request))
        conditions = Conditions.of(request)
        created = False

        def propose() -> Change | None:
            nonlocal created
            before = self._present(name)
            created = before is None
            conditions.check(self._subject(name), before)
            if before == value:
                return None
            overlay = self.runtime.overlay.with_entry(self.section, name, value)
            return Change(overlay, f"{self.noun}.put", self._subject(name), _detail(before, value))

        await self._change(name, propose, actor)
        return self._answer(name, 201 if created else 200)

    async def delete(self, name: str, request: Request, actor: str) -> Response:
        """Take an entry away, or back to what config.yaml says. Raises NotFound, StaleEntry, IfMatchRequired, and
        BadField where others need it."""
        reverts = _flag("revert", request.query_params.get("revert", "false"))
        conditions = Conditions.of(request)

        def propose() -> Change | None:
            before, overlay = self._present(name), self.runtime.overlay
            in_file = entries_of(self.runtime.file_document, self.section).get(name)
            if before is None and not (reverts and overlay.has(self.section, name)):
                raise self._missing(name)
            conditions.check(self._subject(name), before)
            if reverts and not overlay.has(self.section, name):
                return None
            if in_file is not None and not reverts:
                changed = overlay.with_entry(self.section, name, None)
            else:
                changed = overlay.without(self.section, name)
            after = in_file if reverts else None
            if self.section == "models" and after is None:
                changed = replace(changed.without(DISABLED, name), version=changed.version)
            word = "revert" if reverts else "delete"
            return Change(changed, f"{self.noun}.{word}", self._subject(name), _detail(before, after))

        await self._change(name, propose, actor)
        if self._present(name) is not None:
            return self._answer(name, 200)
        return JSONResponse({"id": name, "deleted": True})

    async def switch(self, name: str, enable: bool, actor: str) -> Response:
        """Have a deployment take requests, or not. Raises NotFound."""

        def propose() -> Change | None:
            if self._present(name) is None:
                raise self._missing(name)
            overlay = self.runtime.overlay
            if enable == (name not in overlay.disabled):
                return None
            changed = overlay.without(DISABLED, name) if enable else overlay.with_entry(DISABLED, name, True)
            word = "enable" if enable else "disable"
            return Change(changed, f"{self.noun}.{word}", self._subject(name), "{}")

        await self._change(name, propose, actor)
        return self._answer(name, 200)

    # -- what is there -------------------------------------------------------------------------------------------

    def _present(self, name: str) -> Any:
        return entries_of(self.runtime.document, self.section).get(name)

    def _subject(self, name: str) -> str:
        return f"{self.section}/{name}"

    def _missing(self, name: str) -> NotFound:
        hint = nearest(name, tuple(entries_of(self.runtime.document, self.section)))
        return NotFound(f"There is no {self.noun} {shown_name(name[:_LONGEST_ID])!r}{hint}.")

    def _shown(self, name: str, entry: Any) -> dict[str, Any]:
        changed = self.runtime.overlay.has(self.section, name)
        in_file = name in entries_of(self.runtime.file_document, self.section) if changed else True
        shown = {
            "id": name,
            "source": "overlay" if changed else "config.yaml",
            "overrides_file": changed and in_file,
            "etag": etag(entry),
            "entry": public(entry),
        }
        if self.section == "models":
            shown["enabled"] = name not in self.runtime.disabled_deployments
        return shown

    def _answer(self, name: str, status: int) -> Response:
        entry = self._present(name)
        if entry is None:
            raise self._missing(name)
        return JSONResponse(self._shown(name, entry), status, {"etag": etag(entry)})

    # -- changing it ---------------------------------------------------------------------------------------------

    async def _change(self, name: str, propose: Callable[[], Change | None], actor: str) -> None:
        await ready(self.runtime)
        try:
            await self.runtime.change_overlay(propose, actor=actor)
        except InvalidConfig as error:
            raise refusal(self._subject(name), error.findings) from None
        except ConfigError as error:
            raise BadField(f"{self._subject(name)}: {error}") from None

    def _entry(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as it stands in a configuration. Raises BadField."""
        if not name or len(name) > _LONGEST_ID:
            raise BadField(f"The id of a {self.noun} has 1 to {_LONGEST_ID} characters.")
        if self.section == "models":
            try:
                return _model(name, body)
            except BadField as error:
                raise BadField(f"{self._subject(name)}: {error.message}", details=error.details) from None
        place = PLACES[self.section]
        if place.id_at is None:
            return dict(body)
        (field,) = place.id_at
        if str(body.get(field, name)) != name:
            raise BadField(
                f"{field} is not the id in the address, {shown_name(name)!r}; leave it out or make them agree."
            )
        return {field: name, **body}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a caller says about the state of an entry that it knows."""

    match: frozenset[str] | None
    none_match: frozenset[str]

    @classmethod
    def of(cls, request: Request) -> "Conditions":
        match = request.headers.get("if-match")
        none_match = request.headers.get("if-none-match") or ""
        return cls(None if match is None else _tags(match), _tags(none_match))

    def check(self, subject: str, entry: Any) -> None:
        """Raises StaleEntry and IfMatchRequired; `entry` is what is in force, None where there is nothing."""
        if entry is None:
            if self.match is not None:
                raise StaleEntry(f"{subject} is not there (any more); send no If-Match to create it.")
            return
        now = etag(entry)
        if self.none_match & {"*", now}:
            raise StaleEntry(f"{subject} exists already.", details={"etag": now})
        if self.match is None:
            raise IfMatchRequired(
                f"{subject} exists; read it first and send its ETag as If-Match, so that nobody else's change is lost.",
                details={"etag": now},
            )
        if not self.match & {"*", now}:
            raise StaleEntry(f"{subject} was changed by somebody else; read it again.", details={"etag": now})


def etag(entry: Any) -> str:
    """The ETag of an entry: made of what administrators see, so of no secret."""
    text = json.dumps(public(entry), sort_keys=True)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def refusal(subject: str, findings: tuple[Finding, ...]) -> BadField:
    """What `check` says, as the answer to a change of `subject`."""
    ours = f"the overlay's {shown_name(subject)}"
    errors = [finding for finding in findings if finding.severity == "error"]
    own = [replace(finding, file=None) if finding.file == ours else finding for finding in errors]
    lines = [
        f"{finding.path}: {finding.message}" if finding.file is None and finding.loc else str(finding)
        for finding in own
    ]
    more = f" (and {len(lines) - _MOST_SAID} more)" if len(lines) > _MOST_SAID else ""
    details = {"findings": [finding.as_json() for finding in own[:_MOST_DETAILED]]}
    return BadField(f"{shown_name(subject)}: {'; '.join(lines[:_MOST_SAID])}{more}", details=details)


_MOST_SAID = 5
_MOST_DETAILED = 50


def _tags(header: str) -> frozenset[str]:
    # A proxy that compresses answers makes an ETag weak; it is the same entry.
    return frozenset(tag.strip().removeprefix("W/") for tag in header.split(",") if tag.strip())


async def body_bytes(request: Request, most: int = _MOST_BYTES) -> bytes:
    """The body, read no further than it may be long. Raises BodyTooLarge."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise BodyTooLarge(f"The body is larger than {most} bytes.")
        parts.append(chunk)
    return b"".join(parts)


async def json_body(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The body, a JSON object; empty where there is none and it is `optional`. Raises BadField and BodyTooLarge."""
    content = await body_bytes(request)
    if optional and not content.strip():
        return {}
    try:
        found: object = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadField(f"The body must be a JSON object: {error.msg} (character {error.pos + 1}).") from None
    if not isinstance(found, dict):
        raise BadField("The body must be a JSON object.")
    body = cast("dict[str, Any]", found)
    _check_depth(body)
    return body


def _check_depth(body: object) -> None:
    layer: list[object] = [body]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for one in layer:
            if isinstance(one, dict):
                inner += cast("dict[str, object]", one).values()
            elif isinstance(one, list):
                inner += cast("list[object]", one)
        layer = inner
        if not layer:
            return
    raise BadField(f"The body is nested more than {_DEEPEST} levels deep.")


def _model(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `model_list`. Raises BadField; what LiteLLM has against it only its router knows."""
    for field in body:
        if field not in _MODEL_FIELDS:
            raise BadField(
                f"{shown_name(field)}: unknown field{nearest(field, _MODEL_FIELDS)}", details={"valid": _MODEL_FIELDS}
            )
    parameters, info = body.get("litellm_params"), body.get("model_info") or {}
    for field, value in (("litellm_params", parameters), ("model_info", info)):
        if not isinstance(value, dict):
            raise BadField(f"{field}: must be a mapping of fields")
    parameters, info = cast("dict[str, Any]", parameters), cast("dict[str, Any]", info)
    provider = parameters.get("custom_llm_provider")
    named = {"model_name": body.get("model_name"), "litellm_params.model": parameters.get("model")}
    if provider is not None:
        named["litellm_params.custom_llm_provider"] = provider
    for field, value in named.items():
        if not isinstance(value, str) or not value or len(value) > _LONGEST_ID or not value.isprintable():
            raise BadField(f"{field}: must be a name of 1 to {_LONGEST_ID} printable characters")
        if is_reference(value):
            raise BadField(f"{field}: must be the name itself; it is shown to others, and references may be secret")
    if str(info.get("id", name)) != name:
        raise BadField(
            f"model_info.id is not the id in the address, {shown_name(name)!r}; leave it out or make them agree."
        )
    if not name.isascii() or not name.isprintable() or " " in name:
        raise BadField("The id of a model has visible ASCII characters alone.")
    for loc in (*written_secrets(parameters, ("litellm_params",)), *written_secrets(info, ("model_info",))):
        path = Finding("error", loc, "").path
        message = "must be a reference (os.environ/azure://<name>, os.environ/NAME), never the secret itself"
        raise BadField(f"{path}: {message}", details={"path": path})
    _check_provider(parameters["model"], provider)
    if any(is_reference(value) for value in _leaves(info)):
        raise BadField("model_info: takes no references; LiteLLM shows it to whoever may use the model")
    return {"model_name": body["model_name"], "litellm_params": parameters, "model_info": {**info, "id": name}}


def _check_provider(model: str, provider: str | None) -> None:
    """Raises BadField for what LiteLLM cannot call: its router would only log that, and go on without the model."""
    import litellm

    try:
        litellm.get_llm_provider(model=model, custom_llm_provider=provider)
    except Exception:  # LiteLLM raises what it likes
        raise BadField(
            "litellm_params.model: LiteLLM knows no such provider; write <provider>/<model>, such as openai/gpt-4o-mini"
        ) from None


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in cast("dict[str, object]", value).values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in cast("list[object]", value) for leaf in _leaves(item)]
    return [value]


def _detail(before: Any, after: Any) -> str:
    """What an audit record says of a change: both states as administrators see them, of large ones how large."""
    return json.dumps({"before": _bounded(public(before)), "after": _bounded(public(after))}, ensure_ascii=False)


def _bounded(entry: Any) -> Any:
    text = json.dumps(entry, sort_keys=True)
    if len(text) <= _LONGEST_DETAIL:
        return entry
    return {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise BadField(f"{name} must be true or false.")
    return text.lower() in ("true", "1")
