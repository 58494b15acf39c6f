"""Where an alert may be sent: not to what only this machine or its network can reach, unless that is allowed.

Nothing but the standard library: this is also read by the process that Apprise runs in.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""How networks without IPv4 write IPv4 addresses."""
# What Python takes for global, older versions more of it than newer ones. The first is Azure's own, on every machine.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "64:ff9b:1::/48", "5f00::/16")
)


@dataclass(frozen=True, slots=True)
class Reach:
    """What may be reached: public addresses; any where `private` is set; any of the `hosts`, lower-case names."""

    private: bool = False
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, private: bool, hosts: Iterable[str]) -> "Reach":
        return cls(private, frozenset(host.lower().rstrip(".").strip("[]") for host in hosts))

    def allows_host(self, host: str) -> bool:
        """Whether the host may be reached whatever its addresses are."""
        return self.private or host.lower().rstrip(".") in self.hosts

    def allows(self, host: str, address: str) -> bool:
        """Whether `address`, one of those of `host`, may be connected to."""
        return self.allows_host(host) or is_public(address)


def is_public(address: str) -> bool:
    """Whether everybody on the Internet would reach the same there: not private, loopback, link-local, multicast,
    unspecified, shared (CGNAT), reserved, nor an IPv6 form of such an IPv4 address. What is no address is not."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found in _NAT64:
        return _is_public(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF))
    return all(_is_public(one) for one in (found, *_inside(found)))


def _is_public(address: Address) -> bool:
    special = address.is_multicast or address.is_unspecified or address.is_reserved or address.is_link_local
    return address.is_global and not special and not any(address in network for network in _NOT_PUBLIC)


def _inside(address: Address) -> Iterator[Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
