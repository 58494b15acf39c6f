"""What happens to secrets, as alerts."""

from core.alerts import Alert, Severity
from core.settings.models.alerts import AlertEvent
from secrets_manager.resolver import Happened, SecretEvent

_SAYS: dict[Happened, tuple[Severity, str]] = {
    Happened.STALE: ("warning", "The vault does not answer; the last value stays in use for a while."),
    Happened.LOST: ("critical", "There is no value that may be used any more; what needs it fails."),
    Happened.REVERTED: ("critical", "The newest value was refused; the one before it is in use."),
    Happened.RECOVERED: ("info", "The vault answers again."),
}


class SecretAlerts:
    """Turns the events of a resolver into alerts: those that people should know, and the end of what they were told."""

    def __init__(self) -> None:
        self._troubled: set[str] = set()

    def alert_of(self, event: SecretEvent) -> Alert | None:
        """The alert about an event, None for what is nobody's concern. May be called from any thread."""
        said = _SAYS.get(event.what)
        subject = event.reference.document.uri
        if said is None:
            return None
        if event.what is not Happened.RECOVERED:
            self._troubled.add(subject)
        elif subject not in self._troubled:
            return None  # a vault that failed for a moment, which nobody was told
        else:
            self._troubled.discard(subject)
        severity, text = said
        details = {"happened": event.what.value}
        if event.reason is not None:
            details["reason"] = event.reason.value
        if event.version is not None:
            details["version"] = event.version
        return Alert(
            event=AlertEvent.SECRET_STALE,
            subject=subject,
            message=text,
            details=details,
            dedupe_key=f"{AlertEvent.SECRET_STALE.value}|{subject}|{event.what.value}",
            time_ms=int(event.at * 1000),
            severity=severity,
        )
