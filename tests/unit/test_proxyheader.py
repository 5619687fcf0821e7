"""The PROXY protocol, byte by byte."""

from __future__ import annotations

import socket
import struct

import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from keepstep.errors import ProtocolError
from keepstep.proxyheader import BINARY_BYTES_MAX, SIGNATURE, TEXT_BYTES_MAX, read_header

AFTER = b"\x16\x03\x01 what follows"


def binary(command: int, kind: int, body: bytes, *, size: int | None = None) -> bytes:
    """A header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body) if size is None else size) + body


def addresses(source: str, *, family: int = socket.AF_INET) -> bytes:
    """Source, destination and ports."""
    packed = socket.inet_pton(family, source)
    return packed + bytes(len(packed)) + struct.pack("!HH", 4711, 443)


def tlv(kind: int, value: bytes) -> bytes:
    """One added field."""
    return struct.pack("!BH", kind, len(value)) + value


async def read(data: bytes, *, piece_bytes: int = 10_000) -> tuple[str | None, bytes]:
    """What a header says, and what is left after it."""
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(data), piece_bytes):
                await ours.send_all(data[start : start + piece_bytes])
            await ours.aclose()

        nursery.start_soon(send)
        try:
            told = await read_header(theirs)
            rest = b""
            while piece := await theirs.receive_some():
                rest += piece
        finally:
            await theirs.aclose()
            nursery.cancel_scope.cancel()
    return told, rest


GOOD = [
    (b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\n", "198.51.100.7"),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    (b"PROXY TCP6 2001:DB8::7 ::1 0 443\r\n", "2001:db8::7"),
    (b"PROXY TCP6 ::ffff:198.51.100.7 ::1 4711 443\r\n", "198.51.100.7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN whatever it says\r\n", None),
    (binary(0x21, 0x11, addresses("198.51.100.7")), "198.51.100.7"),
    (binary(0x21, 0x21, addresses("2001:db8::7", family=socket.AF_INET6)), "2001:db8::7"),
    (binary(0x21, 0x21, addresses("::ffff:198.51.100.7", family=socket.AF_INET6)), "198.51.100.7"),
    (binary(0x21, 0x11, addresses("198.51.100.7") + tlv(2, b"example.org") + tlv(4, b"")), "198.51.100.7"),
    (binary(0x21, 0x11, addresses("198.51.100.7") + tlv(4, bytes(BINARY_BYTES_MAX - 15))), "198.51.100.7"),
    (binary(0x20, 0x00, b""), None),
    (binary(0x20, 0x11, addresses("198.51.100.7")), None),
    (binary(0x21, 0x00, b"anything"), None),
]


@pytest.mark.parametrize("piece_bytes", [1, 10_000])
@pytest.mark.parametrize(("data", "address"), GOOD)
async def test_a_header_names_the_client(data: bytes, address: str | None, piece_bytes: int) -> None:
    """And not one byte behind it is taken."""
    with trio.testing.assert_checkpoints():
        assert await read(data + AFTER, piece_bytes=piece_bytes) == (address, AFTER)


BAD = [
    b"GET /v1/connect HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abc",
    b"proxy TCP4 198.51.100.7 10.0.0.1 4711 443\r\n",
    b"PROXY  TCP4 198.51.100.7 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443 \r\n",
    b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\n" + AFTER * 10,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 65536\r\n",
    b"PROXY TCP4 198.51.100.7 10.0.0.1 04711 443\r\n",
    b"PROXY TCP4 198.51.100.7 10.0.0.1 -1 443\r\n",
    b"PROXY TCP4 198.51.100.07 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 2001:db8::7 ::1 4711 443\r\n",
    b"PROXY TCP6 198.51.100.7 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 198.51.100.7 4711 443\r\n",
    b"PROXY TCP5 198.51.100.7 10.0.0.1 4711 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UNKNOWN " + b"x" * TEXT_BYTES_MAX + b"\r\n",
    b"PROXY TCP4 198.51.",
    b"PROXY",
    b"",
    SIGNATURE,
    SIGNATURE[:5],
    binary(0x11, 0x11, addresses("198.51.100.7")),
    binary(0x22, 0x11, addresses("198.51.100.7")),
    binary(0x21, 0x12, addresses("198.51.100.7")),
    binary(0x21, 0x31, bytes(216)),
    binary(0x21, 0x11, addresses("198.51.100.7")[:-1]),
    binary(0x21, 0x21, addresses("198.51.100.7")),
    binary(0x21, 0x11, addresses("198.51.100.7"), size=13),
    binary(0x21, 0x11, addresses("198.51.100.7") + b"\x04\x00"),
    binary(0x21, 0x11, addresses("198.51.100.7") + b"\x04\x00\x02x"),
    binary(0x21, 0x11, b"", size=BINARY_BYTES_MAX + 1),
    binary(0x20, 0x00, b"", size=0xFFFF),
]


@pytest.mark.parametrize("data", BAD)
async def test_what_is_no_header_is_refused(data: bytes) -> None:
    """Without waiting for more than a header can be."""
    with pytest.raises(BaseExceptionGroup) as caught:
        await read(data)
    assert caught.group_contains(ProtocolError, match="malformed")


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"])
)
def test_whatever_comes_is_read_or_refused(data: bytes, start: bytes) -> None:
    """Nothing else is ever raised."""

    async def main() -> None:
        try:
            await read(start + data)
        except* ProtocolError:
            pass

    trio.run(main)
