"""The PROXY protocol, versions 1 (text) and 2 (binary): how a proxy that only passes bytes on says whose they are.

The header comes before everything else, TLS included. Exactly its bytes are read, so that nothing has to be given back.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError
from keepstep.proxies import plain_address

if TYPE_CHECKING:
    import trio

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""What version 2 begins with."""
TEXT_BYTES_MAX: Final = 107
"""Longest header of version 1, by its description."""
BINARY_BYTES_MAX: Final = 2_048
"""Longest version 2 after its first 16 bytes; proxies send some hundred, with the client's certificate in TLVs."""

_TEXT: Final = re.compile(
    r"PROXY (?P<family>TCP4|TCP6) (?P<source>[0-9A-Fa-f:.]+) (?P<destination>[0-9A-Fa-f:.]+) "
    r"(?P<ports>(?:0|[1-9][0-9]{0,4}) (?:0|[1-9][0-9]{0,4}))\r\n"
)
_UNKNOWN: Final = b"PROXY UNKNOWN"
_LOCAL, _PROXIED = 0x20, 0x21
_UNSPECIFIED, _UNSPECIFIED_STREAM = 0x00, 0x01
_FAMILIES: Final = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}
"""Family and transport (only streams) → how to write an address of so many bytes."""
_TLV_HEAD: Final = struct.Struct("!BH")


async def read_header(stream: trio.abc.ReceiveStream) -> str | None:
    """Read one header; the caller sets the deadline.

    Returns:
        The client's IP address; ``None`` where the proxy speaks for itself (its health check) or does not know.

    Raises:
        ProtocolError: ``malformed``: it is no header of either version, or the peer ended within it.
    """
    start = await _read_exactly(stream, len(SIGNATURE))
    if start == SIGNATURE:
        return await _read_binary(stream)
    if not start.startswith(b"PROXY "):
        raise _malformed("the connection does not begin with a PROXY header")
    line = bytearray(start)
    while not line.endswith(b"\r\n"):
        if len(line) >= TEXT_BYTES_MAX:
            raise _malformed("a PROXY header without an end")
        line += await _read_exactly(stream, 1)
    return _parse_text(bytes(line))


def _parse_text(line: bytes) -> str | None:
    """Version 1."""
    if line.startswith(_UNKNOWN) and line[len(_UNKNOWN) : len(_UNKNOWN) + 1] in (b" ", b"\r"):
        return None
    found = _TEXT.fullmatch(line.decode("latin-1"))
    if found is None or any(int(port) > 65_535 for port in found["ports"].split()):
        raise _malformed("a PROXY header that is none")
    family = socket.AF_INET if found["family"] == "TCP4" else socket.AF_INET6
    try:
        for address in (found["source"], found["destination"]):
            socket.inet_pton(family, address)
    except OSError as exc:
        raise _malformed("a PROXY header without addresses") from exc
    return plain_address(found["source"])


async def _read_binary(stream: trio.abc.ReceiveStream) -> str | None:
    """Version 2, after its signature."""
    command, kind, size = struct.unpack("!BBH", await _read_exactly(stream, 4))
    if command not in (_LOCAL, _PROXIED):
        raise _malformed("an unknown version or command of the PROXY protocol")
    if size > BINARY_BYTES_MAX:
        raise _malformed("a PROXY header that is too long")
    body = await _read_exactly(stream, size)
    if command == _LOCAL or kind in (_UNSPECIFIED, _UNSPECIFIED_STREAM):
        return None  # what follows describes nobody
    if kind not in _FAMILIES:
        raise _malformed("a PROXY header for something else than TCP")
    family, address_bytes = _FAMILIES[kind]
    end = 2 * address_bytes + 4
    if size < end:
        raise _malformed("a PROXY header without its addresses")
    _check_tlvs(body[end:])
    return plain_address(socket.inet_ntop(family, body[:address_bytes]))


def _check_tlvs(data: bytes) -> None:
    """What a proxy adds is not used, but has to be whole: else the sizes are wrong, and with them the rest."""
    position = 0
    while position < len(data):
        if len(data) - position < _TLV_HEAD.size:
            raise _malformed("a PROXY header with half a field")
        _, size = _TLV_HEAD.unpack_from(data, position)
        position += _TLV_HEAD.size + size
    if position != len(data):
        raise _malformed("a PROXY header with half a field")


async def _read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise _malformed("the connection ended within the PROXY header")
        data += piece
    return bytes(data)


def _malformed(detail: str) -> ProtocolError:
    return ProtocolError("malformed", detail)
