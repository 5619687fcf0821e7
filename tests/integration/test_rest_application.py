"""What an application does over REST, over real sockets: an account, a token, publishing, reading, following."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import httpx
import msgspec
import pytest
import trio

from keepstep.protocol.challenge import Purpose
from keepstep.validation import format_base64url, parse_base64url
from tests.support.events import DeviceFixture, SignedEvent, UserFixture, wire_events
from tests.support.server import RunningServer, running_server
from tests.support.tokens import sign_challenge

MSGPACK = {"content-type": "application/msgpack"}


class Account:
    """A user's first device over REST.

    Attributes:
        http: asks the server, with the device's token.
        phone: the device.
    """

    def __init__(self, http: httpx.AsyncClient, phone: DeviceFixture) -> None:
        self.http = http
        self.phone = phone

    async def open(self) -> None:
        """Register, and take a token."""
        await self.register()
        await self.sign_in()

    async def register(self) -> None:
        """Post the genesis."""
        genesis = self.phone.genesis()
        body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
        assert (await self.http.post("/api/v1/accounts", content=body, headers=MSGPACK)).status_code == 201

    async def sign_in(self) -> None:
        """Take a token."""
        body = self._who | await self.sign_challenge("token") | {"device_key": self.phone.device_key.hex()}
        answer = await self.http.post("/api/v1/auth/token", json=body)
        self.http.headers["authorization"] = f"Bearer {answer.json()['access_token']}"

    async def sign_challenge(self, purpose: str) -> dict[str, str]:
        """A nonce and the device's signature."""
        challenge = (await self.http.post("/api/v1/auth/challenge", json=self._who | {"purpose": purpose})).json()
        signature = sign_challenge(
            self.phone,
            parse_base64url(challenge["nonce"], bytes_max=32, what="a nonce"),
            Purpose(purpose),
            server_key=bytes.fromhex(challenge["server_key"]),
            origin=challenge["origin"],
        )
        return {"nonce": challenge["nonce"], "signature": format_base64url(signature)}

    @property
    def _who(self) -> dict[str, str]:
        return {"user_id": self.phone.user.user_key.hex(), "device_id": str(uuid.UUID(bytes=self.phone.device_id))}

    async def publish(self, *events: SignedEvent) -> list[dict[str, Any]]:
        """Publish, and the results."""
        answer = await self.http.post("/api/v1/events", content=wire_events(*events), headers=MSGPACK)
        results: list[dict[str, Any]] = answer.json()["results"]
        return results


@asynccontextmanager
async def account(data_dir: Path, **arguments: Any) -> AsyncIterator[tuple[RunningServer, Account]]:
    """A server, and an account on it."""
    async with (
        running_server(data_dir, **arguments) as server,
        httpx.AsyncClient(base_url=server.rest_url, timeout=30) as http,
    ):
        with trio.fail_after(60):
            opened = Account(http, DeviceFixture(UserFixture("alice"), "phone"))
            await opened.open()
            yield server, opened


