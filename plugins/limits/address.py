"""The address a request comes from, seen through the proxies in front of us that may be believed."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI gives them: lower-case names."""

X_FORWARDED_FOR, FORWARDED = b"x-forwarded-for", b"forwarded"
_SHARED_PREFIX = 64
"""Bits of an IPv6 address that name a network; whoever has one address there has all of them."""


def client_address(
    peer: str | None, headers: Headers, trusted: Sequence[Network], header: bytes = X_FORWARDED_FOR
) -> Address | None:
    """The rightmost hop that is no trusted proxy; None for a peer without an address (a Unix socket) that names nobody.

    Each trusted proxy appends the address it was called from, so the list is read from its end for as long as the one
    who wrote the entry is trusted. An entry that is no address ends it: what stands further left came through somebody
    we know nothing of. A Unix socket counts as trusted where any proxy is.
    """
    address = parse_address(peer) if peer else None
    if not trusted or (peer and (address is None or not _among(address, trusted))):
        return address
    for hop in reversed(list(_hops(headers, header))):
        before = parse_address(hop)
        if before is None:
            break
        address = before
        if not _among(address, trusted):
            break
    return address


def counted_as(address: Address) -> str:
    """The name whose requests are counted: the address, or the /64 network of an IPv6 one."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), _SHARED_PREFIX), strict=False))


def parse_address(text: str) -> Address | None:
    """An address as proxies write it: with or without a port, brackets or a zone; IPv4 in IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _among(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit()


def _hops(headers: Headers, header: bytes) -> Iterator[str]:
    for name, value in headers:
        if name == header:
            for entry in value.decode("latin-1").split(","):
                yield _node(entry) if header == FORWARDED else entry


def _node(element: str) -> str:
    """The `for` of one element of Forwarded (RFC 7239); empty where there is none, or more than one."""
    nodes = [value for name, _, value in (pair.partition("=") for pair in element.split(";")) if _is_for(name)]
    return nodes[0].strip().strip('"') if len(nodes) == 1 else ""


def _is_for(name: str) -> bool:
    return name.strip().lower() == "for"
