"""The one place for loose values from outside: ids, keys, names, sizes, events, addresses.

What arrives as a typed message is checked by its type (``protocol.messages``); what arrives as text or bytes on its
own (REST paths and bodies, the command line, QR codes, configuration, stores) goes through a ``parse_...`` function
here. Each returns the value or raises ``ProtocolError``, never anything else, and never guesses: no space, no prefix,
no other alphabet's digits.
"""

from __future__ import annotations

import base64
import re
import uuid
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from keepstep.errors import ProtocolError
from keepstep.model import (
    DEVICE_ID_BYTES,
    EVENT_ID_BYTES,
    KEY_BYTES,
    STREAM_NAME_BYTES_MAX,
    STREAM_NAME_PATTERN,
)

TEXT_BYTES_MAX: Final = 4096
"""Longest text that any function but ``parse_base64url`` looks at, characters."""
URL_PATH: Final = "/v1/connect"

LABEL_BYTES_MAX: Final = 160
"""Longest device label, UTF-8 bytes: sealed (nonce 24, tag 16, framing) it stays below the 256 of a device entry."""

DEVICE_PORT_DEFAULT: Final = 8441
REST_PORT_DEFAULT: Final = 8440
"""Where ``keepstep serve`` listens unless configured otherwise."""

ORIGIN_BYTES_MAX: Final = 512
"""Longest REST address, characters: a host name of 253, scheme and port, with room to spare."""

_KEY_BASE64URL_CHARACTERS: Final = 43
_PORTS: Final = {"http": 80, "https": 443}

_STREAM_NAME: Final = re.compile(STREAM_NAME_PATTERN)
_HEX: Final = re.compile(r"\A(?:[0-9a-f]{2})*\Z", re.IGNORECASE | re.ASCII)
_UUID: Final = re.compile(r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE | re.ASCII)
_BASE64URL: Final = re.compile(r"\A[A-Za-z0-9_-]*\Z", re.ASCII)

# Curve25519 in Edwards form (RFC 8032 section 5.1)
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


def _malformed(detail: str) -> ProtocolError:
    return ProtocolError("malformed", detail)


# -- text forms ---------------------------------------------------------------------------------------------------


def parse_hex(text: str, *, size: int, what: str) -> bytes:
    """Exactly ``size`` bytes from hexadecimal.

    Raises:
        ProtocolError: ``malformed``.
    """
    if len(text) != 2 * size or not _HEX.match(text):
        raise _malformed(f"{what} is not {2 * size} hexadecimal digits")
    return bytes.fromhex(text)


def parse_base64url(text: str, *, bytes_max: int, what: str) -> bytes:
    """Bytes from base64url without padding (RFC 4648 section 5), in its one canonical spelling.

    Raises:
        ProtocolError: ``too_large`` above ``bytes_max`` bytes, ``malformed``.
    """
    if len(text) > (bytes_max * 4 + 2) // 3:
        raise ProtocolError("too_large", f"{what} is above {bytes_max} bytes")
    try:
        if not _BASE64URL.match(text):
            raise ValueError  # the decoder would skip what is not in the alphabet
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as exc:
        raise _malformed(f"{what} is not base64url") from exc
    if format_base64url(data) != text:  # bits beyond the last byte are set
        raise _malformed(f"{what} is not canonical base64url")
    return data


