"""What LiteLLM's errors say about a call, with its own client in front of a provider that closes connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import litellm
import openai
import orjson
import pytest

from core.usage import UsageState
from plugins.failures import never_sent, status_of, usage_after

ANSWER = orjson.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "any",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


@asynccontextmanager
async def provider(answers: Callable[[int], bytes]) -> AsyncIterator[str]:
    """Answers its requests, the first of which is 1; without an answer it closes the connection."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                count += 1
                answer = answers(count)
                if not answer:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def ask(url: str) -> Any:
    messages = [{"role": "user", "content": "well?"}]
    return await litellm.acompletion("openai/any", messages, api_base=url, api_key="sk-1", max_retries=0)


async def failed(url: str) -> Exception:
    with pytest.raises(openai.APIError) as caught:
        await ask(url)
    return caught.value


def is_unsent(error: Exception) -> bool:
    assert usage_after(error, status_of(error)) == (UsageState.NONE if never_sent(error) else UsageState.UNKNOWN)
    return never_sent(error)


async def test_a_kept_connection_that_is_found_closed_is_nobodys_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    write: Any = aiohttp.ClientRequest.write_bytes

    async def too_late(self: Any, writer: Any, conn: Any, *more: Any) -> None:
        """The provider closes it when it has been chosen, before anything is written."""
        conn.transport.close()
        await write(self, writer, conn, *more)

    async with provider(lambda _: WHOLE) as url:
        await ask(url)
        with monkeypatch.context() as patched:
            patched.setattr(aiohttp.ClientRequest, "write_bytes", too_late)
            assert is_unsent(await failed(url))
        await ask(url)


async def test_a_connection_that_is_closed_after_the_request_may_have_cost_something() -> None:
    async with provider(lambda number: WHOLE if number == 1 else b"") as url:
        await ask(url)
        assert not is_unsent(await failed(url))
