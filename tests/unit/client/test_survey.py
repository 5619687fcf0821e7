"""Looking through a user's streams for what a device has written, with REST in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trio
from trio.testing import MockClock

from keepstep.client import ClientError, Device, VerificationError, open_device
from keepstep.client import survey as surveys
from keepstep.client.http import Response
from keepstep.client.rest import RestClient
from keepstep.client.survey import Survey
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, inbox_of
from keepstep.validation import format_base64url
from tests.support.device_server import DeviceServer


class MemoryRest:
    """Lists and shows the streams of a server in memory, two at a time.

    Attributes:
        more: names that are listed beside those that are there.
    """

    def __init__(self, server: DeviceServer) -> None:
        self.more: list[str] = []
        self.read: list[str] = []
        self._server = server

    async def request(self, _method: str, path: str) -> Response:
        """As ``RestClient.request``."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        answer = self._streams(query) if parts.path == "/api/v1/streams" else self._events(query)
        return Response(200, "application/json", msgspec.json.encode(answer))

    def _streams(self, query: dict[str, str]) -> dict[str, Any]:
        names = [*self._server.streams, *self.more]
        first = int(query.get("cursor", 0))
        page = [{"stream": name} for name in names[first : first + 2]]
        return {"streams": page, "next_cursor": str(first + 2) if first + 2 < len(names) else None}

    def _events(self, query: dict[str, str]) -> dict[str, Any]:
        self.read.append(query["stream"])
        stream = self._server.stream(query["stream"])
        rows = stream.rows[int(query["after"]) :][:2]
        events = [
            {
                "seq": seq,
                "device_id": f"{device_id.hex()[:8]}-{device_id.hex()[8:12]}-{device_id.hex()[12:16]}-"
                f"{device_id.hex()[16:20]}-{device_id.hex()[20:]}",
                "received_at_ms": received_at_ms,
                "header": format_base64url(header),
                "sig": format_base64url(sig),
                "payload": None if payload is None else format_base64url(payload),
            }
            for seq, device_id, received_at_ms, header, sig, payload, _ in rows
        ]
        chain = stream.chains[rows[-1][0] if rows else 0]
        return {"events": events, "chain": chain.hex(), "head_seq": len(stream.rows)}


def survey_of(device: Device, rest: MemoryRest) -> Survey:
    """A survey by a device."""
    return Survey(
        device._store,
        device._follower,
        device._worker,
        cast("RestClient", rest),
        device.wait_until_caught_up,
        lambda seq: device._until(lambda: device.position(DEVICES_STREAM).seq >= seq),
    )


async def publish(device: Device, stream: str, count: int) -> None:
    """Publish numbers."""
    await device.wait_until_ready()
    for publication in await device.publish_many(stream, [b"%d" % number for number in range(count)]):
        await publication.accepted()


async def test_numbers_come_from_every_stream_but_inboxes(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """What this device holds from the beginning is not read again."""
    rest = MemoryRest(server)
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        async with open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone:
            gone = phone.identity.device_id
            await publish(phone, "journal", 5)
            await publish(phone, "notes", 3)
        await publish(laptop, "mine", 1)
        await laptop.wait_until_caught_up("notes")
        rest.more = [inbox_of(gone), "empty"]
        numbers = await survey_of(laptop, rest).author_numbers([gone, laptop.identity.device_id])
        assert numbers == {
            gone: {"journal": 5, "notes": 3},
            laptop.identity.device_id: {DEVICES_STREAM: 2, KEYS_STREAM: 2, "mine": 1},
        }
        assert set(rest.read) == {"journal", "mine", "empty"}


async def test_what_rest_shows_is_compared_with_what_is_held(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Where this device joined a stream later, the past that is shown has to lead there."""
    rest = MemoryRest(server)
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        async with open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone:
            gone = phone.identity.device_id
            await publish(phone, "notes", 3)
            await laptop.subscribe("notes", start="end")
            await laptop.wait_until_caught_up("notes")
        assert await survey_of(laptop, rest).author_numbers([gone]) == {gone: {"notes": 3}}
        honest = server.streams["notes"]
        server.streams["notes"] = type(honest)(server.user_key, "notes")
        for _, device_id, received_at_ms, header, sig, payload, _ in honest.rows:
            server.streams["notes"].take(device_id, header, sig, payload, received_at_ms=received_at_ms + 1)
        with pytest.raises(VerificationError, match="another history"):
            await survey_of(laptop, rest).author_numbers([gone])


async def test_more_streams_than_a_revocation_can_name_are_refused(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of them is read."""
    monkeypatch.setattr(surveys, "STREAMS_MAX", 3)
    rest = MemoryRest(server)
    rest.more = ["a", "b"]
    async with open_device(server.new_user(tmp_path), environment=server.environment) as laptop:
        await laptop.wait_until_caught_up(DEVICES_STREAM)
        with pytest.raises(ClientError, match="more than 3 streams"):
            await survey_of(laptop, rest).author_numbers([bytes(16)])
    assert rest.read == []


@pytest.mark.parametrize("is_hidden", [False, True])
async def test_an_event_that_knows_a_newer_device_waits_for_it(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, is_hidden: bool
) -> None:
    """``$devices`` may come a little later; where it does not, the server hides it."""
    rest = MemoryRest(server)
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
    async with open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone:
        await phone.wait_until_ready()
        for session in server.sessions:
            session.positions.clear()
        async with open_device(path, environment=server.environment) as laptop:
            author = laptop.identity.device_id
            await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet")
            await publish(laptop, "late", 1)
        async with trio.open_nursery() as nursery:
            if not is_hidden:
                nursery.start_soon(show_devices, server)
            survey = survey_of(phone, rest)
            if is_hidden:
                with pytest.raises(VerificationError, match=r"more of \$devices than the server shows"):
                    await survey.author_numbers([author])
            else:
                assert (await survey.author_numbers([author]))[author]["late"] == 1


async def show_devices(server: DeviceServer) -> None:
    """After a while."""
    await trio.sleep(5)
    (session,) = server.sessions
    session.positions[DEVICES_STREAM] = 2
    await server.push()
