"""The server's next identity key: what leads on from the pinned one, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.client import crypto, repinning
from keepstep.client.http import Response
from keepstep.client.repinning import overdue, read_announcements, successor
from keepstep.errors import ClientError
from keepstep.protocol.succession import announce, encode_announcement
from keepstep.validation import format_base64url
from tests.support.events import NOW_MS, seed

if TYPE_CHECKING:
    from keepstep.protocol.succession import Announcement

SECRETS = [seed(f"server key {number}") for number in range(4)]
KEYS = [crypto.ed25519_public(secret) for secret in SECRETS]


def step(old: int, new: int, *, until_ms: int = NOW_MS) -> Announcement:
    """One key announces the next."""
    return announce(crypto, old_secret=SECRETS[old], new_secret=SECRETS[new], from_ms=0, until_ms=until_ms)


def test_announcements_lead_from_key_to_key() -> None:
    """Also over several that a device has missed; older ones are passed over."""
    told = [step(0, 1), step(1, 2), step(2, 3)]
    assert [successor(key, told) for key in KEYS] == [KEYS[3]] * 4
    assert successor(KEYS[0], told[:2]) == KEYS[2]
    assert successor(KEYS[0], []) == KEYS[0]


def test_the_next_key_but_one_waits_until_the_server_shows_it() -> None:
    """A device that was away over one change finds the next one announced already; on it would find nobody."""
    told = [step(0, 1), step(1, 2)]
    assert [successor(KEYS[0], told, shown=shown) for shown in KEYS[:3]] == KEYS[:3]
    assert successor(KEYS[0], told, shown=KEYS[3]) == KEYS[0]


def test_what_the_pinned_key_did_not_sign_leads_nowhere() -> None:
    """An impostor's announcement, in another's name or in its own."""
    signed, old_sig, new_sig = step(0, 1)
    forged = (signed, new_sig, new_sig)
    assert successor(KEYS[0], [forged, (b"", old_sig, new_sig), step(2, 3)]) == KEYS[0]


def test_an_old_key_is_left_when_its_time_is_over() -> None:
    """Whoever still has it then may not be the server."""
    told = [step(0, 1), step(1, 2, until_ms=NOW_MS + 1)]
    assert overdue(KEYS[0], told, NOW_MS - 1) == KEYS[0]
    assert overdue(KEYS[0], told, NOW_MS) == KEYS[1]
    assert overdue(KEYS[0], told, NOW_MS + 1) == KEYS[2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"server_key": "00", "server_key_announcements": []}',
        *(
            b'{"server_key": "%064d", "server_key_announcements": ["%s"]}' % (0, each)
            for each in (b"!", b"AAAA", b"A" * 1000)
        ),
    ],
)
async def test_what_is_no_server_announces_nothing(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """The device says so and stays with its key."""

    async def answer(*_: Any, **__: Any) -> Response:
        return Response(200, "application/json", body)

    monkeypatch.setattr(repinning, "request", answer)
    with pytest.raises(ClientError, match="not a keepstep server"):
        await read_announcements("http://here")


async def test_a_server_tells_its_announcements(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were signed."""
    told = step(0, 1)

    async def answer(*_: Any, **__: Any) -> Response:
        announced = format_base64url(encode_announcement(told))
        body = f'{{"server_key": "{KEYS[0].hex()}", "server_key_announcements": ["{announced}"]}}'
        return Response(200, "application/json", body.encode())

    monkeypatch.setattr(repinning, "request", answer)
    assert await read_announcements("http://here") == (KEYS[0], [told])
