"""Where a request comes from: what proxies say is believed only of those that may be believed."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.limits.address import FORWARDED, X_FORWARDED_FOR, client_address, counted_as, parse_address

TRUSTED = tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.1/32", "2001:db8:ffff::/48")))


def seen(peer: str | None, *lines: str, header: bytes = X_FORWARDED_FOR) -> str | None:
    address = client_address(peer, [(header, line.encode("latin-1")) for line in lines], TRUSTED, header)
    return None if address is None else str(address)


@pytest.mark.parametrize(
    ("peer", "lines", "address"),
    [
        # a peer that is no trusted proxy is the client, whatever it says
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("203.0.113.7", ["10.0.0.1"], "203.0.113.7"),
        # one proxy, several, over several lines
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7", "10.0.0.2, 192.0.2.1"], "203.0.113.7"),
        # what the client wrote itself stands further left
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["10.0.0.9, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["10.0.0.9", "203.0.113.7"], "203.0.113.7"),
        # all of them proxies: the first that said something
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        # the proxy next to something that is no address is the last that is known
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7, "], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.7.example.org"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7\xff"], "10.0.0.1"),
        ("10.0.0.1", ["<script>, 1.2.3, 999.1.1.1"], "10.0.0.1"),
        # ports, brackets, zones, IPv4 in IPv6
        ("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7:"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7:http"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["[2001:db8::7"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::7%eth0"], "fe80::7"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("::ffff:203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("2001:db8:ffff::1", ["2001:db8::7, 2001:db8:ffff:1::2"], "2001:db8::7"),
        # a Unix socket
        (None, ["203.0.113.7"], "203.0.113.7"),
        (None, [], None),
        ("", ["203.0.113.7"], "203.0.113.7"),
        # a name, as test clients have
        ("testclient", ["203.0.113.7"], None),
    ],
)
def test_x_forwarded_for(peer: str | None, lines: list[str], address: str | None) -> None:
    assert seen(peer, *lines) == address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["for=203.0.113.7"], "203.0.113.7"),
        (["For=203.0.113.7;proto=https;by=10.0.0.1"], "203.0.113.7"),
        (['proto=http; for="203.0.113.7:4711"'], "203.0.113.7"),
        (['for="[2001:db8::7]:4711"'], "2001:db8::7"),
        (['for=198.51.100.1, for="[2001:db8::7]"', "for=10.0.0.2"], "2001:db8::7"),
        (["for=203.0.113.7, for=_hidden"], "10.0.0.1"),
        (["for=unknown"], "10.0.0.1"),
        (["proto=https"], "10.0.0.1"),
        (["for=203.0.113.7;for=198.51.100.1"], "10.0.0.1"),
        (['for="198.51.100.1, for=203.0.113.7'], "203.0.113.7"),
        (["203.0.113.7"], "10.0.0.1"),
        (["forwarded-for=203.0.113.7"], "10.0.0.1"),
    ],
)
def test_forwarded(lines: list[str], address: str) -> None:
    assert seen("10.0.0.1", *lines, header=FORWARDED) == address


def test_only_the_header_that_the_proxies_write_is_read() -> None:
    headers = [(FORWARDED, b"for=198.51.100.1"), (X_FORWARDED_FOR, b"203.0.113.7")]
    assert str(client_address("10.0.0.1", headers, TRUSTED, X_FORWARDED_FOR)) == "203.0.113.7"
    assert str(client_address("10.0.0.1", headers, TRUSTED, FORWARDED)) == "198.51.100.1"


def test_without_trusted_proxies_nobody_is_believed() -> None:
    headers = [(X_FORWARDED_FOR, b"203.0.113.7")]
    assert str(client_address("127.0.0.1", headers, ())) == "127.0.0.1"
    assert client_address(None, headers, ()) is None


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
    ],
)
def test_whose_requests_are_counted(address: str, name: str) -> None:
    found = parse_address(address)
    assert found is not None
    assert counted_as(found) == name


@given(st.lists(st.text(alphabet=st.characters(max_codepoint=255)), max_size=4), st.sampled_from(["10.0.0.1", "::1"]))
def test_no_header_makes_it_fail_or_be_believed_from_elsewhere(lines: list[str], peer: str) -> None:
    for header in (X_FORWARDED_FOR, FORWARDED):
        found = seen(peer, *lines, header=header)
        assert found is not None
        if peer == "::1":
            assert found == "::1"


@given(st.ip_addresses(), st.ip_addresses())
def test_what_a_client_writes_itself_never_counts(client: object, claimed: object) -> None:
    seen_as = seen("10.0.0.1", f"{claimed}, {client}")
    mine = parse_address(str(client))
    assert mine is not None
    if not any(mine in network for network in TRUSTED):
        assert seen_as == str(mine)
