"""`/orchestration/config` and `/orchestration/overlay`: what is in force, what administrators changed of it, and what a
configuration would be found wrong with."""

import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from core.errors import BadField
from core.overlay import Overlay
from core.runtime import Runtime
from core.settings import Finding, InvalidConfig, load
from plugins.admin.access import Changer, Reader, answered, ready
from plugins.admin.entries import body_bytes
from plugins.admin.paging import limit_of, number_of
from plugins.admin.public import public

_OURS = "orchestration"
_FILE = "config.yaml"
_MOST_BYTES = 1 << 20
_MOST_NODES = 200_000
"""Values in a text to check, with what its aliases repeat."""
_DEEPEST = 60
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def configuration_router(runtime: Runtime) -> APIRouter:
    router = APIRouter()

    @router.get("/config", summary="The configuration in force, as JSON or with format=yaml to keep; no secrets")
    async def get_config(_: Reader, request: Request) -> Response:
        return await answered(in_force(runtime, dict(request.query_params)))

    @router.post("/config/check", summary="What a configuration (YAML) would be found wrong with; nothing is changed")
    async def check_config(_: Changer, request: Request) -> Response:
        return await answered(check(runtime, request))

    @router.get("/overlay", summary="What administrators changed of the configuration file")
    async def get_overlay(_: Reader) -> Response:
        return await answered(overlay_in_force(runtime))

    @router.get("/overlay/history", summary="Which changes were made, by whom and when, newest first")
    async def get_history(_: Reader, request: Request) -> Response:
        return await answered(history(runtime, dict(request.query_params)))

    return router


async def in_force(runtime: Runtime, query: Mapping[str, str]) -> Response:
    """The whole configuration: the file, the environment's variables and the overlay put together.

    `format` is json or yaml; with `defaults=true` our section has every field. Raises BadField.
    """
    form, defaults = query.get("format", "json"), query.get("defaults", "false")
    if form not in ("json", "yaml"):
        raise BadField("format must be json or yaml.")
    if defaults not in ("true", "false"):
        raise BadField("defaults must be true or false.")
    await ready(runtime)
    document = {name: value for name, value in runtime.document.items() if name != _OURS}
    shown = public({**document, _OURS: runtime.settings.model_dump(exclude_unset=defaults == "false")})
    if form == "json":
        return JSONResponse(shown)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)
    return Response(text, media_type="application/yaml")


async def overlay_in_force(runtime: Runtime) -> dict[str, Any]:
    """What administrators changed; an entry that is null was deleted."""
    await ready(runtime)
    return {"version": runtime.overlay.version, "entries": public(runtime.overlay.entries)}


async def check(runtime: Runtime, request: Request) -> dict[str, Any]:
    """The findings about a configuration, by itself and then with the overlay over it, as `llm-orchestration check`
    has them. Raises BodyTooLarge."""
    content = await body_bytes(request, _MOST_BYTES)
    findings = await asyncio.to_thread(_findings, content, runtime.overlay)
    errors = any(finding.severity == "error" for finding in findings)
    return {"valid": not errors, "findings": [finding.as_json() for finding in findings]}


def _findings(content: bytes, overlay: Overlay) -> list[Finding]:
    if (hostile := _hostile(content)) is not None:
        return [hostile]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _FILE)
        path.write_bytes(content)
        try:
            found = load(path).under(overlay).findings
        except InvalidConfig as error:
            found = error.findings
        return [_without_place(finding, folder) for finding in found]


def _without_place(finding: Finding, folder: str) -> Finding:
    """The finding without our folder, and without what the text had an environment variable say."""
    file = _FILE if finding.file is not None and finding.file.startswith(folder) else finding.file
    return replace(finding, file=file, value=None if finding.variable else finding.value)


def _hostile(content: bytes) -> Finding | None:
    """What keeps a text from being read at all: it names files of this machine, or its aliases repeat too much.

    A text that is not YAML is not judged here.
    """
    try:
        size = 0
        for event, weight in _weighed(content):
            size += weight
            if isinstance(event, yaml.ScalarEvent) and event.value == "include":
                return _problem("include: cannot be checked here, since its files are not; put their content in", event)
            if size > _MOST_NODES:
                return _problem(f"has more than {_MOST_NODES} values, with what its aliases repeat", event)
    except yaml.YAMLError:
        return None
    return None


def _weighed(content: bytes) -> Iterator[tuple[yaml.Event, int]]:
    """The events of a text, and how many values each stands for: an alias as many as what it repeats."""
    anchors: dict[str, int] = {}
    collections: list[tuple[str | None, int]] = []
    total = 0
    for event in cast("Iterator[yaml.Event]", yaml.parse(content, Loader=_Loader)):
        weight = 0
        if isinstance(event, yaml.AliasEvent):
            # Inside of what it repeats it would be without end.
            weight = anchors.get(cast(str, event.anchor), _MOST_NODES + 1)
        elif isinstance(event, yaml.ScalarEvent):
            weight = 1
            if event.anchor:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            weight = 1
            collections.append((event.anchor, total))
            if len(collections) > _DEEPEST:
                return  # which `load` refuses at this very place; libyaml takes ever longer from here
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, before = collections.pop()
            if anchor:
                anchors[anchor] = total - before
        total += weight
        yield event, weight


def _problem(message: str, event: yaml.Event) -> Finding:
    mark: Any = event.start_mark
    return Finding("error", (), message, file=_FILE, line=mark.line + 1, column=mark.column + 1)


async def history(runtime: Runtime, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of versions: `{"versions": [...], "next_cursor": str | null}`. Raises BadField and StoreError."""
    limit, before = limit_of(query), query.get("cursor")
    assert runtime.store is not None
    found = await runtime.store.overlay.history(limit + 1, None if before is None else number_of("cursor", before))
    page = found[:limit]
    versions = [
        {"version": one.version, "time_ms": one.time_ms, "actor": one.actor, **json.loads(one.change)} for one in page
    ]
    return {"versions": versions, "next_cursor": str(page[-1].version) if len(found) > limit else None}
