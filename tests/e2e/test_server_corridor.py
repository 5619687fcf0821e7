"""One signed event's whole way: REST, WebSocket, PostgreSQL, another device; for real, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
import trio
import trio.testing

from keepstep.client import crypto
from keepstep.model import Capability, Kind
from keepstep.protocol.chain import chain_next, event_hash, verify_head
from keepstep.protocol.messages import (
    Accepted,
    Bye,
    CaughtUp,
    Error,
    Events,
    Ping,
    Pong,
    Publish,
    Read,
    ReadResult,
    Resumed,
    Subscribe,
)
from keepstep.suspects import WAIT_MAX_S
from tests.support.database import DatabaseServer
from tests.support.events import DeviceFixture, UserFixture, seed, wire_events
from tests.support.server import RunningServer, running_server
from tests.support.tokens import bearer
from tests.support.wire import Closed, SocketConnection, WireDevice, closing_reason, open_socket


class Client:
    """Users and devices of one server."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    async def register(self, name: str, device: str = "phone") -> DeviceFixture:
        """A new user's first device, through REST; it has read its own genesis."""
        phone = DeviceFixture(UserFixture(name), device)
        genesis = phone.genesis()
        async with httpx.AsyncClient(base_url=self.server.rest_url, timeout=60) as http:
            answer = await http.post(
                "/api/v1/accounts",
                content=msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload]),
                headers={"content-type": "application/msgpack"},
            )
        assert answer.status_code == 201, answer.text
        seq, _, chain, _ = msgspec.msgpack.decode(answer.content)
        phone.seen["$devices"] = seq, chain
        return phone

    @asynccontextmanager
    async def session(self, device: DeviceFixture, **arguments: Any) -> AsyncIterator[WireDevice]:
        """A device's session on its own socket."""
        async with open_socket(self.server.device_url) as end:
            yield await WireDevice.connect(device, end, self.server.started.server_key, **arguments)

    async def enrol(self, author: DeviceFixture, name: str) -> DeviceFixture:
        """Another device of the same user, by an event in ``$devices``."""
        device = DeviceFixture(author.user, name, Capability.PUBLISH | Capability.SUBSCRIBE)
        async with self.session(author, nonce=f"enrol {name}") as session:
            (accepted,) = await session.publish(author.enrol(device)[0])
            author.seen["$devices"] = device.seen["$devices"] = accepted.first_seq, accepted.chain
        return device


@asynccontextmanager
async def serving(data_dir: Path, database_url: str, **settings: Any) -> AsyncIterator[Client]:
    """A server over PostgreSQL."""
    async with running_server(data_dir, database_url=database_url, settings=settings) as server:
        yield Client(server)


