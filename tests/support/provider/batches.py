"""OpenAI's files, batches and background responses, beside what the fake provider answers at once.

Nothing runs by itself: `finish` runs a batch, as far as it is told to, and `finish_response` ends a response. What runs
is on the provider's bill, line by line.
"""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.provider import FakeProvider
from tests.support.provider.answers import DIALECTS, error, plan
from tests.support.provider.app import ProviderApp, Receive, Send, _api_key, _charge, _Exchange, _whole
from tests.support.provider.bill import Attempt
from tests.support.provider.script import Behaviour

_serial = itertools.count(1)


@dataclass
class BatchBook:
    """What the provider has. Everything by its id; statuses in `refusals` are what the next creations of a batch
    answer."""

    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request of these routes."""
    api_keys: set[str] = field(default_factory=set)
    """What they were asked with."""


class BatchApp(ProviderApp):
    def __init__(self) -> None:
        super().__init__()
        self.book = BatchBook()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix("/v1")
        headers = dict(scope["headers"])
        parts = path.strip("/").split("/")
        if parts[0] not in ("files", "batches", "responses"):
            await super().__call__(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        raw = await exchange.body()
        if parts[0] == "responses":
            if method == "POST" and not (parts[1:] or orjson.loads(raw).get("background")):
                await super().__call__(scope, _again(raw), send)
                return
            await self._response(method, parts, raw, headers, exchange)
            return
        self.book.asked.append(f"{method} {path}")
        self.book.api_keys.add(_api_key(headers))
        if parts[0] == "files":
            await self._file(method, parts, raw, headers, exchange)
        else:
            await self._batch(method, parts, raw, headers, exchange)

    async def _file(
        self, method: str, parts: list[str], raw: bytes, headers: dict[bytes, bytes], exchange: _Exchange
    ) -> None:
        if method == "POST":
            file_id = f"file-{next(_serial):06d}"
            self.book.files[file_id] = _uploaded(raw, headers[b"content-type"])
            await _whole(exchange, 200, self._file_object(file_id))
        elif parts[1] not in self.book.files:
            await _whole(exchange, 404, error("/v1/files", 404))
        elif parts[2:] == ["content"]:
            content = self.book.files[parts[1]]
            await exchange.start(200, (b"content-type", b"application/octet-stream"))
            await exchange.write(content, more=False)
        elif method == "DELETE":
            del self.book.files[parts[1]]
            await _whole(exchange, 200, {"id": parts[1], "object": "file", "deleted": True})
        else:
            await _whole(exchange, 200, self._file_object(parts[1]))

    def _file_object(self, file_id: str) -> dict[str, Any]:
        size = len(self.book.files[file_id])
        common = {"object": "file", "purpose": "batch", "filename": "batch.jsonl", "status": "processed"}
        return {"id": file_id, "bytes": size, "created_at": int(time.time()), **common}

    async def _batch(
        self, method: str, parts: list[str], raw: bytes, headers: dict[bytes, bytes], exchange: _Exchange
    ) -> None:
        if method == "POST" and len(parts) == 1:
            if self.book.refusals:
                await _whole(exchange, status := self.book.refusals.pop(0), error("/v1/batches", status))
                return
            asked = orjson.loads(raw)
            if asked["input_file_id"] not in self.book.files:
                await _whole(exchange, 400, error("/v1/batches", 400))
                return
            batch_id = f"batch_{next(_serial):06d}"
            lines = self.book.files[asked["input_file_id"]].splitlines()
            counts = {"total": len(lines), "completed": 0, "failed": 0}
            times = {"created_at": int(time.time()), "expires_at": int(time.time()) + 86_400}
            batch = {"id": batch_id, "object": "batch", "status": "validating", "request_counts": counts, **times}
            self.book.batches[batch_id] = {**batch, **asked, "output_file_id": None, "error_file_id": None}
            await _whole(exchange, 200, self.book.batches[batch_id])
            return
        batch = self.book.batches.get(parts[1])
        if batch is None:
            await _whole(exchange, 404, error("/v1/batches", 404))
            return
        if parts[2:] == ["cancel"]:
            batch["status"] = "cancelling"
        await _whole(exchange, 200, batch)

    def finish(
        self, batch_id: str, status: str = "completed", *, answered: int | None = None, **behaviour: Any
    ) -> None:
        """Run the first `answered` lines of a batch, all by default, and end it; the others fail."""
        batch = self.book.batches[batch_id]
        lines = self.book.files[batch["input_file_id"]].splitlines()
        count = len(lines) if answered is None else answered
        output: list[bytes] = []
        for line in lines[:count]:
            request = orjson.loads(line)
            dialect = DIALECTS[request["url"]]
            answer = plan(request["url"], request["body"], Behaviour.from_mapping(behaviour))
            attempt = Attempt(
                at=time.time(),
                endpoint=request["url"],
                model=request["body"]["model"],
                api_key="",
                body_sha256="",
                streamed=False,
                body=request["body"],
                status=200,
            )
            self.bill.open(attempt)
            _charge(attempt, answer, whole=True)
            self.bill.close(attempt, "answered")
            body = dialect.whole(answer, request["body"])
            response = {"status_code": 200, "request_id": answer.id, "body": body}
            output.append(orjson.dumps({"id": answer.id, "custom_id": request["custom_id"], "response": response}))
        if output:
            batch["output_file_id"] = output_id = f"file-{next(_serial):06d}"
            self.book.files[output_id] = b"\n".join(output) + b"\n"
        batch["request_counts"] |= {"completed": count, "failed": len(lines) - count}
        batch["status"] = status
        batch[f"{status}_at"] = int(time.time())

    async def _response(
        self, method: str, parts: list[str], raw: bytes, headers: dict[bytes, bytes], exchange: _Exchange
    ) -> None:
        if method == "POST" and len(parts) == 1:
            body = orjson.loads(raw)
            answer = plan("/v1/responses", body, Behaviour())
            whole = {**DIALECTS["/v1/responses"].whole(answer, body), "background": True}
            response_id = whole["id"]
            self.book.bodies[response_id] = {**body, "api_key": _api_key(headers)}
            self.book.responses[response_id] = {**whole, "status": "queued", "output": [], "usage": None}
            await _whole(exchange, 200, self.book.responses[response_id])
            return
        response = self.book.responses.get(parts[1])
        await _whole(exchange, 200 if response else 404, response or error("/v1/responses", 404))

    def finish_response(self, response_id: str, **behaviour: Any) -> None:
        """Have a response in the background answered."""
        body = self.book.bodies[response_id]
        answer = plan("/v1/responses", body, Behaviour.from_mapping(behaviour))
        attempt = Attempt(
            at=time.time(),
            endpoint="/v1/responses",
            model=body["model"],
            api_key=body["api_key"],
            body_sha256="",
            streamed=False,
            body=body,
            status=200,
        )
        self.bill.open(attempt)
        _charge(attempt, answer, whole=True)
        self.bill.close(attempt, "answered")
        whole = DIALECTS["/v1/responses"].whole(answer, body)
        self.book.responses[response_id] = {**whole, "id": response_id, "background": True}


class BatchProvider(FakeProvider):
    """The fake provider in a thread of this process, with batches."""

    app: BatchApp

    def __init__(self) -> None:
        super().__init__()
        self.app = BatchApp()

    @property
    def book(self) -> BatchBook:
        return self.app.book


def _again(body: bytes) -> Receive:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _uploaded(raw: bytes, content_type: bytes) -> bytes:
    """The file in a form."""
    head = b"Content-Type: " + content_type + b"\r\n\r\n"
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    for part in form.iter_parts():
        if part.get_filename():
            content: bytes = part.get_payload(decode=True)
            return content
    return b""
