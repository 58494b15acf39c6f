"""The route table against LiteLLM's app: every route it has, the lazily loaded ones too, is classified."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.routes import ROUTES

pytestmark = pytest.mark.live

# Prints the app's routes as JSON, [[method, template], ...]. In a process of its own: importing the proxy reads the
# environment and leaves its state in module globals.
ENUMERATE = """
import importlib, json, sys
from litellm.proxy import proxy_server
from litellm.proxy._lazy_features import LAZY_FEATURES

app = proxy_server.app
for feature in LAZY_FEATURES:
    feature.register_fn(app, importlib.import_module(feature.module_path))
if "--one-more" in sys.argv:
    app.add_api_route("/v1/new-in-the-next-litellm/{id}", lambda id: id, methods=["POST"])

def walk(routes, prefix=""):
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from walk(inner.routes, prefix + route.include_context.prefix)
            continue
        kind = type(route).__name__
        if kind == "Mount":
            methods = ["GET"]
        elif "WebSocket" in kind:
            methods = ["WEBSOCKET"]
        else:
            methods = sorted(route.methods)
        for method in methods:
            yield method, prefix + route.path

print("ROUTES " + json.dumps(sorted(set(walk(app.routes)))))
"""


def routes_of_the_app(*arguments: str, folder: Path) -> list[tuple[str, str]]:
    """Method and template of every route; also of those that LiteLLM adds when they are first asked for."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "-c", ENUMERATE, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("ROUTES ")]
    return [(method, template) for method, template in json.loads(line.removeprefix("ROUTES "))]


def unlisted(routes: list[tuple[str, str]]) -> list[str]:
    """Those that the table does not know, asked for with something in place of each parameter."""
    return [
        f"{method} {template}"
        for method, template in routes
        if not ROUTES.of(method, re.sub(r"{[^}]+}", "x", template)).listed
    ]


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """The app's routes, and one that we have made up."""
    return routes_of_the_app("--one-more", folder=tmp_path_factory.mktemp("empty"))


NEW = ("POST", "/v1/new-in-the-next-litellm/{id}")


def test_every_route_of_the_app_is_classified(routes: list[tuple[str, str]]):
    assert len(routes) > 700, "the enumeration has found them"
    assert {("POST", "/v1/chat/completions"), ("WEBSOCKET", "/v1/realtime")} <= set(routes)
    assert unlisted([route for route in routes if route != NEW]) == []


def test_a_route_that_a_new_litellm_brings_would_be_noticed(routes: list[tuple[str, str]]):
    assert NEW in routes
    assert unlisted([NEW]) == ["POST /v1/new-in-the-next-litellm/{id}"]


def test_a_parameter_that_spans_segments_is_listed_too(routes: list[tuple[str, str]]):
    """`{endpoint:path}` takes slashes; the table has to follow it there."""
    deep = [(method, template) for method, template in routes if re.search(r"{\w+:path}", template)]
    assert deep
    missed = [
        f"{method} {template}"
        for method, template in deep
        if not ROUTES.of(method, re.sub(r"{[^}]+}", "x", re.sub(r"{\w+:path}", "a/b/c", template))).listed
    ]
    assert missed == []
