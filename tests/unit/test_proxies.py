"""Whom a proxy speaks for: exact parsing, from the right, by trusted peers only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.proxies import (
    HOPS_MAX,
    LINE_BYTES_MAX,
    NETWORKS_MAX,
    TrustedProxies,
    parse_networks,
    plain_address,
)

PROXY = "10.0.0.1"
CLIENT = "198.51.100.7"


def client(*lines: str, peer: str = PROXY, header: str = "x-forwarded-for", name: str = "") -> str:
    """The client's address where 10.0.0.0/8 and one IPv6 address are trusted."""
    proxies = TrustedProxies(parse_networks("10.0.0.0/8,2001:db8::1"), header=header)
    return proxies.client_address(peer, [((name or header).encode(), line.encode("latin-1")) for line in lines])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:C000:201", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_has_one_spelling(text: str, address: str) -> None:
    """Else one client would be several."""
    assert plain_address(text) == address


@pytest.mark.parametrize(
    "text", ["nowhere", "10.0.0.1/8", "10.0.0.0/33", "1.2.3", "10.0.0.0/8,,::1", ",".join(["::1"] * (NETWORKS_MAX + 1))]
)
def test_networks_that_are_none_are_refused(text: str) -> None:
    """A host bit that is set is a typing error more often than not."""
    with pytest.raises(ValueError, match=r"^$|does not appear|has host bits"):
        parse_networks(text)


def test_networks_are_separated_by_commas_and_perhaps_spaces() -> None:
    """A single address is a network of one."""
    assert [str(one) for one in parse_networks(" 10.0.0.0/8 , ::1")] == ["10.0.0.0/8", "::1/128"]
    assert parse_networks("") == ()


def test_a_network_has_one_spelling_as_an_address_has() -> None:
    """Else an IPv4 proxy that is written as sockets for both show it would be trusted by nobody."""
    assert [str(one) for one in parse_networks("::ffff:10.0.0.1,::ffff:10.0.0.0/104,::/0")] == [
        "10.0.0.1/32",
        "10.0.0.0/8",
        "::/0",
    ]


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("10.200.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("2001:db8::1", True),
        ("11.0.0.1", False),
        ("2001:db8::2", False),
        ("memory", False),
    ],
)
def test_a_peer_is_trusted_by_its_network(address: str, is_trusted: bool) -> None:
    """Also where IPv4 comes in IPv6's clothes, as on a socket for both."""
    assert TrustedProxies(parse_networks("10.0.0.0/8,2001:db8::1")).trusts(address) is is_trusted


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        (CLIENT, CLIENT),
        (f"{CLIENT}:0", CLIENT),
        (f"{CLIENT}:65535", CLIENT),
        (f" \t{CLIENT} ", CLIENT),
        (f"::ffff:{CLIENT}", CLIENT),
        (f"[::ffff:{CLIENT}]:443", CLIENT),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:DB8::7]:443", "2001:db8::7"),
    ],
)
def test_a_hop_is_an_address_with_or_without_port(hop: str, address: str) -> None:
    """In every form that proxies write."""
    assert client(hop) == address


@pytest.mark.parametrize(
    "hop",
    [
        "", "unknown", "_hidden", "example.org", "198.51.100", "198.51.100.7.8", "198.51.100.007", "198.51.100.7:",
        "198.51.100.7:65536", "198.51.100.7:-1", "198.51.100.7:443:1", "[198.51.100.7]:1", "[2001:db8::7",
        "2001:db8::7]", "[2001:db8::7]443", "fe80::7%eth0", "[fe80::7%25eth0]", "198.51.100.7 10.0.0.1", "١٩٨.51.100.7",
        "0x7f.1.1.1", "2001:db8:::7", "198.51.100.7\x00",
    ],
)  # fmt: skip
def test_a_hop_that_is_no_address_is_nobody(hop: str) -> None:
    """The request is the proxy's that wrote it then."""
    assert client(hop.encode().decode("latin-1")) == PROXY


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ([], PROXY),
        (["192.0.2.9, 198.51.100.7"], CLIENT),
        (["192.0.2.9, 198.51.100.7, 10.0.0.2"], CLIENT),
        (["192.0.2.9, 198.51.100.7, 2001:db8::1, 10.0.0.2"], CLIENT),
        (["192.0.2.9", "198.51.100.7"], CLIENT),
        (["192.0.2.9,198.51.100.7", "10.0.0.2"], CLIENT),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
        (["198.51.100.7,,10.0.0.2"], "10.0.0.2"),
    ],
)
def test_the_client_is_the_last_whom_no_trusted_proxy_is(lines: list[str], address: str) -> None:
    """What the client itself wrote comes before it and never counts."""
    assert client(*lines) == address


