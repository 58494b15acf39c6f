"""What a request can cost at most, before it is sent."""

from collections.abc import Callable, Mapping
from typing import Any

from plugins.budgets import single_answers
from plugins.budgets.conversation import conversation
from plugins.budgets.prices import GroupPrices
from plugins.budgets.upper_bound import Bound

__all__ = ["Bound", "bound"]


def bound(
    endpoint: str,
    body: Mapping[str, Any],
    body_bytes: int,
    prices: GroupPrices,
    *,
    input_tokens: int | None = None,
) -> Bound:
    """The bound of a request to a model group with `prices`. `endpoint` is one of `plugins/routes.txt`.

    `body` is what will be sent, after `merge_extra_body`; `body_bytes` the length of its JSON, or of the whole form
    with its files. `input_tokens` replaces the bytes of text where they have been counted exactly. No I/O.
    """
    of = _ENDPOINTS.get(endpoint)
    if of is None:
        return Bound(unbounded=(f"nothing is known about the costs of {endpoint}; set flat_reserve on the budget",))
    return of(endpoint, body, body_bytes, prices, input_tokens)


_Rule = Callable[[str, Mapping[str, Any], int, GroupPrices, int | None], Bound]
_ENDPOINTS: dict[str, _Rule] = {
    "chat_completions": conversation,
    "completions": conversation,
    "responses": conversation,
    "messages": conversation,
    "generate_content": conversation,
    "embeddings": single_answers.embeddings,
    "rerank": single_answers.rerank,
    "moderations": single_answers.moderations,
    "images": single_answers.images,
    "audio": single_answers.audio,
}
