"""Which server a device belongs to: its addresses, and the identity key that the device pins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.client.http import raise_for_problem, request
from keepstep.errors import ClientError, ProtocolError
from keepstep.validation import parse_server_key, parse_server_url, rest_url_beside

if TYPE_CHECKING:
    import ssl

DEFAULT_REST_URL: Final = "http://127.0.0.1:8440"
"""Where ``keepstep serve`` answers REST unless configured otherwise."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server as its devices know it.

    Attributes:
        device_url: ``ws://`` or ``wss://``, without the key.
        rest_url: ``http://`` or ``https://``, without a path.
        server_key: the pinned identity key, 32 bytes.
    """

    device_url: str
    rest_url: str
    server_key: bytes

    def __str__(self) -> str:
        return f"{self.device_url}#{self.server_key.hex()}"


class _Told(msgspec.Struct, frozen=True):
    """What ``GET /api/v1/server`` tells, as far as it matters here."""

    device_url: str


async def find_server(
    address: str = DEFAULT_REST_URL, *, rest_url: str | None = None, tls: ssl.SSLContext | None = None
) -> Server:
    """Find a server by one of its addresses.

    Args:
        address: ``ws://host:port/v1/connect#key``, which names everything; or the REST address, ``http://host:port``
            or ``https://host:port``, with ``#key`` where the key is known. A key that is not known is taken as the
            server tells it: safe on this machine or over https, a matter of trust otherwise.
        rest_url: where a ``ws`` address has its REST elsewhere than on the default port, or behind the same proxy.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: it is no such address, nothing answers there, or another server than the one named.
    """
    if address.lower().startswith(("ws://", "wss://")):
        try:
            parsed = parse_server_url(address)
        except ProtocolError as exc:
            raise ClientError(f"{address} is no server's address: {exc.detail}") from exc
        return Server(parsed.url, rest_url or rest_url_beside(parsed.url), parsed.server_key)
    base, _, pinned = address.partition("#")
    base = base.rstrip("/")
    response = await request("GET", f"{base}/api/v1/server", tls=tls)
    raise_for_problem(response)
    try:
        told = msgspec.json.decode(response.body, type=_Told)
        parsed = parse_server_url(told.device_url)
        known_key = parse_server_key(pinned) if pinned else parsed.server_key
    except (ValueError, RecursionError, ProtocolError) as exc:  # the codec's errors are ValueErrors
        raise ClientError(f"what answers at {base} is not a keepstep server") from exc
    if known_key != parsed.server_key:
        raise ClientError(f"the server at {base} shows another key than the one that was named")
    return Server(parsed.url, base, parsed.server_key)
