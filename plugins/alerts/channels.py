"""From what the configuration says of a channel to the channel."""

from collections.abc import Callable
from time import time
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from core.settings.models.alerts import Alerts as AlertSettings
from plugins.alerts.apprise_channel import AppriseChannel
from plugins.alerts.destination import Reach
from plugins.alerts.message import Channel, NotSent
from plugins.alerts.webhook import Webhook

_WEBHOOK = "webhook+"

Secret = Callable[[str], str | None]
"""The value behind a reference now, None where there is none."""


def open_channel(name: str, settings: AlertSettings, secret: Secret, clock: Callable[[], float] = time) -> Channel:
    """The channel of this name as it is configured now. Raises NotSent for one that is not, or whose secret has no
    value."""
    configured = settings.channels.get(name)
    if configured is None:
        raise NotSent(f"alerts.channels has no '{name}' any more", retryable=False)
    url = _value(configured.url, name, secret)
    reach = Reach.of(settings.allow_private_addresses, settings.allowed_hosts)
    if configured.secret is not None:
        # Signed, so it is a webhook whether the URL says so or not.
        return Webhook(url.removeprefix(_WEBHOOK), _value(configured.secret, name, secret), reach, clock=clock)
    if url.startswith(_WEBHOOK):
        bare, key = _without_secret(url.removeprefix(_WEBHOOK))
        return Webhook(bare, key, reach, clock=clock)
    return AppriseChannel(url, reach, clock=clock)


def _value(reference: str, name: str, secret: Secret) -> str:
    value = secret(reference)
    if not value:
        raise NotSent(f"channel '{name}': there is no value behind {reference} now")
    return value.strip()


def _without_secret(url: str) -> tuple[str, str]:
    """The URL as it is called, and the key that stood in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise NotSent("the channel's webhook URL is malformed", retryable=False) from None
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    key = next((value for name, value in pairs if name == "secret"), "")
    rest = [(name, value) for name, value in pairs if name != "secret"]
    return urlunsplit(parts._replace(query=urlencode(rest))), key
