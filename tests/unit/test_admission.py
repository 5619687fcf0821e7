"""Caps on sockets: in all, unauthenticated, and of one address prefix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keepstep.admission import Admission, address_prefix
from keepstep.errors import ProtocolError


def admission(
    connections_max: int = 10,
    unauthenticated_max: int = 10,
    per_address_max: int = 10,
    on_refused: Callable[[], None] = lambda: None,
    is_proxy: Callable[[str], bool] = lambda _: False,
) -> Admission:
    """Caps that are wide unless a test narrows one."""
    return Admission(
        connections_max=connections_max,
        unauthenticated_max=unauthenticated_max,
        unauthenticated_per_address_max=per_address_max,
        on_refused=on_refused,
        is_proxy=is_proxy,
    )


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.2.255", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_addresses_are_counted_by_prefix(address: str, prefix: str) -> None:
    """IPv4 by /24, IPv6 by /64, an IPv4 address in IPv6's clothes as IPv4, and what is no address as itself."""
    assert address_prefix(address) == prefix


def test_sockets_above_the_cap_are_refused() -> None:
    """No more sockets than ``connections_max``, however many have authenticated."""
    refused: list[int] = []
    gate = admission(connections_max=2, on_refused=lambda: refused.append(1))
    for _ in range(2):
        gate.enter("192.0.2.1").authenticated()
    with pytest.raises(ProtocolError, match="too_many_connections"):
        gate.enter("198.51.100.1")
    assert (gate.connections, gate.unauthenticated, refused) == (2, 0, [1])


def test_strangers_above_the_cap_are_refused() -> None:
    """No more strangers than ``unauthenticated_max``, wherever they come from."""
    gate = admission(unauthenticated_max=2)
    gate.enter("192.0.2.1")
    gate.enter("198.51.100.1")
    with pytest.raises(ProtocolError, match="too_many_connections"):
        gate.enter("203.0.113.1")


def test_strangers_of_one_prefix_above_the_cap_are_refused() -> None:
    """One network cannot take the places of all strangers."""
    gate = admission(per_address_max=2)
    gate.enter("192.0.2.1")
    gate.enter("192.0.2.2")
    with pytest.raises(ProtocolError, match="too_many_connections"):
        gate.enter("192.0.2.3")
    gate.enter("198.51.100.1")


def test_a_stranger_that_authenticates_makes_room_for_another() -> None:
    """Authenticated sockets count in all, but not as strangers; telling it twice counts once."""
    gate = admission(unauthenticated_max=1, per_address_max=1)
    ticket = gate.enter("192.0.2.1")
    ticket.authenticated()
    ticket.authenticated()
    gate.enter("192.0.2.2")
    assert (gate.connections, gate.unauthenticated) == (2, 1)


def test_a_socket_that_leaves_gives_its_place_back() -> None:
    """Whether it had authenticated or not."""
    gate = admission(connections_max=1, unauthenticated_max=1, per_address_max=1)
    with gate.enter("192.0.2.1"):
        assert gate.connections == 1
    with gate.enter("192.0.2.1") as ticket:
        ticket.authenticated()
    assert (gate.connections, gate.unauthenticated) == (0, 0)
    gate.enter("192.0.2.1")


def test_a_proxys_socket_counts_in_no_share_until_it_is_known_whose_it_is() -> None:
    """All of a proxy's clients come from its address; each then counts in its own network's share."""
    refused: list[None] = []
    gate = admission(per_address_max=1, on_refused=lambda: refused.append(None), is_proxy="10.0.0.1".__eq__)
    one, two, three = (gate.enter("10.0.0.1") for _ in range(3))
    one.identify("192.0.2.1")
    one.identify("198.51.100.1")  # it is known already
    two.identify("198.51.100.1")
    with pytest.raises(ProtocolError, match="too_many_connections"):
        three.identify("192.0.2.2")
    assert refused == [None]
    with pytest.raises(ProtocolError, match="too_many_connections"):
        gate.enter("192.0.2.3")
    one.authenticated()
    three.identify("192.0.2.2")
    for ticket in (one, two, three):
        ticket.__exit__()
    assert (gate.connections, gate.unauthenticated, gate._by_prefix) == (0, 0, {})


def test_a_proxys_socket_that_authenticated_counts_in_no_share_any_more() -> None:
    """Whoever it is told to be afterwards."""
    gate = admission(per_address_max=1, is_proxy="10.0.0.1".__eq__)
    ticket = gate.enter("10.0.0.1")
    ticket.authenticated()
    ticket.identify("192.0.2.1")
    gate.enter("192.0.2.1")
    assert gate.unauthenticated == 1


def test_proxies_are_within_the_caps_on_all() -> None:
    """A broken one does not take every descriptor."""
    gate = admission(unauthenticated_max=1, is_proxy="10.0.0.1".__eq__)
    gate.enter("10.0.0.1")
    with pytest.raises(ProtocolError, match="too_many_connections"):
        gate.enter("10.0.0.1")
