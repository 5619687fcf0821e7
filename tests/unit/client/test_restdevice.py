"""A device over REST: what it does when the server refuses, is away, or lies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trio

from keepstep.client import restdevice
from keepstep.client.accounts import make_user
from keepstep.client.http import Response
from keepstep.client.restdevice import RestDevice, make_rest_device
from keepstep.client.server import Server
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError, SessionNeeded, VerificationError
from keepstep.memory.restores import begin_epoch
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.events import seed
from tests.support.parts import SERVER_KEY
from tests.support.rest_wire import Wire, wired
from tests.support.tokens import ORIGIN

EVENTS: Final = "/api/v1/events"


@asynccontextmanager
async def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Wire, RestDevice]]:
    """A new user's first device; its genesis is registered when it is opened."""
    async with wired(monkeypatch) as (wire, _, environment), wire.here.parts.running():
        server = Server("ws://here:8441/v1/connect", ORIGIN, SERVER_KEY)
        path = tmp_path / "laptop.sqlite3"
        made = await trio.to_thread.run_sync(
            make_user, server, path, "laptop", tmp_path / "recovery.txt", PASSPHRASE, environment, CHEAP
        )
        made.store.close()
        with contextlib.closing(open_store(path)) as store:
            yield wire, await make_rest_device(store, environment=environment)


def changing(path: str, change: Callable[[Any], Any]) -> Callable[[str, Response], Response]:
    """Change the JSON of answers whose path begins so, on their way."""

    def changed(asked: str, response: Response) -> Response:
        if not asked.startswith(path) or response.status != 200:
            return response
        body = msgspec.json.encode(change(msgspec.json.decode(response.body)))
        return Response(response.status, response.content_type, body)

    return changed


def refusing(code: str, at: int = 0) -> Callable[[str, Response], Response]:
    """Say of every event from ``at`` on that it was refused."""

    def change(answer: Any) -> Any:
        if "results" not in answer:
            return answer
        (accepted,) = answer["results"]
        refused = [{"result": "refused", "code": code}] * (accepted["count"] - at)
        return {"results": [*([accepted | {"count": at}] if at else []), *refused]}

    return changing(EVENTS, change)


async def data(device: RestDevice, stream: str = "notes") -> list[bytes | None]:
    """What a stream holds."""
    return [event.data for event in await device.read(stream)]


async def test_an_event_whose_answer_was_lost_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next publish sends it again, and it counts as stored."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"0")
        wire.change = lambda path, response: Response(503, "text/plain", b"") if path == EVENTS else response
        with pytest.raises(ClientError, match="503"):
            await device.publish("notes", b"1")
        wire.change = lambda _path, response: response
        receipt = await device.publish("notes", b"2")
        assert receipt.seq == 3
        assert await data(device) == [b"0", b"1", b"2"]


async def test_an_event_that_is_refused_for_good_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says why, and what comes after it is signed anew under its number."""
    async with opened(tmp_path, monkeypatch) as (_, device):
        await device.publish("notes", b"1")
        with pytest.raises(ProtocolError, match="too_large"):
            await device.publish("notes", b"".join(seed(str(number)) for number in range(64)))
        assert (await device.publish("notes", b"2")).n == 2
        assert await data(device) == [b"1", b"2"]


async def test_an_event_that_cannot_be_taken_now_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the outbox, and goes first the next time."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"1")
        later = {"results": [{"result": "refused", "code": "rate_limited", "retry_after_ms": 1000}]}
        wire.answers[EVENTS] = Response(200, "application/json", msgspec.json.encode(later))
        with pytest.raises(ClientError, match="safe in the outbox"):
            await device.publish("notes", b"2")
        wire.answers.clear()
        assert (await device.publish("notes", b"3")).seq == 3
        assert await data(device) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("code", ["out_of_order", "id_reused"])
async def test_a_device_that_was_copied_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Over REST nothing is mended; what was accepted before it stays accepted."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"1")
        wire.change = refusing(code, at=1)
        with pytest.raises(ClientError, match="open_device"):
            await device.publish_many("notes", [b"2", b"3"])


@pytest.mark.parametrize(
    "results",
    [
        [],
        [{"result": "accepted", "count": 2, "first_seq": 1, "received_at_ms": 1, "chain": "00" * 32}],
        [{"result": "refused", "code": "never heard of"}],
    ],
    ids=["none", "too many", "unknown code"],
)
async def test_an_answer_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[Any]
) -> None:
    """The event waits in the outbox."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"1")
        wire.answers[EVENTS] = Response(200, "application/json", msgspec.json.encode({"results": results}))
        with pytest.raises(ClientError):
            await device.publish("notes", b"2")
        wire.answers.clear()
        await device.publish("notes", b"3")
        assert await data(device) == [b"1", b"2", b"3"]


async def test_a_duplicate_that_nobody_looked_up_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt says that its place is not known."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("other", b"")
        unknown = {"result": "duplicate", "seq": None, "received_at_ms": None, "chain": None}
        wire.change = changing(EVENTS, lambda answer: {"results": [unknown]} if "results" in answer else answer)
        await device.publish("notes", b"1")
        receipt = await device.publish("notes", b"2")
        assert (receipt.n, receipt.seq) == (2, None)


