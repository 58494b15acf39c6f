"""Feedback over HTTP: whose it is taken from, through the proxy's own authentication."""

from __future__ import annotations

import httpx
import pytest

from tests.support.gateway import Gateway

pytestmark = pytest.mark.live


def give(gateway: Gateway, who: str, request_id: str, value: object = 4) -> httpx.Response:
    with gateway.client(who) as client:
        return client.post(
            "/orchestration/feedback", json={"request_id": request_id, "metric": "rating", "value": value}
        )


def test_whoever_asked_says_how_the_answer_was_at_once(gateway: Gateway) -> None:
    name = gateway.chat("small").headers["x-orchestration-request-id"]
    for value in (4, 4, 5):
        got = give(gateway, "ada", name, value)
        assert (got.status_code, got.json()["status"]) == (200, "recorded"), got.text


def test_another_key_is_told_what_it_is_told_of_no_request(gateway: Gateway) -> None:
    name = gateway.chat("small").headers["x-orchestration-request-id"]
    missing = name[:-4] + ("0000" if name[-4:] != "0000" else "1111")
    answers = [give(gateway, "bob", one) for one in (name, missing)]
    assert [(got.status_code, got.json()["status"]) for got in answers] == [(202, "waiting")] * 2
    # Of requests long gone, too.
    long_ago = "0" * 8 + name[8:]
    assert give(gateway, "bob", long_ago).status_code == 404


def test_without_a_valid_key_nothing_is_taken(gateway: Gateway) -> None:
    name = gateway.chat("small").headers["x-orchestration-request-id"]
    with gateway.proxy.client("sk-unknown-0123456789") as client:
        body = {"request_id": name, "metric": "rating", "value": 1}
        assert client.post("/orchestration/feedback", json=body).status_code == 401


def test_an_administrator_may_speak_for_anybody(gateway: Gateway) -> None:
    name = gateway.chat("small").headers["x-orchestration-request-id"]
    with gateway.proxy.client() as admin:
        got = admin.post("/orchestration/feedback", json=[{"request_id": name, "metric": "rating", "value": True}])
    assert [one["status"] for one in got.json()["feedback"]] == ["recorded"], got.text
