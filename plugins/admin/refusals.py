"""What only the admin API refuses."""

from core.errors import RequestRefused


class EntryNotFound(RequestRefused):
    """There is no entry of this id."""

    status = 404
    code = "not_found"


class IdTaken(RequestRefused):
    """The id stands for something else that was done."""

    status = 409
    code = "id_taken"


class AlertNotSent(RequestRefused):
    """A channel did not take a message."""

    status = 502
    type = "service_unavailable"
    code = "alert_not_sent"


class StaleEntry(RequestRefused):
    """Somebody else changed the entry since the caller read it."""

    status = 412
    code = "stale"


class IfMatchRequired(RequestRefused):
    """An entry that exists is only changed by callers who say which state of it they know."""

    status = 428
    code = "if_match_required"
