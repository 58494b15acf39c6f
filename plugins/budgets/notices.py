"""What people are told about budgets: what is spent, what was refused, what cost more than it could."""

from collections.abc import Callable, Iterable
from decimal import Decimal
from zoneinfo import ZoneInfo

from core.alerts import Alert
from core.budgets import Account, Balance, BudgetTerms, Catalog
from core.errors import BudgetExceeded
from core.money import format_dollars, short_dollars
from core.settings.models import AlertEvent
from plugins.alerts.forecast import forecast_alert

_MOST_TOLD = 100_000


class BudgetNotices:
    """`raise_` takes an alert, at once and without waiting. Alerts of thresholds rest on what the store says was spent,
    so that they hold over all instances; that they are told once is the outbox's part."""

    def __init__(self, raise_: Callable[[Alert], None]) -> None:
        self._raise = raise_
        self._told: set[str] = set()

    def spent(self, catalog: Catalog, balances: Iterable[Balance], now_ms: int) -> None:
        """The store has these balances now."""
        for balance in balances:
            account = Account.parse(balance.key)
            terms = catalog.budget(account.budget_id)
            if terms is None or terms.key != account.budget:
                continue
            period = terms.calendar.at(account.start_ms)
            account = Account(account.budget, account.start_ms, account.member, period.end_ms)
            self._thresholds(terms, account, balance, now_ms)

    def _thresholds(self, terms: BudgetTerms, account: Account, balance: Balance, now_ms: int) -> None:
        limit = terms.limit_nano(account.member) + balance.extra_nano
        reached = [share for share in terms.thresholds if balance.spent_nano >= share * limit > 0]
        for share in reached:
            self._once(_threshold(terms, account, balance.spent_nano, limit, share, now_ms))
        if balance.spent_nano >= limit:
            self._once(_limit(terms, account, balance.spent_nano, limit, now_ms))
            return
        zone = ZoneInfo(str(terms.calendar.described().get("timezone", "UTC")))
        forecast = forecast_alert(account, balance.spent_nano, limit, now_ms, zone, subject_of(terms, account.member))
        if forecast is not None:
            self._once(forecast)

    def refused(self, refusal: BudgetExceeded, now_ms: int) -> None:
        """A request was refused; told in digests."""
        budget = str(refusal.details.get("budget_id"))
        member = refusal.details.get("member")
        subject = f"{budget}/{member}" if member else budget
        self._raise(Alert(AlertEvent.BUDGET_REFUSED, subject, refusal.message, details=refusal.details, time_ms=now_ms))

    def overrun(self, budget_id: str, request_id: str, reserved_nano: int, cost_nano: int, now_ms: int) -> None:
        """A bill was higher than what was reserved: a price or a limit is not what it was taken for."""
        self._raise(
            Alert(
                AlertEvent.BUDGET_OVERRUN,
                budget_id,
                f"A request cost ${format_dollars(cost_nano)}, not the ${format_dollars(reserved_nano)} reserved; "
                "check the model's prices and whether its provider keeps to output limits.",
                details={"budget": budget_id, "request_id": request_id, "cost": format_dollars(cost_nano)},
                time_ms=now_ms,
                severity="critical",
            )
        )

    def clamped(self, model: str, tokens: int, now_ms: int) -> None:
        """A limit was set on an answer; told in digests."""
        message = f"An answer of {model} was limited to {tokens} tokens, because its client gave no limit."
        self._raise(
            Alert(AlertEvent.CLAMPED, model, message, details={"tokens": tokens}, time_ms=now_ms, severity="info")
        )

    def shared_state(self, trouble: str, now_ms: int) -> None:
        """What is left of the budgets cannot be looked up."""
        self._raise(
            Alert(
                AlertEvent.SHARED_STATE_DOWN, "shared state", f"Budgets cannot be looked up: {trouble}", time_ms=now_ms
            )
        )

    def _once(self, alert: Alert) -> None:
        # The outbox would find out as well; this spares it the work with every event.
        if alert.dedupe_key not in self._told:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told.add(alert.dedupe_key)
            self._raise(alert)


def subject_of(terms: BudgetTerms, member: str) -> str:
    """What alerts of an account are about; their order is kept."""
    return f"{terms.budget_id}/{member}" if member else terms.budget_id


def _threshold(terms: BudgetTerms, account: Account, spent: int, limit: int, share: Decimal, now_ms: int) -> Alert:
    return _about(AlertEvent.BUDGET_THRESHOLD, terms, account, spent, limit, now_ms, f"{share:.0%} of it", f"|{share}")


def _limit(terms: BudgetTerms, account: Account, spent: int, limit: int, now_ms: int) -> Alert:
    return _about(AlertEvent.BUDGET_LIMIT, terms, account, spent, limit, now_ms, "all of it", f"|{limit}")


def _about(
    event: AlertEvent, terms: BudgetTerms, account: Account, spent: int, limit: int, now_ms: int, what: str, key: str
) -> Alert:
    whose = f" of {account.member}" if account.member else ""
    return Alert(
        event,
        subject_of(terms, account.member),
        f"The budget {terms.name!r}{whose} has spent {what}: ${short_dollars(spent)} of ${short_dollars(limit)}.",
        details={
            "budget": terms.budget_id,
            "member": account.member or None,
            "spent": format_dollars(spent),
            "total": format_dollars(limit),
            "resets_at_ms": account.end_ms,
        },
        # With the limit in it where that can rise: what was topped up can be used up again.
        dedupe_key=f"{event.value}|{account.key}{key}",
        time_ms=now_ms,
        severity="critical" if event is AlertEvent.BUDGET_LIMIT else "warning",
        over_ms=account.end_ms,
    )
