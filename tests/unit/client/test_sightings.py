"""When other devices were last connected, with REST in memory."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trio
from trio.testing import MockClock

from keepstep.client import ClientError, Device, NoticeKind, ProtocolError, open_device
from keepstep.client.http import Response
from keepstep.client.rest import RestClient
from keepstep.client.sightings import ASK_EVERY_S, FIRST_S, RETRY_S, UNSEEN_MS
from tests.support.device_server import DeviceServer

PHONE, TABLET = b"p" * 16, b"t" * 16


@dataclass
class MemoryRest:
    """Lists devices, one a page.

    Attributes:
        devices: as the server would list them.
        failure: instead of an answer.
        asked: how often the list was begun.
    """

    devices: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None
    asked: int = 0

    def add(self, device_id: bytes, last_seen_ms: object, *, issued_at_ms: int = 0, revoked: bool = False) -> None:
        """One more."""
        self.devices.append(
            {
                "device_id": str(uuid.UUID(bytes=device_id)),
                "issued_at_ms": issued_at_ms,
                "revoked_at_ms": 1 if revoked else None,
                "last_seen_ms": last_seen_ms,
            }
        )

    async def request(self, _method: str, path: str) -> Response:
        """As ``RestClient.request``."""
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        (first,) = map(int, parse_qs(urlsplit(path).query).get("cursor", ["0"]))
        self.asked += first == 0
        next_cursor = str(first + 1) if first + 1 < len(self.devices) else None
        answer = {"devices": self.devices[first : first + 1], "next_cursor": next_cursor}
        return Response(200, "application/json", msgspec.json.encode(answer))


@asynccontextmanager
async def laptop_of(server: DeviceServer, directory: Path, rest: MemoryRest) -> AsyncIterator[Device]:
    """A new user's device, whose REST is in memory."""
    async with open_device(server.new_user(directory), environment=server.environment) as laptop:
        laptop._sightings._rest = lambda: cast("RestClient", rest)
        yield laptop


def unseen(laptop: Device) -> list[bytes | None]:
    """The devices that its user was told of."""
    return [each.device_id for each in laptop._store.notices() if each.kind is NoticeKind.UNSEEN]


async def test_a_device_that_was_away_for_long_is_told_of_once(server: DeviceServer, tmp_path: Path) -> None:
    """Until it has come back and was away again; neither one that was here, nor one that has ended, nor this one."""
    rest = MemoryRest()
    long_ago_ms = server.now_ms - UNSEEN_MS - 1
    async with laptop_of(server, tmp_path, rest) as laptop:
        own = laptop.identity.device_id
        rest.add(own, long_ago_ms)
        rest.add(PHONE, long_ago_ms)
        rest.add(TABLET, server.now_ms - UNSEEN_MS)
        rest.add(b"e" * 16, long_ago_ms, revoked=True)
        rest.add(b"n" * 16, None, issued_at_ms=server.now_ms)
        seen = {own: long_ago_ms, PHONE: long_ago_ms, TABLET: server.now_ms - UNSEEN_MS}
        for _ in range(2):
            assert await laptop.last_seen() == seen
            assert unseen(laptop) == [PHONE]
        assert laptop._store.seen() == seen
        rest.devices = []
        rest.add(PHONE, server.now_ms + 1)
        server.now_ms += UNSEEN_MS + 2
        assert await laptop.last_seen() == {PHONE: server.now_ms - UNSEEN_MS - 1}
        assert unseen(laptop) == [PHONE, PHONE]
        assert list(laptop._store.seen()) == [PHONE]


async def test_a_device_that_never_came_is_told_of(server: DeviceServer, tmp_path: Path) -> None:
    """From its enrolment on; nothing is known of when it was seen."""
    rest = MemoryRest()
    rest.add(PHONE, None, issued_at_ms=server.now_ms - UNSEEN_MS - 1)
    async with laptop_of(server, tmp_path, rest) as laptop:
        assert await laptop.last_seen() == {}
        assert unseen(laptop) == [PHONE]


@pytest.mark.parametrize("last_seen_ms", [-1, 2**53, "yesterday", 1.5])
async def test_a_server_that_answers_nonsense_is_told_of(
    server: DeviceServer, tmp_path: Path, last_seen_ms: object
) -> None:
    """And nothing of it is kept."""
    rest = MemoryRest()
    rest.add(PHONE, last_seen_ms)
    async with laptop_of(server, tmp_path, rest) as laptop:
        with pytest.raises((ClientError, ProtocolError)):
            await laptop.last_seen()
        assert laptop._store.seen() == {}


async def test_it_is_asked_once_a_day(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """A while after the device was opened; where that fails, an hour later."""
    rest = MemoryRest(failure=ClientError("the server cannot be reached"))
    async with laptop_of(server, tmp_path, rest):
        await trio.sleep(2 * FIRST_S)
        rest.failure = None
        assert rest.asked == 0
        await trio.sleep(RETRY_S)
        assert rest.asked == 1
        await trio.sleep(ASK_EVERY_S)
        assert rest.asked == 2
