"""Channels: what they are made from, what they send, and where they refuse to send it."""

import hashlib
import hmac
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from core.settings.models import Alerts as AlertSettings
from plugins.alerts.apprise_channel import AppriseChannel
from plugins.alerts.apprise_process import Refused, Watch
from plugins.alerts.channels import open_channel
from plugins.alerts.destination import Reach, is_public
from plugins.alerts.message import Message, NotSent, seconds_of
from plugins.alerts.webhook import Webhook, signature
from tests.support.clock import Clock
from tests.support.json_server import Answer, JsonServer, Request
from tests.support.transcript import blocks

pytestmark = pytest.mark.timeout(60)

MESSAGE = Message(
    "7:ops", "budget_limit", "critical", "ada", "the budget is used up", {"spent": "5.00"}, 1_800_014_400_000
)
EVERYWHERE = Reach(private=True)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def receiver() -> Iterator[SimpleNamespace]:
    """A server that notes its requests and answers as `answer` says."""
    found = SimpleNamespace(got=[], answer=(200, {}, {}))

    def answers(request: Request) -> Answer:
        found.got.append(request)
        return found.answer

    server = JsonServer(0, answers)
    found.port = server.port
    found.url = f"http://127.0.0.1:{server.port}/hook"
    yield found
    server.stop()


def resolving(*addresses: str) -> Callable[[str, int], object]:
    """A DNS that answers so, and another address from the second question on."""
    answers = iter([addresses, *[("127.0.0.1",)] * 10])

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers)

    return resolve


