"""An account: the money of one budget, for one member, in one period."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self


@dataclass(frozen=True)
class Account:
    """Where a request's cost is charged.

    `budget` is the budget's id and the revision of what it covers (`team_ai~3f9a1c`): a budget whose coverage or
    periods change counts anew. `start_ms` is the beginning of the period (Unix milliseconds, 0 for TOTAL), `end_ms` its
    end, None where it never ends. `member` is the user, team, key hash or model of a `per:` budget, empty for a shared
    one.
    """

    budget: str
    start_ms: int
    member: str = ""
    end_ms: int | None = None

    @cached_property
    def key(self) -> str:
        """The account's name everywhere, without its end: `team_ai~3f9a1c|1764547200000|ada`."""
        return f"{self.budget}|{self.start_ms}|{self.member}"

    @property
    def budget_id(self) -> str:
        return self.budget.rpartition("~")[0]

    @classmethod
    def parse(cls, key: str, end_ms: int | None = None) -> Self:
        """The inverse of `key`. Raises ValueError for a text that is none."""
        budget, start, member = key.split("|", 2)
        return cls(budget, int(start), member, end_ms)


@dataclass(frozen=True, slots=True)
class Balance:
    """What the durable books say of an account. Nano-dollars.

    `spent_nano` is the sum of every charge that is written, `extra_nano` what the account may spend beyond its budget's
    total: grants, what was carried over from the period before, what a reset forgave. `version` rises with every
    change, so that an older balance never replaces a newer one; 0 for an account that nobody has written to.
    """

    key: str
    spent_nano: int = 0
    extra_nano: int = 0
    version: int = 0
