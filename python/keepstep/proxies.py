"""Whom a proxy speaks for: which peers are believed, and the client's address in the header they send.

A header can be written by anybody, so it counts from a trusted peer only, and in it only what trusted hops added: the
client is the rightmost address that no trusted proxy has (RFC 7239 section 8.1 says why). Only the one header that the
setting names is read: a proxy that manages one of them passes the other on as the client sent it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Final

NETWORKS_MAX: Final = 64
"""Networks of trusted proxies."""
HOPS_MAX: Final = 16
"""Hops of a header that are looked at, the nearest first."""
LINE_BYTES_MAX: Final = 4_096
"""Longest line of the header that is looked at."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS: Final = 96
"""What comes before an IPv4 address that is mapped into IPv6 (RFC 4291 section 2.5.5.2)."""
_PORT: Final = r"(?::(?P<port>[0-9]{1,5}))?"
_IPV4: Final = re.compile(rf"(?P<address>[0-9.]{{7,15}}){_PORT}")
_IPV6: Final = re.compile(rf"\[(?P<address>[0-9A-Fa-f]{{0,4}}:[0-9A-Fa-f:.]{{1,44}})\]{_PORT}")
_BARE_IPV6: Final = re.compile(r"(?P<address>[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,44})(?P<port>)")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of HTTP's grammar
_PAIR: Final = re.compile(rf'({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")')


def plain_address(text: str) -> str:
    """An IP address in its one spelling: IPv4 also where it came mapped into IPv6, without an IPv6 zone.

    Raises:
        ValueError: it is none.
    """
    parsed = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks, or single addresses, separated by commas.

    Raises:
        ValueError: one is none, has bits beyond its prefix, or there are more than ``NETWORKS_MAX``.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if len(items) > NETWORKS_MAX:
        raise ValueError
    return tuple(_plain_network(ipaddress.ip_network(item)) for item in items)


def _plain_network(network: Network) -> Network:
    """IPv4 also where it is written as mapped into IPv6."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


class TrustedProxies:
    """The proxies that are believed.

    Args:
        networks: where they are.
        header: the one that they write the client's address into, ``x-forwarded-for`` or ``forwarded``.
    """

    def __init__(self, networks: Iterable[Network] = (), *, header: str = "x-forwarded-for") -> None:
        self._networks = tuple(networks)
        self._header = header.encode()
        self._hops = _forwarded_hops if header == "forwarded" else _listed_hops

    def trusts(self, address: str) -> bool:
        """Whether that peer is believed; an address that is none (a test's) is not."""
        if not self._networks:  # a request without a proxy costs nothing
            return False
        try:
            parsed = ipaddress.ip_address(plain_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client_address(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Who sent a request.

        A hop that is no address (``unknown``, an obfuscated name, nonsense) ends the search: then the client is taken
        to be the proxy that wrote it, which is at worst somebody we trust.

        Args:
            peer: IP address of the one whose connection it is.
            headers: of the request, in order.
        """
        if not self.trusts(peer):
            return peer
        lines = [value for name, value in headers if name.lower() == self._header]
        address = peer
        for hop, _ in zip(self._nearest_first(lines), range(HOPS_MAX), strict=False):
            parsed = _parse_hop(hop)
            if parsed is None:
                break
            address = parsed
            if not self.trusts(address):
                break
        return address

    def _nearest_first(self, lines: list[bytes]) -> Iterator[str]:
        for line in reversed(lines):
            hops = [""] if len(line) > LINE_BYTES_MAX else self._hops(line.decode("latin-1"))
            yield from reversed(hops)


def _listed_hops(line: str) -> list[str]:
    """The items of ``X-Forwarded-For``."""
    return [item.strip(" \t") for item in line.split(",")]


def _forwarded_hops(line: str) -> list[str]:
    """``for`` of every element of ``Forwarded`` (RFC 7239 section 4); one hop that is none where the line is wrong.

    The whole line has to be right: an open quotation mark in a client's part could otherwise swallow a proxy's.
    """
    hops, position, found = [], 0, ""
    while True:
        position = _skip_spaces(line, position)
        pair = _PAIR.match(line, position)
        if pair is None:
            return [""]
        if pair[1].lower() == "for":
            if found:
                return [""]
            found = pair[2] if pair[3] is None else re.sub(r"\\(.)", r"\1", pair[3])
        position = _skip_spaces(line, pair.end())
        if line[position : position + 1] == ";":
            position += 1
            continue
        hops.append(found)
        found = ""
        if position == len(line):
            return hops
        if line[position] != ",":
            return [""]
        position += 1


def _skip_spaces(line: str, position: int) -> int:
    while line[position : position + 1] in (" ", "\t"):
        position += 1
    return position


def _parse_hop(hop: str) -> str | None:
    """The address of ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]`` or ``[2001:db8::1]:80``."""
    found = _IPV4.fullmatch(hop) or _IPV6.fullmatch(hop) or _BARE_IPV6.fullmatch(hop)
    if found is None or (found["port"] and int(found["port"]) > 65_535):
        return None
    try:
        return plain_address(found["address"])
    except ValueError:
        return None
