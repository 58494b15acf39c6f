import pytest

from plugins.routes import ROUTES, Handling


@pytest.mark.parametrize(
    ("method", "path", "handling", "endpoint"),
    [
        ("POST", "/v1/chat/completions", Handling.ENFORCED, "chat_completions"),
        ("POST", "/openai/deployments/a/b/chat/completions", Handling.ENFORCED, "chat_completions"),
        ("POST", "/v1/messages", Handling.ENFORCED, "messages"),
        ("POST", "/v1/responses", Handling.ENFORCED, "responses"),
        ("WEBSOCKET", "/v1/responses", Handling.REFUSED, ""),
        ("GET", "/openai/v1/responses/resp_1", Handling.FREE, ""),
        ("POST", "/openai/chat/completions", Handling.REFUSED, ""),
        ("POST", "/anthropic/v1/messages", Handling.REFUSED, ""),
        ("GET", "/v1/models", Handling.FREE, ""),
        ("POST", "/key/generate", Handling.FREE, ""),
        ("HEAD", "/v1/models", Handling.FREE, ""),
        ("GET", "/ui/assets/index.js", Handling.FREE, ""),
        ("POST", "/mcp/tools", Handling.REFUSED, ""),
        ("GET", "/orchestration/status", Handling.FREE, ""),
    ],
)
def test_a_route_is_handled_as_the_table_says(method: str, path: str, handling: Handling, endpoint: str) -> None:
    route = ROUTES.of(method, path)
    assert (route.handling, route.endpoint) == (handling, endpoint)
    assert route.listed


@pytest.mark.parametrize("path", ["/v1/new-in-the-next-litellm", "/v1/chat/completions/../secret", "/", ""])
def test_a_route_nobody_classified_counts_as_refused(path: str) -> None:
    route = ROUTES.of("POST", path)
    assert route.handling is Handling.REFUSED
    assert not route.listed
