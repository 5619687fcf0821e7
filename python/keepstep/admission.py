"""Who may open a socket: caps on all connections and on those that have not authenticated (protocol.md section 2).

Strangers are counted per address prefix, because one of them easily owns many addresses: /24 for IPv4, where a
provider's smallest routable block begins, and /64 for IPv6, which is one subscriber's.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

IPV4_PREFIX_BITS: Final = 24
IPV6_PREFIX_BITS: Final = 64
ADDRESSES_MAX: Final = 4_096
"""Addresses whose prefix is remembered: whoever comes again costs no parsing."""


@lru_cache(maxsize=ADDRESSES_MAX)
def address_prefix(address: str) -> str:
    """The network that is counted as one peer; an address that is none (a test's) counts as itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    bits = IPV4_PREFIX_BITS if parsed.version == 4 else IPV6_PREFIX_BITS
    return str(ipaddress.ip_network((parsed, bits), strict=False))


class Admission:
    """Counts sockets; in memory, for this process.

    Args:
        connections_max: sockets in all.
        unauthenticated_max: sockets in all that have not authenticated.
        unauthenticated_per_address_max: the same of one address prefix.
        on_refused: called for each socket that is refused.
        is_proxy: whether others come through an IP address: its sockets count in no share until it is known whose
            they are.
    """

    def __init__(
        self,
        *,
        connections_max: int,
        unauthenticated_max: int,
        unauthenticated_per_address_max: int,
        on_refused: Callable[[], None],
        is_proxy: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._is_proxy = is_proxy
        self._connections_max = connections_max
        self._unauthenticated_max = unauthenticated_max
        self._unauthenticated_per_address_max = unauthenticated_per_address_max
        self._by_prefix: dict[str, int] = {}
        self.connections = 0
        self.unauthenticated = 0
        self._on_refused = on_refused

    def enter(self, address: str) -> Ticket:
        """Count a new socket, still unauthenticated.

        Raises:
            ProtocolError: ``too_many_connections``.
        """
        prefix = None if self._is_proxy(address) else address_prefix(address)
        if self.connections >= self._connections_max or self.unauthenticated >= self._unauthenticated_max:
            self._on_refused()
            raise ProtocolError("too_many_connections")
        if prefix is not None:
            self._count(prefix)
        self.connections += 1
        self.unauthenticated += 1
        return Ticket(self, prefix)

    def _count(self, prefix: str) -> None:
        """One more stranger of a network. Raises ProtocolError ``too_many_connections``."""
        if self._by_prefix.get(prefix, 0) >= self._unauthenticated_per_address_max:
            self._on_refused()
            raise ProtocolError("too_many_connections")
        self._by_prefix[prefix] = self._by_prefix.get(prefix, 0) + 1

    def _authenticated(self, prefix: str | None) -> None:
        self.unauthenticated -= 1
        if prefix is not None:
            self._by_prefix[prefix] -= 1
            if not self._by_prefix[prefix]:
                del self._by_prefix[prefix]

    def _leave(self) -> None:
        self.connections -= 1


class Ticket:
    """One socket's place; leave it exactly once, as a context manager."""

    def __init__(self, admission: Admission, prefix: str | None) -> None:
        self._admission = admission
        self._prefix = prefix
        self._stranger = True

    def identify(self, address: str) -> None:
        """Whose a proxy's socket is: counts in that network's share until authenticated. May be called again.

        Raises:
            ProtocolError: ``too_many_connections``.
        """
        if self._prefix is None and self._stranger:
            prefix = address_prefix(address)
            self._admission._count(prefix)
            self._prefix = prefix

    def authenticated(self) -> None:
        """The device proved who it is: it no longer counts as a stranger. May be called again."""
        if self._stranger:
            self._stranger = False
            self._admission._authenticated(self._prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.authenticated()
        self._admission._leave()
