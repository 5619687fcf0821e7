"""An upgrade request in the shape that WebSocket libraries send, read in one go (RFC 6455 section 4.2.1).

A library that takes any HTTP costs more than all of the cryptography. What differs from the usual shape is left
to it, so nothing is refused here.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from keepstep.validation import URL_PATH

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LINE: Final = re.compile(rb"GET %s(?:\?[!-~]*)? HTTP/1\.1" % re.escape(URL_PATH.encode()))
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~](?:[ -~]*[!-~])?)[ \t]*")
_KEY: Final = re.compile(rb"[0-9A-Za-z+/]{21}[AQgw]==")
"""16 bytes in base64."""
_ONCE: Final = frozenset(
    {b"host", b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol"}
)
"""What a request has to have; twice is not the usual shape."""
_NEVER: Final = frozenset({b"content-length", b"transfer-encoding", b"expect"})


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request to be accepted.

    Attributes:
        headers: as they came, names in small letters.
        acceptance: the answer.
    """

    headers: list[tuple[bytes, bytes]]
    acceptance: bytes


def read_plain_request(head: bytes, subprotocol: bytes) -> PlainRequest | None:
    """A request that asks for our path and ``subprotocol`` in the usual shape; ``None`` for any other.

    Args:
        head: of the request, with the empty line at its end.
        subprotocol: the one to accept.
    """
    first, *lines = head.split(b"\r\n")
    if lines[-2:] != [b"", b""] or _LINE.fullmatch(first) is None:
        return None
    headers: list[tuple[bytes, bytes]] = []
    for line in lines[:-2]:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        headers.append((field[1].lower(), field[2]))
    fields = dict(headers)
    names = [name for name, _ in headers if name in _ONCE]
    if len(names) != len(_ONCE) or set(names) != _ONCE or not _NEVER.isdisjoint(fields):
        return None
    key = fields[b"sec-websocket-key"]
    if (
        fields[b"upgrade"].lower() != b"websocket"
        or fields[b"connection"].lower() != b"upgrade"
        or fields[b"sec-websocket-version"] != b"13"
        or fields[b"sec-websocket-protocol"] != subprotocol
        or _KEY.fullmatch(key) is None
    ):
        return None
    token = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
    acceptance = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n" % (token, subprotocol)
    )
    return PlainRequest(headers, acceptance)
