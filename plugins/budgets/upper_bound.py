"""A bound: what is due whatever the answer, and what each token of it costs."""

from dataclasses import dataclass

from plugins.budgets.rates import ATTO_PER_NANO

_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound of a request's cost. Money in atto-dollars (1e-18) where the name does not say nano-dollars.

    `input_atto` is what is due whatever the answer: input, fixed fees, pictures. `output_atto` is the price of one
    output token. `asked` is the output limit of one copy that the client gave, None for none; `maximum` the model's
    own, None where it is not known. `input_tokens` bounds the input tokens. `unbounded` says why there is no bound
    after all.
    """

    input_atto: int = 0
    output_atto: int = 0
    copies: int = 1
    asked: int | None = None
    maximum: int | None = None
    input_tokens: int = 0
    unbounded: tuple[str, ...] = ()

    @property
    def input_nano(self) -> int:
        """What the request costs without an answer, in nano-dollars, rounded up."""
        return -(-self.input_atto // ATTO_PER_NANO)

    def cost(self, output_tokens: int) -> int:
        """Nano-dollars, rounded up, of the request with `output_tokens` in each copy."""
        return -(-(self.input_atto + self.copies * output_tokens * self.output_atto) // ATTO_PER_NANO)

    def tokens_for(self, nano: int) -> int:
        """The largest output limit of each copy with which the request costs `nano` or less; 0 for none."""
        left = nano * ATTO_PER_NANO - self.input_atto
        if left < 0:
            return 0
        each = self.copies * self.output_atto
        return min(left // each, _NO_LIMIT) if each else self.maximum or _NO_LIMIT