def format_base64url(data: bytes) -> str:
    """The spelling that ``parse_base64url`` accepts."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


# -- ids ----------------------------------------------------------------------------------------------------------


def parse_uuid(value: str | bytes, *, what: str = "an id") -> bytes:
    """16 bytes from a UUID in its hyphenated form, or as bytes (RFC 9562 section 4); nil and max are refused.

    Raises:
        ProtocolError: ``malformed``.
    """
    if isinstance(value, str):
        if not _UUID.match(value):
            raise _malformed(f"{what} is not a hyphenated UUID")
        value = uuid.UUID(value).bytes
    if len(value) != DEVICE_ID_BYTES:
        raise _malformed(f"{what} is not {DEVICE_ID_BYTES} bytes")
    if value in (bytes(DEVICE_ID_BYTES), b"\xff" * DEVICE_ID_BYTES):
        raise _malformed(f"{what} is the nil or the max UUID")
    return value


def parse_device_id(value: str | bytes) -> bytes:
    """A device id: any UUID but nil and max. Raises as ``parse_uuid``."""
    return parse_uuid(value, what="a device id")


def parse_event_id(value: str | bytes) -> bytes:
    """An event id: a UUID of version 7 (RFC 9562 section 5.7). Raises as ``parse_uuid``."""
    event_id = parse_uuid(value, what="an event id")
    if not is_uuid7(event_id):
        raise _malformed("an event id is not a UUID of version 7")
    return event_id


def is_uuid7(value: bytes) -> bool:
    """Whether 16 bytes carry version 7 and the variant of RFC 9562."""
    return len(value) == EVENT_ID_BYTES and value[6] >> 4 == 7 and value[8] >> 6 == 0b10


# -- keys ---------------------------------------------------------------------------------------------------------


def parse_public_key(value: str | bytes, *, what: str = "a public key") -> bytes:
    """An Ed25519 public key, as 32 bytes, 64 hexadecimal digits or 43 characters of base64url (RFC 8032 section 5.1.3).

    It must be canonical, on the curve, and not of small order: protocol.md section 1 wants all three.

    Raises:
        ProtocolError: ``malformed``.
    """
    if isinstance(value, bytes):
        key = value
    elif len(value) == _KEY_BASE64URL_CHARACTERS:
        key = parse_base64url(value, bytes_max=KEY_BYTES, what=what)
    else:
        key = parse_hex(value, size=KEY_BYTES, what=what)
    if len(key) != KEY_BYTES:
        raise _malformed(f"{what} is not {KEY_BYTES} bytes")
    number = int.from_bytes(key, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= _P:
        raise _malformed(f"{what} is not canonically encoded")
    # x^2 = (y^2 - 1) / (d y^2 + 1); the denominator is never zero, and x exists where the quotient is a square
    numerator, denominator = (y * y - 1) % _P, (_D * y * y + 1) % _P
    square = numerator * pow(denominator, -1, _P) % _P
    if square and pow(square, (_P - 1) // 2, _P) != 1:
        raise _malformed(f"{what} is not on the curve")
    if not square and sign:
        raise _malformed(f"{what} is not canonically encoded")
    # The points of order 1, 2, 4 and 8: y = 1, y = -1, y = 0, and those whose double has y = 0. Doubling gives
    # y' = (y^2 + x^2) / (2 + x^2 - y^2) (twisted Edwards, a = -1), so y' = 0 where x^2 = -y^2.
    if y == 0 or not square or (square + y * y) % _P == 0:
        raise _malformed(f"{what} is of small order")
    return key


def parse_user_id(value: str | bytes) -> bytes:
    """A user id, which is the user's genesis root key. Raises as ``parse_public_key``."""
    return parse_public_key(value, what="a user id")


def parse_server_key(value: str | bytes) -> bytes:
    """A server identity key. Raises as ``parse_public_key``."""
    return parse_public_key(value, what="a server key")


# -- names and labels ---------------------------------------------------------------------------------------------


def parse_stream_name(text: str) -> str:
    """1 to 128 of ``A-Z a-z 0-9 . _ : @ / $ -``; reserved names, which begin with ``$``, are allowed here.

    Raises:
        ProtocolError: ``malformed``.
    """
    if len(text) > STREAM_NAME_BYTES_MAX or not _STREAM_NAME.match(text):
        raise _malformed(f"a stream name is 1 to {STREAM_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ : @ / $ -")
    return text


def parse_application_stream(text: str) -> str:
    """A stream name that is not reserved.

    Raises:
        ProtocolError: ``malformed``; ``forbidden`` for a reserved name.
    """
    name = parse_stream_name(text)
    if name.startswith("$"):
        raise ProtocolError("forbidden", "stream names that begin with $ are reserved")
    return name