def test_a_stranger_speaks_for_nobody() -> None:
    """Whatever it sends, it is itself."""
    assert client(CLIENT, peer="192.0.2.66") == "192.0.2.66"
    assert TrustedProxies().client_address(PROXY, [(b"x-forwarded-for", CLIENT.encode())]) == PROXY


def test_only_the_named_header_is_read() -> None:
    """A proxy that manages one of them passes on the other as the client sent it."""
    assert client(f"for={CLIENT}", name="forwarded") == PROXY
    assert client(CLIENT, header="forwarded", name="x-forwarded-for") == PROXY
    assert client(CLIENT, name="X-Forwarded-For") == CLIENT


def test_the_search_is_bounded() -> None:
    """So many hops, so many bytes of a line."""
    assert client(", ".join([CLIENT, *["10.0.0.9"] * (HOPS_MAX - 1)])) == CLIENT
    assert client(", ".join([CLIENT, *["10.0.0.9"] * HOPS_MAX])) == "10.0.0.9"
    assert client(" " * (LINE_BYTES_MAX - len(CLIENT)) + CLIENT) == CLIENT
    assert client(" " * (LINE_BYTES_MAX - len(CLIENT) + 1) + CLIENT) == PROXY


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=https;by=10.0.0.1", CLIENT),
        (f'proto=https ; for="{CLIENT}:80"', CLIENT),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        (f'for="\\{CLIENT}"', CLIENT),
        (f"for=192.0.2.9, for={CLIENT}", CLIENT),
        (f"for=192.0.2.9,for={CLIENT},for=10.0.0.2", CLIENT),
        (f'for="x, for=192.0.2.9;by=", for={CLIENT}', CLIENT),
        ("for=unknown", PROXY),
        ("for=_gazonk", PROXY),
        ("proto=https", PROXY),
        (f"for={CLIENT};for=192.0.2.9", PROXY),
        (f'for=", for={CLIENT}', PROXY),
        ('for=192.0.2.9;x=", for="[2001:db8::7]"', PROXY),
        (f"for = {CLIENT}", PROXY),
        (f"for={CLIENT};", PROXY),
        (f"for={CLIENT},", PROXY),
        (f"for={CLIENT} proto=https", PROXY),
        ("", PROXY),
        ("for=[2001:db8::7]", PROXY),
    ],
)
def test_forwarded_is_read_as_its_description_says(line: str, address: str) -> None:
    """RFC 7239: a line that is wrong anywhere names nobody, since a quotation mark may swallow what follows."""
    assert client(line, header="forwarded") == address


@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_nothing_a_client_writes_counts_before_what_a_proxy_adds(lines: list[bytes], header: str) -> None:
    """A proxy that adds a line of its own decides who the client is."""
    proxies = TrustedProxies(parse_networks("10.0.0.0/8"), header=header)
    added = CLIENT if header == "x-forwarded-for" else f"for={CLIENT}"
    headers = [(header.encode(), line) for line in (*lines, added.encode())]
    assert proxies.client_address(PROXY, headers) == CLIENT


@given(st.text(alphabet='0123456789.:,;="[] \\for', max_size=40), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_whatever_comes_gives_an_address(line: str, header: str) -> None:
    """Never an exception, never text of the peer's in place of an address."""
    assert plain_address(client(line, header=header))