async def test_many_events_go_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many, and at most so many bytes, at a time; in order all the same."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        monkeypatch.setattr(restdevice, "PUBLISH_EVENTS_MAX", 2)
        monkeypatch.setattr(restdevice, "PUBLISH_BYTES_MAX", 600)
        monkeypatch.setattr(restdevice, "PAGE_EVENTS", 2)
        await device.publish("other", b"")
        wire.asked.clear()
        receipts = await device.publish_many("notes", [bytes([number]) for number in range(5)])
        assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4, 5]
        assert wire.asked.count("events") >= 3
        assert await data(device) == [bytes([number]) for number in range(5)]


def _forge_payload(answer: Any) -> Any:
    for event in answer["events"]:
        event["payload"] = "AAAA"
    return answer


def _drop_first(answer: Any) -> Any:
    return answer | {"events": answer["events"][1:]}


def _other_chain(answer: Any) -> Any:
    return answer | {"chain": "00" * 32}


@pytest.mark.parametrize("lie", [_forge_payload, _drop_first, _other_chain])
async def test_a_server_that_lies_about_a_stream_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any], Any]
) -> None:
    """Every page is verified as over WebSocket."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish_many("notes", [b"1", b"2"])
        wire.change = changing(f"{EVENTS}?stream=notes", lie)
        with pytest.raises(VerificationError):
            await device.read("notes")


async def test_a_server_that_withholds_or_loses_events_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own signed head; and a stream that was there does not go away."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish_many("notes", [b"1", b"2"])
        wire.change = changing(f"{EVENTS}?stream=notes", lambda answer: answer | {"events": []})
        with pytest.raises(ClientError, match="faster than it can be read"):
            await device.read("notes")
        wire.change = lambda _path, response: response
        assert await data(device) == [b"1", b"2"]
        wire.answers["/api/v1/streams/notes"] = Response(404, "application/problem+json", b"{}")
        with pytest.raises(VerificationError, match="no longer has this stream"):
            await device.read("notes")


def _with_field(answer: Any, name: str) -> Any:
    return answer | {"events": [event | {name: "?"} for event in answer["events"]]}


async def test_an_answer_with_broken_fields_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of the server, not as a fault of this program."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"1")
        for name in ("chain", "head_seq", "events"):
            broken = Response(200, "application/json", msgspec.json.encode({name: "?"}))
            wire.change = lambda path, response, broken=broken: (  # type: ignore[misc]
                broken if path.startswith(f"{EVENTS}?stream=notes") else response
            )
            with pytest.raises(ClientError, match="no form that is known"):
                await device.read("notes")
        for name in ("device_id", "header", "sig"):
            wire.change = changing(f"{EVENTS}?stream=notes", lambda answer, name=name: _with_field(answer, name))  # type: ignore[misc]
            with pytest.raises((ClientError, ProtocolError)):
                await device.read("notes")


async def test_a_device_without_a_content_key_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would publish what nobody can read."""
    async with opened(tmp_path, monkeypatch) as (_, device):
        monkeypatch.setattr(device._keyring, "all", list)
        with pytest.raises(ClientError, match="may not write"):
            await device.publish("notes", b"1")


async def test_a_gap_that_was_pruned_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device has of the stream stays."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        await device.publish("notes", b"1")
        assert await data(device) == [b"1"]
        await device.publish("notes", b"2")
        gone = Response(410, "application/problem+json", b'{"code": "pruned"}')
        wire.change = lambda path, response: gone if path.startswith(f"{EVENTS}?stream=notes") else response
        with pytest.raises(SessionNeeded, match="gone on the server; open it with open_device once") as caught:
            await device.read("notes")
        assert (caught.value.stream, caught.value.reason) == ("notes", "pruned")
        wire.change = lambda _path, response: response
        assert await data(device) == [b"1", b"2"]


@pytest.mark.parametrize("reads", [1, 3])
async def test_a_server_that_was_restored_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """Where the stream went back, and only there; nobody is taken for a liar. The outbox keeps what waits."""
    async with opened(tmp_path, monkeypatch) as (wire, device):
        database = wire.here.parts.database
        await device.publish("notes", b"1")
        await device.publish("diary", b"1")
        assert await data(device, "diary") == [b"1"]
        await device.publish("diary", b"2")
        *_, user = database.users.values()
        heads, events = dict(user.heads), {place: list(rows) for place, rows in database.events.items()}
        await device.publish_many("notes", [b"2", b"3", b"4"][:reads])
        await device.read("notes")
        await device.publish("later", b"1")
        user.heads = heads
        database.events.clear()
        database.events.update(events)
        begin_epoch(database, at_least=1)
        assert await data(device, "diary") == [b"1", b"2"]
        for stream in ("notes", "later"):
            with pytest.raises(SessionNeeded, match="restored from a backup that is older") as caught:
                await device.read(stream)
            assert (caught.value.stream, caught.value.reason) == (stream, "restored")
        assert device._store.alarms() == []
