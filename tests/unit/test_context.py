from typing import Any

import pytest

from core.context import Claims, output_limit, read_claims
from core.errors import BadField


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


def test_a_request_says_what_it_is_in_headers_or_in_its_metadata() -> None:
    metadata = {"task_type": "coding", "priority": 3, "unrelated": object()}
    assert read_claims([], metadata) == Claims(task_type="coding", priority=3)
    assert read_claims(headers(x_task_type="chat", x_session_id="s1", accept="*/*"), None) == Claims("chat", None, "s1")


def test_a_header_wins_over_the_body() -> None:
    assert read_claims(headers(x_task_type="chat"), {"task_type": "coding"}).task_type == "chat"


def test_a_request_that_says_nothing_costs_no_object() -> None:
    assert read_claims([(b"accept", b"*/*")], {}) is read_claims([], None)


@pytest.mark.parametrize("value", ["", "x" * 129, "line\nbreak", ["a"], {"a": 1}, True])
def test_a_label_of_the_wrong_form_is_refused_by_name(value: Any) -> None:
    with pytest.raises(BadField, match=r"metadata\.task_type must be a text"):
        read_claims([], {"task_type": value})


@pytest.mark.parametrize("value", ["0", "11", "high", "-1", "1.5"])
def test_a_priority_outside_its_range_is_refused_with_the_range(value: str) -> None:
    with pytest.raises(BadField, match=r"x-priority must be a whole number from 1 \(first\) to 10"):
        read_claims(headers(x_priority=value), None)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": 5, "best_of": 4, "n": 2}, 20),
        ({"max_tokens": 5, "extra_body": {"max_tokens": 9999, "n": 8}}, 9999 * 8),
        ({"n": 3}, None),
        ({"max_tokens": "many"}, None),
    ],
)
def test_the_output_limit_is_the_largest_that_could_reach_the_provider(body: dict[str, Any], limit: int | None) -> None:
    assert output_limit(body) == limit
