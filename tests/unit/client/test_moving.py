"""What a device asks of the server to which it should move, and what it does not take for an answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio

from keepstep.client.accounts import make_user
from keepstep.client.http import Response
from keepstep.client.moving import move_device
from keepstep.client.restdevice import make_rest_device
from keepstep.client.server import Server
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError, VerificationError
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.parts import SERVER_KEY
from tests.support.rest_wire import Wire, wired
from tests.support.tokens import ORIGIN

if TYPE_CHECKING:
    from keepstep.client.environment import Environment

THERE: Final = Server("ws://there:8441/v1/connect", ORIGIN, SERVER_KEY)
NOTES: Final = "/api/v1/streams/notes"


@asynccontextmanager
async def at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Wire, Path, Environment, Callable[[], str]]]:
    """A device that has written, and has not read the last of it; where its file says that it belongs."""
    async with wired(monkeypatch) as (wire, _, environment), wire.here.parts.running():
        path = tmp_path / "laptop.sqlite3"
        server = Server("ws://here:8441/v1/connect", ORIGIN, SERVER_KEY)
        made = await trio.to_thread.run_sync(
            make_user, server, path, "laptop", tmp_path / "recovery.txt", PASSPHRASE, environment, CHEAP
        )
        made.store.close()

        def home() -> str:
            with contextlib.closing(open_store(path)) as store:
                return store.identity.device_url

        with pytest.raises(ClientError, match="connect the device there once"):
            await move_device(path, THERE, environment=environment)
        with contextlib.closing(open_store(path)) as store:
            device = await make_rest_device(store, environment=environment)
            await device.publish("notes", b"1")
            await device.read("notes")
            await device.publish_many("notes", [b"2", b"3"])
        yield wire, path, environment, home


def changing(path: str, change: Callable[[Any], Any]) -> Callable[[str, Response], Response]:
    """Change the JSON of answers whose path begins so."""

    def changed(asked: str, response: Response) -> Response:
        if not asked.startswith(path) or response.status != 200:
            return response
        body = msgspec.json.encode(change(msgspec.json.decode(response.body)))
        return Response(response.status, response.content_type, body)

    return changed


async def test_a_device_moves_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what it has written and not read back."""
    async with at_home(tmp_path, monkeypatch) as (wire, path, environment, home):
        await move_device(path, THERE, environment=environment)
        assert home() == THERE.device_url
        assert "notes" in wire.asked


def _other_sig(shown: Any) -> Any:
    return shown | {"signed_head": shown["signed_head"] | {"sig": "A" * 86}}


def _other_payload(page: Any) -> Any:
    first, *others = page["events"]
    return page | {"events": [first | {"sig": "A" * 86}, *others]}


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (NOTES, _other_sig),
        ("/api/v1/events?stream=notes", _other_payload),
        ("/api/v1/events?stream=notes", lambda page: page | {"events": page["events"][1:]}),
        ("/api/v1/events?stream=notes", lambda page: page | {"chain": "0" * 64}),
        ("/api/v1/events?stream=notes", lambda page: page | {"events": []}),
    ],
    ids=["unsigned head", "another event", "a hole", "another chain", "nothing"],
)
async def test_a_server_that_shows_something_else_is_not_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, change: Callable[[Any], Any]
) -> None:
    """The device stays where it is."""
    async with at_home(tmp_path, monkeypatch) as (wire, file, environment, home):
        before = home()
        wire.change = changing(path, change)
        with pytest.raises(VerificationError):
            await move_device(file, THERE, environment=environment)
        assert home() == before


async def test_the_head_of_another_stream_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the server has signed it."""
    async with at_home(tmp_path, monkeypatch) as (wire, path, environment, _):
        answers: dict[str, Response] = {}

        def swap(asked: str, response: Response) -> Response:
            if asked.startswith("/api/v1/streams/"):
                answers.setdefault("first", response)
                return answers["first"]
            return response

        wire.change = swap
        with pytest.raises(VerificationError, match="of another stream"):
            await move_device(path, THERE, environment=environment)


async def test_a_server_without_a_stream_or_without_its_database_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one lacks something, the other may be asked again."""
    async with at_home(tmp_path, monkeypatch) as (wire, path, environment, home):
        before = home()
        wire.answers[NOTES] = Response(404, "application/problem+json", b'{"code": "unknown_stream"}')
        with pytest.raises(ClientError, match="has notes up to #0, and this device knows of #3"):
            await move_device(path, THERE, environment=environment)
        wire.here.parts.database.away = True
        with pytest.raises(ProtocolError, match="unavailable"):
            await move_device(path, THERE, environment=environment)
        wire.here.parts.database.away = False
        assert home() == before