async def test_an_event_goes_from_one_device_to_another(data_dir: Path, database_url: str) -> None:
    """Live, signed, chained; the reader recomputes the chain and finds the head that the server signed."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        laptop = await client.enrol(phone, "laptop")
        async with client.session(phone) as author, client.session(laptop) as reader:
            await reader.subscribe("notes")
            await reader.expect(Resumed)
            sent = phone.events("notes", 3)
            (accepted,) = await author.publish(*sent)
            events = await reader.expect(Events)
            caught_up = await reader.expect(CaughtUp)
    chain = phone.user.chain_0("notes")
    for (seq, device_id, received_at_ms, header, sig, payload, _), event in zip(events.rows, sent, strict=True):
        assert (device_id, header, sig, payload) == (phone.device_id, event.header, event.sig, event.payload)
        chain = chain_next(crypto, chain, seq, received_at_ms, event_hash(crypto, header, sig))
    head = verify_head(crypto, client.server.started.server_key, caught_up.head)
    assert chain == events.chain == accepted.chain == head.chain
    assert (head.user_key, head.stream, head.seq) == (phone.user.user_key, "notes", 3)


async def test_a_device_resumes_over_several_pages_into_the_live_stream(data_dir: Path, database_url: str) -> None:
    """Exactly what it missed, once, in order, while more is being published."""
    async with serving(data_dir, database_url, page_events_max=7, tail_stream_bytes_max=0) as client:
        phone = await client.register("alice")
        laptop = await client.enrol(phone, "laptop")
        async with client.session(phone) as author:
            (first,) = await author.publish(*phone.events("notes", 5))
            for _ in range(4):
                await author.publish(*phone.events("notes", 10))
            async with client.session(laptop) as reader:
                await reader.send(Subscribe({"notes": (5, first.chain)}))
                await author.start_publish(*phone.events("notes", 10))
                rows = await reader.receive_events("notes", 50)
                assert [row[0] for row in rows] == list(range(6, 56))
                await author.publish(phone.event("notes"))
                (row,) = await reader.receive_events("notes", 1)
                assert row[0] == 56


async def test_everything_is_still_there_after_a_restart(data_dir: Path, database_url: str) -> None:
    """The same key, positions, author numbers; an event published again is a duplicate."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        event = phone.event("notes")
        async with client.session(phone) as session:
            (accepted,) = await session.publish(event)
    async with serving(data_dir, database_url) as client, client.session(phone) as session:
        assert session.ready.session_no == 2
        (again,) = await session.publish(event)
        assert (again.seq, again.chain) == (accepted.first_seq, accepted.chain)
        await session.subscribe("notes")
        resumed = await session.expect(Resumed)
        assert resumed.author == (1, event.hash)


async def test_two_users_never_meet(data_dir: Path, database_url: str) -> None:
    """Same stream names at the same time: no event, no head, no answer, no hint of the other's crosses."""
    async with serving(data_dir, database_url) as client:
        alice, bob = await client.register("alice"), await client.register("bob")
        async with client.session(alice, resume="all") as hers, client.session(bob, resume="all") as his:
            for _ in range(3):
                await hers.start_publish(*alice.events("notes", 2))
                await his.start_publish(*bob.events("notes", 3))
            for session, device, count in ((hers, alice, 6), (his, bob, 9)):
                rows = await collect(session, "notes", count)
                assert [row[0] for row in rows] == list(range(1, count + 1))
                assert {row[1] for row in rows} == {device.device_id}
                await session.send(Read(1, "$devices", 0, 100), Ping(2))
                await session.expect(Pong)
            # Bob's positions mean nothing in Alice's streams.
            await hers.send(Subscribe({"notes": (9, seed("his chain"))}))
            assert await answer_for(hers, "notes") == "unknown_position"


async def collect(session: WireDevice, stream: str, count: int) -> list[Any]:
    """Rows of one stream among those of others; every head on the way is of this user."""
    rows: list[Any] = []
    while len(rows) < count:
        message = await session.receive()
        if isinstance(message, Events) and message.stream == stream:
            rows += message.rows
    return rows


async def answer_for(session: WireDevice, stream: str) -> str:
    """How a subscription is answered; those of other streams may come first."""
    while (resumed := await session.expect(Resumed)).stream != stream or resumed.answer == "contiguous":
        pass
    return resumed.answer


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"user_key": seed("nobody")},
        {"device_id": bytes(16)},
        {"device_secret": seed("another key")},
    ],
    ids=["unknown user", "unknown device", "wrong key"],
)
async def test_a_stranger_is_refused(data_dir: Path, database_url: str, lie: dict[str, Any]) -> None:
    """The same answer whatever was wrong; the device itself still connects."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        async with open_socket(client.server.device_url) as end:
            with pytest.raises(Closed) as caught:
                await WireDevice.connect(phone, end, client.server.started.server_key, **lie)
            assert (caught.value.code, caught.value.reason) == (4503, "auth_failed")
        async with client.session(phone) as session:
            assert len(await session.publish(phone.event("notes"))) == 1


async def test_a_replayed_handshake_is_refused(data_dir: Path, database_url: str) -> None:
    """What was recorded of a device opens nothing."""
    sent: list[bytes] = []

    class Recording(SocketConnection):
        """Remembers what the device sent."""

        async def send_message(self, message: bytes) -> None:
            sent.append(message)
            await super().send_message(message)

    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        key = client.server.started.server_key
        async with open_socket(client.server.device_url) as end:
            session = await WireDevice.connect(phone, Recording(end.websocket), key)
            await session.send(Bye())
        async with open_socket(client.server.device_url) as end:
            for message in sent:
                await end.send_message(message)
            assert await closing_reason(end.receive_message) == "bad_record"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (bytes(4097), "too_large"),
        (b"\xc1", "malformed"),
        (b"", "malformed"),
        ("text", "malformed"),
        (b"\x91\x63", "unsupported"),
        (b"\x92\x10\x01", "unexpected"),
    ],
)
async def test_a_strangers_bad_frame_is_closed_with_its_code(
    data_dir: Path, database_url: str, frame: Any, reason: str
) -> None:
    """Oversized, no MessagePack, empty, text, unknown, out of turn; and the server goes on."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        async with open_socket(client.server.device_url) as end:
            await end.send_message(frame)
            assert await closing_reason(end.receive_message) == reason
        async with client.session(phone) as session:
            await session.send(Ping(1))
            assert await session.receive() == Pong(1)


