"""How a device goes on to the server's next identity key: only where the key that it pins announced it (section 1).

Announcements come in ``$devices``, in a session, and over REST, where a device that was away finds all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.client import crypto
from keepstep.client.http import raise_for_problem, request
from keepstep.errors import ClientError, ProtocolError
from keepstep.protocol.succession import ANNOUNCEMENT_BYTES_MAX, decode_announcement, verify_announcement
from keepstep.validation import parse_base64url, parse_server_key

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from keepstep.protocol.succession import Announcement

ANNOUNCEMENTS_MAX: Final = 64
"""Announcements that a server tells at most."""


class _Told(msgspec.Struct):
    """What ``GET /api/v1/server`` says of it."""

    server_key: str
    server_key_announcements: list[str]


def successor(pinned: bytes, announcements: Iterable[Announcement], *, shown: bytes | None = None) -> bytes:
    """The key to which announcements lead from the pinned one, which each of them must have signed.

    Args:
        pinned: the server's identity key as the device knows it.
        announcements: the oldest first, from anywhere; those that do not verify or do not join on are passed over.
        shown: the key that the server says is its own now, where it was asked: the next one may be announced already.

    Returns:
        the last key that is reached, or ``shown`` on the way there; ``pinned`` where nothing leads on, or not to
        ``shown``.
    """
    first = pinned
    for announcement in announcements:
        if pinned == shown:
            break
        try:
            succession = verify_announcement(crypto, announcement)
        except ProtocolError:
            continue
        if succession.old_key == pinned:
            pinned = succession.new_key
    return pinned if shown in (None, pinned) else first


def overdue(pinned: bytes, announcements: Iterable[Announcement], now_ms: int) -> bytes:
    """As ``successor``, over those announcements alone whose old key is no longer to be believed by now."""
    return successor(pinned, [each for each in announcements if verify_announcement(crypto, each).until_ms <= now_ms])


async def read_announcements(rest_url: str, *, tls: ssl.SSLContext | None = None) -> tuple[bytes, list[Announcement]]:
    """What the server says over REST is its key, and what it announces; not verified. Cancel-safe.

    Raises:
        ClientError: the server cannot be reached, or is none.
        ProtocolError: it refuses.
    """
    response = await request("GET", f"{rest_url}/api/v1/server", tls=tls)
    raise_for_problem(response)
    try:
        told = msgspec.json.decode(response.body, type=_Told)
        announcements = [
            decode_announcement(parse_base64url(each, bytes_max=ANNOUNCEMENT_BYTES_MAX, what="an announcement"))
            for each in told.server_key_announcements[:ANNOUNCEMENTS_MAX]
        ]
        return parse_server_key(told.server_key), announcements
    except (ValueError, RecursionError, ProtocolError) as exc:  # the codec's errors are ValueErrors
        raise ClientError(f"what answers at {rest_url} is not a keepstep server") from exc