def parse_label(text: str) -> str:
    """A device's name as its user types it, before it is sealed: 1 to 160 UTF-8 bytes, one line, printable.

    Surrounding space is removed.

    Raises:
        ProtocolError: ``too_large``, ``malformed``.
    """
    label = text.strip() if len(text) <= TEXT_BYTES_MAX else text
    try:
        size = len(label.encode())
    except UnicodeEncodeError as exc:
        raise _malformed("a label is not Unicode text") from exc
    if size > LABEL_BYTES_MAX:
        raise ProtocolError("too_large", f"a label is above {LABEL_BYTES_MAX} bytes")
    if not label or not label.isprintable():
        raise _malformed("a label is one line of printable text")
    return label


# -- sizes --------------------------------------------------------------------------------------------------------


def parse_size(size: int, *, bytes_max: int, what: str) -> int:
    """A number of bytes within its limit.

    Raises:
        ProtocolError: ``malformed`` below 0, ``too_large`` above ``bytes_max``.
    """
    if size < 0:
        raise _malformed(f"{what} has a negative size")
    if size > bytes_max:
        raise ProtocolError("too_large", f"{what} is above {bytes_max} bytes")
    return size


# -- addresses ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a device connects and which server it accepts there.

    Attributes:
        url: ``ws://host:port/v1/connect``, without the key.
        secure: whether the URL is ``wss``.
        host: name or address; IPv6 without brackets.
        port: 1 to 65535.
        server_key: the pinned identity key, 32 bytes.
    """

    url: str
    secure: bool
    host: str
    port: int
    server_key: bytes

    def __str__(self) -> str:
        return f"{self.url}#{self.server_key.hex()}"


def parse_server_url(text: str) -> ServerAddress:
    """``ws://host:port/v1/connect#<server key in hexadecimal>``, or ``wss``; default ports 80 and 443.

    Raises:
        ProtocolError: ``malformed``: also where the key is missing, since a device trusts no unknown server.
    """
    what = "a server address"
    if len(text) > TEXT_BYTES_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise _malformed(f"{what} is not a URL")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise _malformed(f"{what} is not a URL") from exc
    _check_url(parts, text, what)
    secure = parts.scheme == "wss"
    port = port if port is not None else (443 if secure else 80)
    if not host or port == 0:
        raise _malformed(f"{what} has no host, or port 0")
    server_key = parse_server_key(parse_hex(parts.fragment, size=KEY_BYTES, what="a server key"))
    netloc = f"[{host}]" if ":" in host else host
    return ServerAddress(
        url=f"{parts.scheme}://{netloc}:{port}{URL_PATH}", secure=secure, host=host, port=port, server_key=server_key
    )


def parse_origin(text: str) -> str:
    """``http://host``, ``https://host:port``: where REST is, in the one spelling that devices sign.

    Protocol.md section 2, Over REST. Host and scheme become lower case; the scheme's own port and a last slash go.

    Raises:
        ProtocolError: ``malformed``.
    """
    what = "a REST address"
    if len(text) > ORIGIN_BYTES_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise _malformed(f"{what} is not a URL")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise _malformed(f"{what} is not a URL") from exc
    if parts.scheme not in _PORTS or not host or port == 0:
        raise _malformed(f"{what} is http:// or https:// and a host")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise _malformed(f"{what} has no user, path, query or fragment")
    netloc = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{netloc}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


def rest_url_beside(device_url: str) -> str:
    """Where REST is unless said otherwise: the default port beside devices' default port, else the same port.

    Args:
        device_url: a ``ws`` or ``wss`` address that was checked.
    """
    parts = urlsplit(device_url)
    netloc = parts.netloc
    if parts.port == DEVICE_PORT_DEFAULT:
        netloc = f"{netloc.rpartition(':')[0]}:{REST_PORT_DEFAULT}"
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{netloc}"


def _check_url(parts: SplitResult, text: str, what: str) -> None:
    if parts.scheme not in ("ws", "wss"):
        raise _malformed(f"{what} begins with ws:// or wss://")
    if "@" in parts.netloc or "?" in text:
        raise _malformed(f"{what} has no user, password or query")
    if parts.path != URL_PATH:
        raise _malformed(f"{what} has the path {URL_PATH}")
    if not parts.fragment:
        raise _malformed(f"{what} ends with # and the server's key, which the server prints at its start")