@pytest.mark.parametrize("fault", ["forged record", "oversized message", "malformed message"])
async def test_a_devices_bad_frame_ends_its_session_and_loses_nothing(
    data_dir: Path, database_url: str, fault: str
) -> None:
    """What it had published before is stored, once."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        event = phone.event("notes")
        async with client.session(phone) as session:
            await session.publish(event)
            if fault == "forged record":
                await session.end.send_message(bytes(100))
            elif fault == "oversized message":
                await session.end.send_message(bytes(2 * 1024 * 1024 + 17))
            else:
                await session.send(b"\x92\x19\xc0")
            assert isinstance(session.end, SocketConnection)
            expected = {"forged record": "bad_record", "oversized message": "too_large"}.get(fault, "malformed")
            assert await closing_reason(session.end.receive_message) == expected
        async with client.session(phone, nonce="again") as session:
            (again,) = await session.publish(event)
            assert again.seq == 1
            await session.publish(phone.event("notes"))


async def test_a_device_that_floods_with_bad_signatures_waits_alone(data_dir: Path, database_url: str) -> None:
    """Over REST too, whichever way they came; what it sends next is not looked at, and its user's others go on."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        laptop = await client.enrol(phone, "laptop")
        token = await trio.to_thread.run_sync(bearer, client.server.rest_url, phone)
        async with client.session(phone) as flooding, client.session(laptop) as honest:
            forged = replace(phone.sign("notes", b"x", n=1, prev=bytes(16)), sig=bytes(64))
            assert {each.code for each in await flooding.publish(*[forged] * 256)} == {"bad_signature"}
            await flooding.start_publish(forged)
            for _ in range(5):
                (accepted,) = await honest.publish(laptop.event("notes"))
                assert accepted.count == 1
            async with httpx.AsyncClient(
                base_url=client.server.rest_url, headers={"authorization": token}, timeout=60
            ) as http:
                events = wire_events(phone.event("notes"))
                headers = {"content-type": "application/msgpack"}
                refused = await http.post("/api/v1/events", content=events, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (429, "limit_exceeded")
            assert int(refused.headers["retry-after"]) <= WAIT_MAX_S
            # A new connection of the device is let in and reads, and is the same device.
        async with client.session(phone, nonce="again") as again:
            await again.subscribe("notes")
            assert len(await again.receive_events("notes", 5)) == 5


async def test_bad_events_are_answered_one_by_one(data_dir: Path, database_url: str) -> None:
    """Bad signature, wrong or reused number, unknown reserved stream, wrong kind: typed; the good one is stored."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        async with client.session(phone) as session:
            stored = phone.event("notes", b"stored")
            await session.publish(stored)
            prev = stored.hash[:16]
            forged = phone.sign("notes", b"forged", n=2, prev=prev)
            forged_wire = msgspec.msgpack.encode([[forged.header, bytes(64), forged.payload, None]])
            await session.send(Publish(50, msgspec.Raw(forged_wire)))
            (answer,) = (await session.expect(Accepted)).results
            assert answer.code == "bad_signature"  # type: ignore[union-attr]
            answers = await session.publish(
                phone.sign("notes", b"gap", n=3, prev=prev),
                phone.sign("notes", b"other bytes", n=1, prev=bytes(16)),
                phone.sign("$inbox/x", b"", n=1, prev=bytes(16)),
                phone.sign("notes", b"", n=2, prev=prev, kind=Kind.ACCOUNT),
                phone.sign("notes", b"", n=2, prev=prev, kind=99),
                phone.event("notes", b"good"),
            )
            assert [getattr(one, "code", "accepted") for one in answers] == [
                "out_of_order",
                "id_reused",
                "unknown_stream",
                "malformed",
                "unsupported",
                "accepted",
            ]
            assert answers[0].detail == [1, stored.hash]
            assert answers[1].detail == [1, stored.hash]
            assert answers[-1].first_seq == 2


async def test_an_unknown_stream_is_said_so(data_dir: Path, database_url: str) -> None:
    """Reading it by name; subscribing to it waits for its first event."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        async with client.session(phone) as session:
            await session.send(Read(7, "never", 0, 1))
            assert await session.receive() == Error(7, "unknown_stream", None)


async def test_a_database_that_goes_away_costs_time_and_nothing_else(
    data_dir: Path, migrated_server: DatabaseServer
) -> None:
    """Publishing is refused with a time to wait, readiness says so, the tail goes on; then the event is stored."""
    with migrated_server.database() as url:
        name = url.rpartition("/")[2].partition("?")[0]
        async with serving(data_dir, url) as client:
            phone = await client.register("alice")
            first, second = phone.event("notes"), phone.event("notes")
            async with (
                client.session(phone) as session,
                httpx.AsyncClient(base_url=client.server.rest_url, timeout=60) as http,
            ):
                await session.publish(first)
                await trio.to_thread.run_sync(partial(allow_connections, migrated_server, name, allowed=False))
                (refused,) = await session.publish(second)
                assert (refused.code, isinstance(refused.detail[0], int)) == ("unavailable", True)
                assert (await http.get("/health/ready")).status_code == 503
                assert (await http.get("/health/live")).status_code == 200
                await session.send(Read(1, "notes", 0, 10), Ping(2))
                assert await session.expect(Pong) == Pong(2)
                await trio.to_thread.run_sync(partial(allow_connections, migrated_server, name, allowed=True))
                assert await publish_until_accepted(session, second) == 2
                assert (await http.get("/health/ready")).status_code == 200


def allow_connections(server: DatabaseServer, name: str, *, allowed: bool) -> None:
    """Let a database be reached, or end every connection to it and let in no other."""
    with psycopg.connect(server.admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {'true' if allowed else 'false'}")
        if not allowed:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


async def publish_until_accepted(session: WireDevice, event: Any) -> int:
    """As a device does: again after the time it was told; the seq in the end."""
    with trio.fail_after(60):
        while True:
            (answer,) = await session.publish(event)
            if getattr(answer, "code", None) != "unavailable":
                return int(answer.first_seq)
            await trio.sleep((answer.detail[0] or 100) / 1000)


async def test_a_stored_event_needs_no_session_to_be_found_again(data_dir: Path, database_url: str) -> None:
    """A device that never heard the answer publishes the same bytes and learns where they are."""
    async with serving(data_dir, database_url) as client:
        phone = await client.register("alice")
        events = phone.events("notes", 2)
        async with open_socket(client.server.device_url) as end:
            session = await WireDevice.connect(phone, end, client.server.started.server_key)
            await session.send(Publish(1, msgspec.Raw(wire_events(*events))))
        async with client.session(phone, nonce="again") as session:
            await session.publish(*events)
            await session.send(Read(1, "notes", 0, 10))
            result = await session.expect(ReadResult)
            assert [(row[0], row[3]) for row in result.rows] == [(1, events[0].header), (2, events[1].header)]