# -- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "224.0.0.1", "239.255.255.250", "255.255.255.255", "192.0.0.192"),
        *("168.63.129.16", "198.18.0.1", "203.0.113.5", "240.0.0.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::808:808", "192.88.99.1"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "::127.0.0.1", "not an address", ""),
    ],
)
def test_what_only_this_network_can_reach_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert not Reach().allows("host", address)
    assert Reach(private=True).allows("host", address)
    assert Reach.of(False, ["HOST."]).allows("host", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_the_rest_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "0", "[::ffff:7f00:1]"]
)
async def test_every_way_to_write_this_machine_is_refused(host: str, receiver: SimpleNamespace) -> None:
    with pytest.raises(NotSent, match="not a public address") as refused:
        await Webhook(f"http://{host}:{receiver.port}/", "key", Reach()).send(MESSAGE)
    assert not refused.value.retryable
    assert receiver.got == []


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    webhook = Webhook("https://hooks.example/", "key", Reach(), resolve=resolving("8.8.8.8", "10.0.0.1"))  # type: ignore[arg-type]
    with pytest.raises(NotSent, match=r"hooks\.example is at 10\.0\.0\.1"):
        await webhook.send(MESSAGE)


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere when it is asked for a second time gains nothing: it is asked once."""
    import httpcore

    connected: list[str] = []

    async def connect(self: object, host: str, port: int, **more: object) -> object:
        connected.append(host)
        raise httpcore.ConnectError("no network here")

    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)
    webhook = Webhook("http://rebinding.example/", "key", Reach(), resolve=resolving("8.8.8.8", "1.1.1.1"))  # type: ignore[arg-type]
    with pytest.raises(NotSent, match="cannot be reached"):
        await webhook.send(MESSAGE)
    assert connected == ["8.8.8.8", "1.1.1.1"]


async def test_a_host_that_is_named_may_be_anywhere(receiver: SimpleNamespace) -> None:
    reach = Reach.of(False, ["hooks.internal"])
    webhook = Webhook(f"http://hooks.internal:{receiver.port}/", "key", reach, resolve=resolving("127.0.0.1"))  # type: ignore[arg-type]
    await webhook.send(MESSAGE)
    assert receiver.got[0].headers["host"] == f"hooks.internal:{receiver.port}"


async def test_a_certificate_is_checked_for_the_name_while_the_connection_goes_to_the_address() -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.internal").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    got: list[str] = []
    server = JsonServer(0, lambda request: (got.append(request.path), (200, {}, {}))[1], serving)

    def webhook(host: str, tls: ssl.SSLContext | None) -> Webhook:
        url = f"https://{host}:{server.port}/x"
        return Webhook(url, "key", EVERYWHERE, resolve=resolving("127.0.0.1"), tls=tls)  # type: ignore[arg-type]

    await webhook("hooks.internal", trusting).send(MESSAGE)
    assert got == ["/x"]
    for host, tls in (("other.internal", trusting), ("hooks.internal", None)):
        with pytest.raises(NotSent, match="certificate is not trusted"):
            await webhook(host, tls).send(MESSAGE)
    assert got == ["/x"]
    server.stop()


async def test_a_name_without_an_address_is_asked_for_again_later() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror("no such name")

    with pytest.raises(NotSent, match="has no address") as failed:
        await Webhook("https://nowhere.example/", "key", Reach(), resolve=resolve).send(MESSAGE)
    assert failed.value.retryable


async def test_no_proxy_of_the_environment_is_asked(receiver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    await Webhook(receiver.url, "key", EVERYWHERE).send(MESSAGE)
    assert len(receiver.got) == 1


# -- our webhook -----------------------------------------------------------------------------------------------------


async def test_what_is_sent_is_signed_with_its_time(receiver: SimpleNamespace, clock: Clock) -> None:
    await Webhook(receiver.url, "the key", EVERYWHERE, clock=clock).send(MESSAGE)
    (request,) = receiver.got
    timestamp = request.headers["x-orchestration-timestamp"]
    expected = hmac.new(b"the key", f"{timestamp}.".encode() + request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-orchestration-signature"] == f"v1={expected}"
    assert int(timestamp) == int(clock.now)
    assert request.headers["x-orchestration-delivery"] == "7:ops"
    assert json.loads(request.body)["id"] == "7:ops"


async def test_the_receiver_of_the_page_takes_what_is_ours_and_nothing_else(
    receiver: SimpleNamespace, clock: Clock
) -> None:
    (program,) = blocks(ROOT / "docs" / "alerts.md", "python")
    names: dict[str, Callable[..., bool]] = {}
    exec(program, names)  # type: ignore[arg-type]
    await Webhook(receiver.url, "the key", EVERYWHERE, clock=clock).send(MESSAGE)
    (request,) = receiver.got
    ours = names["is_ours"]
    assert ours("the key", request.headers, request.body, now=clock.now)
    assert not ours("another key", request.headers, request.body, now=clock.now)
    assert not ours("the key", request.headers, request.body + b" ", now=clock.now)
    assert not ours("the key", request.headers, request.body, now=clock.now + 301), "a recording"


async def test_an_answer_that_never_ends_is_not_read(receiver: SimpleNamespace) -> None:
    receiver.answer = (200, {}, "x" * 10_000_000)
    await Webhook(receiver.url, "key", EVERYWHERE).send(MESSAGE)


@pytest.mark.parametrize(
    "url", ["ftp://host/", "https:///path", "https://host:port/", "http://[::1/", "", "https://xn--\udc80/"]
)
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(NotSent) as refused:
        Webhook(url, "key", EVERYWHERE)
    assert not refused.value.retryable
    assert "port/" not in str(refused.value)


def test_a_webhook_without_a_key_is_refused() -> None:
    with pytest.raises(NotSent, match="no key to sign with"):
        Webhook("https://host/", "", EVERYWHERE)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("120", 120.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None), (None, None),
     ("Fri, 15 Jan 2027 12:01:00 GMT", 60.0), ("Fri, 15 Jan 2027 11:00:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(said: str | None, seconds: float | None, clock: Clock) -> None:
    assert seconds_of(said, clock.now) == seconds


# -- from the configuration ------------------------------------------------------------------------------------------


async def opened(receiver: SimpleNamespace, channel: object, **values: str) -> Request:
    said = AlertSettings.model_validate({"channels": {"ops": channel}, "allow_private_addresses": True})
    await open_channel("ops", said, lambda name: values.get(name.removeprefix("os.environ/"))).send(MESSAGE)
    request: Request = receiver.got[-1]
    return request


async def test_the_key_in_the_url_signs_and_does_not_travel(receiver: SimpleNamespace) -> None:
    url = f"webhook+{receiver.url}?team=a%20b&secret=the%20key"
    request = await opened(receiver, "os.environ/U", U=url)
    assert request.path == "/hook?team=a+b"
    timestamp = request.headers["x-orchestration-timestamp"]
    assert request.headers["x-orchestration-signature"] == signature("the key", timestamp, request.body)


async def test_url_and_key_may_be_two_references(receiver: SimpleNamespace) -> None:
    channel = {"url": "os.environ/U", "secret": "os.environ/K"}
    for url in (receiver.url, f"webhook+{receiver.url}\n"):
        request = await opened(receiver, channel, U=url, K="another key")
        timestamp = request.headers["x-orchestration-timestamp"]
        assert request.headers["x-orchestration-signature"] == signature("another key", timestamp, request.body)


async def test_a_secret_that_has_no_value_now_may_have_one_later() -> None:
    with pytest.raises(NotSent, match=r"no value behind os\.environ/U") as failed:
        await opened(SimpleNamespace(got=[]), "os.environ/U")
    assert failed.value.retryable


def test_a_channel_is_a_reference_or_two() -> None:
    said = AlertSettings.model_validate({"channels": {"a": "os.environ/U", "b": {"url": "os.environ/azure://hook"}}})
    assert [channel.url for channel in said.channels.values()] == ["os.environ/U", "os.environ/azure://hook"]
    assert AlertSettings.model_validate(said.model_dump()) == said


@pytest.mark.parametrize(
    "channel", ["https://hooks/x", {"url": "https://hooks/x"}, {"url": "os.environ/U", "secret": "k"}]
)
def test_a_written_out_secret_is_refused_and_not_repeated(channel: object) -> None:
    with pytest.raises(ValidationError, match="never the secret itself") as refused:
        AlertSettings.model_validate({"channels": {"ops": channel}})
    assert "hooks/x" not in str(refused.value)


def test_the_schema_takes_both_forms() -> None:
    schema = AlertSettings.model_json_schema()
    for channel, valid in (("os.environ/U", True), ({"url": "os.environ/U"}, True), ({"key": "x"}, False), (7, False)):
        found = list(Draft202012Validator(schema).iter_errors({"channels": {"ops": channel}}))
        assert (not found) == valid, channel


# -- Apprise ---------------------------------------------------------------------------------------------------------


def apprise(receiver: SimpleNamespace, reach: Reach, host: str = "127.0.0.1", **more: float) -> AppriseChannel:
    return AppriseChannel(f"json://{host}:{receiver.port}/secret-path", reach, **more)


async def test_apprise_sends_title_and_text(receiver: SimpleNamespace) -> None:
    await apprise(receiver, EVERYWHERE).send(MESSAGE)
    body = json.loads(receiver.got[0].body)
    assert body["title"] == "[critical] budget_limit: ada"
    assert body["message"].splitlines() == ["the budget is used up", "spent: 5.00", "2027-01-15T12:00:00+00:00"]
    assert body["type"] == "failure"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_apprise_does_not_reach_private_addresses(host: str, receiver: SimpleNamespace) -> None:
    with pytest.raises(NotSent, match=r"json:// leads to 127\.0\.0\.1, which is not a public address") as refused:
        await apprise(receiver, Reach(), host).send(MESSAGE)
    assert not refused.value.retryable
    assert receiver.got == []
    await apprise(receiver, Reach.of(False, [host]), host).send(MESSAGE)
    assert len(receiver.got) == 1


async def test_apprise_does_not_follow_redirects(receiver: SimpleNamespace) -> None:
    receiver.answer = (307, {"location": f"{receiver.url}?again"}, {})
    with pytest.raises(NotSent, match="status 307"):
        await apprise(receiver, EVERYWHERE).send(MESSAGE)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(("status", "retryable"), [(500, True), (429, True), (404, False)])
async def test_what_an_apprise_service_answers_decides_whether_to_try_again(
    status: int, retryable: bool, receiver: SimpleNamespace
) -> None:
    receiver.answer = (status, {"retry-after": "30"}, {})
    with pytest.raises(NotSent, match=f"status {status}") as failed:
        await apprise(receiver, EVERYWHERE).send(MESSAGE)
    assert (failed.value.retryable, failed.value.retry_after) == (retryable, 30.0)


async def test_apprise_is_ended_when_it_takes_too_long(receiver: SimpleNamespace) -> None:
    with pytest.raises(NotSent, match="did not answer within"):
        await apprise(receiver, EVERYWHERE, timeout=0.01).send(MESSAGE)


async def test_what_apprise_does_not_know_is_refused() -> None:
    with pytest.raises(NotSent, match="Apprise cannot use the channel's nonsense:// URL"):
        await AppriseChannel("nonsense://token-that-is-secret", EVERYWHERE).send(MESSAGE)
    with pytest.raises(NotSent, match="is not an Apprise URL"):
        AppriseChannel("token-that-is-secret", EVERYWHERE)


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("socket.connect", (None, ("169.254.169.254", 80))),
        ("socket.connect", (None, ("::1", 80, 0, 0))),
        ("socket.connect", (None, "/run/dbus/system_bus_socket")),
        ("socket.sendto", (None, ("10.0.0.1", 514))),
        ("subprocess.Popen", ("/bin/sh", ["sh"], None, None)),
    ],
)
def test_the_process_of_apprise_refuses_what_leads_inside(event: str, arguments: tuple[object, ...]) -> None:
    watch = Watch(Reach())
    with pytest.raises(Refused):
        watch._see(event, arguments)
    assert watch.refused is not None
    watch._see("socket.connect", (None, ("8.8.8.8", 443)))


def test_the_page_names_every_event() -> None:
    from core.settings.models import AlertEvent

    page = (ROOT / "docs" / "alerts.md").read_text()
    assert [event for event in AlertEvent if not re.search(rf"^\| `{event}`", page, re.M)] == []