class Follower:
    """Server-sent events over a socket of its own, which is simply closed when enough was seen."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT)
        self.text = ""

    @classmethod
    @asynccontextmanager
    async def of(cls, alice: Account, target: str, **headers: str) -> AsyncIterator[Follower]:
        """Ask."""
        url = alice.http.base_url
        assert url.port is not None
        async with await trio.open_tcp_stream(url.host, url.port) as stream:
            follower = cls(stream)
            sent = [("Host", "here"), ("Authorization", alice.http.headers["authorization"]), *headers.items()]
            request = h11.Request(method="GET", target=target, headers=sent)
            connection = follower._connection
            await stream.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))
            yield follower

    @property
    def seqs(self) -> list[int]:
        """Ids of the events so far."""
        return [int(line.removeprefix("id: ")) for line in self.text.splitlines() if line.startswith("id: ")]

    async def more(self, count: int | None = None) -> None:
        """Take what comes until so many events were seen, or until the end."""
        while count is None or len(self.seqs) < count:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(await self._stream.receive_some())
            elif isinstance(event, h11.Response):
                assert event.status_code == 200
                assert (b"content-type", b"text/event-stream") in event.headers
            elif isinstance(event, h11.Data):
                self.text += bytes(event.data).decode()
            else:
                assert isinstance(event, h11.EndOfMessage)
                return


@pytest.mark.slow
async def test_what_is_published_is_followed(data_dir: Path) -> None:
    """What is there, then what comes; a follower that comes back goes on where it was."""
    async with account(data_dir) as (_, alice):
        (accepted,) = await alice.publish(*alice.phone.events("notes", 2))
        assert (accepted["result"], accepted["count"]) == ("accepted", 2)
        async with Follower.of(alice, "/api/v1/events/live?stream=notes") as live:
            await live.more(2)
            await alice.publish(alice.phone.event("notes"))
            await live.more(3)
            assert live.seqs == [1, 2, 3]
        headers = {"Last-Event-ID": "2"}
        async with Follower.of(alice, "/api/v1/events/live?stream=notes", **headers) as live:
            await live.more(1)
            assert live.seqs == [3]


@pytest.mark.slow
async def test_who_waits_is_answered_when_something_is_published(data_dir: Path) -> None:
    """With that event, on a connection that serves on."""
    async with account(data_dir) as (_, alice):
        await alice.publish(alice.phone.event("notes"))
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await alice.http.get("/api/v1/events?stream=notes&after=1&wait_s=30"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await alice.publish(alice.phone.event("notes"))
        assert [event["seq"] for event in answers[0].json()["events"]] == [2]


@pytest.mark.slow
async def test_a_follower_is_told_when_the_server_goes_down(data_dir: Path) -> None:
    """Its answer ends with the reason, and does not keep the server."""
    async with account(data_dir) as (server, alice):
        await alice.publish(alice.phone.event("notes"))
        async with Follower.of(alice, "/api/v1/events/live?stream=notes") as live:
            await live.more(1)
            server.stop.set()
            await live.more()
            assert live.text.endswith('event: end\ndata: {"code":"draining"}\n\n')
        await server.stopped.wait()


@pytest.mark.slow
async def test_a_follower_that_leaves_is_forgotten(data_dir: Path) -> None:
    """Its place is free for the next: more come and go than may be there at a time."""
    async with account(data_dir) as (_, alice):
        await alice.publish(alice.phone.event("notes"))
        for _ in range(20):
            async with Follower.of(alice, "/api/v1/events/live?stream=notes") as live:
                await live.more(1)


@pytest.mark.slow
async def test_a_large_publish_fits_where_other_bodies_do_not(data_dir: Path) -> None:
    """A megabyte of events is taken; the same on another path is refused."""
    async with account(data_dir) as (_, alice):
        events = [alice.phone.event("notes", bytes(250_000)) for _ in range(4)]
        body = {
            "events": [
                {
                    "header": format_base64url(event.header),
                    "sig": format_base64url(event.sig),
                    "payload": format_base64url(event.payload or b""),
                }
                for event in events
            ]
        }
        answer = await alice.http.post("/api/v1/events", json=body)
        assert [result["count"] for result in answer.json()["results"]] == [4]
        elsewhere = await alice.http.post("/api/v1/accounts", json=body)
        assert (elsewhere.status_code, elsewhere.json()["code"]) == (413, "too_large")


async def test_a_head_request_of_a_follower_ends(data_dir: Path) -> None:
    """Nobody would take what follows."""
    async with account(data_dir) as (_, alice):
        await alice.publish(alice.phone.event("notes"))
        answer = await alice.http.head("/api/v1/events/live?stream=notes")
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await alice.http.get("/api/v1/account")).status_code == 200


@pytest.mark.slow
async def test_a_deleted_account_is_let_in_nowhere(data_dir: Path) -> None:
    """Its token ends, its follower is told, and its genesis makes no account again."""
    async with account(data_dir) as (_, alice):
        await alice.publish(alice.phone.event("notes"))
        async with Follower.of(alice, "/api/v1/events/live?stream=notes") as live:
            await live.more(1)
            body = await alice.sign_challenge("delete-account")
            answer = await alice.http.request("DELETE", "/api/v1/account", json=body)
            assert (answer.status_code, answer.json().keys()) == (200, {"receipt", "signature"})
            await live.more()
            assert 'event: end\ndata: {"code":"invalid_token"}' in live.text
        assert (await alice.http.get("/api/v1/account")).status_code == 401
        genesis = DeviceFixture(alice.phone.user, "phone").genesis()
        posted = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
        again = await alice.http.post("/api/v1/accounts", content=posted, headers=MSGPACK)
        assert (again.status_code, again.json()["code"]) == (410, "account_deleted")
