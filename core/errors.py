"""Everything that can go wrong, and the OpenAI error body each of it becomes."""

from collections.abc import Mapping
from typing import Any, ClassVar


class OrchestrationError(Exception):
    """Base of all our errors: what happened, to what, and what to do next, in one sentence."""


class ConfigError(OrchestrationError):
    """The configuration cannot be used; carries every problem found, not only the first."""


class StoreError(OrchestrationError):
    """The durable store cannot be used."""


class StoreLocked(StoreError):
    """Another worker holds the store while state is in memory."""


class JournalFull(OrchestrationError):
    """Neither the journal nor the memory behind it can take another event."""


class StatisticsMissing(OrchestrationError):
    """What results of experiments are worked out with is not installed."""


class RequestRefused(OrchestrationError):
    """A request that may not go on. Subclasses fix HTTP status, OpenAI error type and code."""

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str] = "invalid_request"

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The value of `error` in an OpenAI error body."""
        error: dict[str, Any] = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        if self.details:
            error["details"] = self.details
        return error


class BadField(RequestRefused):
    """A field of the request has a value that is not valid."""

    code = "invalid_field"


class BodyTooLarge(RequestRefused):
    """The body exceeds `limits.max_body_bytes`."""

    status = 413
    code = "body_too_large"


class ModelNotAllowed(RequestRefused):
    """The key, its team, its tier or a rule does not permit the model."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class NoCapableModel(RequestRefused):
    """The models behind a policy may be used, but none takes what the request has in it."""

    status = 400
    type = "invalid_request_error"
    code = "no_capable_model"


class AllModelsFailed(RequestRefused):
    """Every model behind a name failed, or is left alone because it did."""

    status = 503
    type = "service_unavailable"
    code = "all_models_failed"


class AnswerLost(RequestRefused):
    """An answer that several requests, or several inputs, share broke off, or cannot be put together."""

    status = 503
    type = "service_unavailable"
    code = "answer_lost"


class RouteRefused(RequestRefused):
    """The route spends money in a way that cannot be bounded, and a tier or a budget has to hold."""

    status = 403
    type = "permission_error"
    code = "route_refused"


class NotRecordable(RequestRefused):
    """Usage can be written neither to the journal nor to memory, so nothing may be spent."""

    status = 503
    type = "service_unavailable"
    code = "usage_not_recordable"


class NotReady(RequestRefused):
    """The worker could not start."""

    status = 503
    type = "service_unavailable"
    code = "not_ready"


class StoreUnavailable(RequestRefused):
    """What was asked for is in the store, which does not answer."""

    status = 503
    type = "service_unavailable"
    code = "store_unavailable"


class RateLimited(RequestRefused):
    """More requests or tokens than a rate allows, or more at once than may run in parallel."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(RequestRefused):
    """The proxy has as many requests at work and waiting as it may."""

    status = 503
    type = "service_unavailable"
    code = "overloaded"


class BudgetExceeded(RequestRefused):
    """A budget has too little left for the request, which needs at least `needed_nano` nano-dollars."""

    status = 429
    type = "insufficient_quota"
    code = "budget_exceeded"
    needed_nano: int = 0


class CostUnbounded(RequestRefused):
    """Nothing says what the request can cost at most, and a budget has to hold."""

    code = "cost_unbounded"


class BudgetsUnavailable(RequestRefused):
    """What budgets have left is not known at the moment, and they have to hold."""

    status = 503
    type = "service_unavailable"
    code = "budgets_unavailable"


class NotFound(RequestRefused):
    """There is nothing of this id, or it is somebody else's, which is not told apart."""

    status = 404
    code = "not_found"


class Unsupported(RequestRefused):
    """Something about the request that cannot be paid for in advance."""

    code = "not_supported"


class IdTaken(RequestRefused):
    """The id stands for something else that was done."""

    status = 409
    code = "id_taken"


class StaleEntry(RequestRefused):
    """Somebody else changed the entry since the caller read it."""

    status = 412
    code = "stale"


class IfMatchRequired(RequestRefused):
    """An entry that exists is only changed by callers who say which state of it they know."""

    status = 428
    code = "if_match_required"


class AlertNotSent(RequestRefused):
    """A channel did not take a message."""

    status = 502
    type = "service_unavailable"
    code = "alert_not_sent"


class NotInstalled(RequestRefused):
    """What was asked for takes a package that this installation does not have."""

    status = 501
    code = "not_installed"
