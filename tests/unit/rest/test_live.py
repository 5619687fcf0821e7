"""Events as they come, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError
from keepstep.rest.endpoints import Call, NoParameters
from keepstep.rest.live import LiveEvents, LiveQuery
from tests.support.events import DeviceFixture, SignedEvent, submission
from tests.support.rest import Site, site


async def append(here: Site, device: DeviceFixture, *events: SignedEvent) -> None:
    """Store events, past the publisher."""
    principal = await here.parts.principal(device)
    await here.parts.log.append([submission(principal, *events)], now_ms=here.parts.clock.now_ms())


@asynccontextmanager
async def following(**changes: Any) -> AsyncIterator[tuple[Site, DeviceFixture, LiveEvents]]:
    """A device with one event in ``notes``, and the answer that goes on after it, past its hello."""
    async with site(**changes) as here:
        (phone,) = await here.parts.register("alice", "phone")
        token = await here.token(phone)
        await append(here, phone, phone.event("notes", b"first"))
        call = Call(
            services=here.services,
            path=NoParameters(),
            query=LiveQuery(stream="notes"),
            body=None,
            headers=token,
            address="",
            request_id="mine",
            device=await here.parts.principal(phone),
        )
        live = LiveEvents(call, after=1)
        assert await anext(live) == b"retry: 1000\n\n"
        yield here, phone, live
        await live.aclose()
        await live.aclose()
        assert not here.services.watches._by_user


def seqs(piece: bytes) -> list[int]:
    """The seqs of a piece's events, which are their ids."""
    found = []
    for event in piece.decode().removesuffix("\n\n").split("\n\n"):
        number, kind, data = event.split("\n")
        assert kind == "event: event"
        found.append(msgspec.json.decode(data.removeprefix("data: "))["seq"])
        assert number == f"id: {found[-1]}"
    return found


async def test_what_is_there_comes_first_then_what_comes(autojump_clock: trio.testing.MockClock) -> None:
    """In order, each once, and at once."""
    async with following() as (here, phone, live):
        await append(here, phone, *phone.events("notes", 2))
        assert seqs(await anext(live)) == [2, 3]

        async def publish() -> None:
            await trio.sleep(5)
            await append(here, phone, phone.event("elsewhere"))
            await append(here, phone, phone.event("notes"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            assert seqs(await anext(live)) == [4]
        assert trio.current_time() == 5


async def test_a_slow_reader_is_given_larger_pages() -> None:
    """What it did not take is not held for it but read when it does."""
    async with following() as (here, phone, live):
        for event in phone.events("notes", 5):
            await append(here, phone, event)
        assert seqs(await anext(live)) == [2, 3, 4, 5, 6]


async def test_silence_is_broken_every_fifteen_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """And what a lost hint would have told is found then."""
    async with following() as (here, phone, live):
        assert await anext(live) == b": nothing new\n\n"
        assert trio.current_time() == 15
        here.services.watches._by_user.clear()
        await append(here, phone, phone.event("notes"))
        here.services.watches._by_user[(await here.parts.principal(phone)).user_pk] = {live._watch}  # type: ignore[arg-type]
        assert seqs(await anext(live)) == [2]


@pytest.mark.parametrize("code", ["invalid_token", "unavailable"])
async def test_it_ends_within_a_second_of_a_revocation(autojump_clock: trio.testing.MockClock, code: str) -> None:
    """Saying why; nothing follows."""
    async with following() as (here, _, live):
        here.tokens.away = ProtocolError(code)
        assert await anext(live) == f'event: end\ndata: {{"code":"{code}"}}\n\n'.encode()
        with pytest.raises(StopAsyncIteration):
            await anext(live)
        assert trio.current_time() < 1


async def test_it_ends_when_the_server_goes_down(autojump_clock: trio.testing.MockClock) -> None:
    """While it waits."""
    draining: list[bool] = []
    async with following(is_draining=lambda: bool(draining)) as (_, _, live):
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await trio.sleep(3)
                draining.append(True)

            nursery.start_soon(drain)
            assert b'"draining"' in await anext(live)
        assert trio.current_time() < 4


async def test_it_ends_after_ten_minutes(autojump_clock: trio.testing.MockClock) -> None:
    """The client goes on from where it is."""
    async with following() as (_, _, live):
        pieces = [piece async for piece in live]
        assert set(pieces) == {b": nothing new\n\n"}
        assert trio.current_time() == 600


async def test_it_ends_where_the_log_lost_its_position() -> None:
    """Rather than guess."""
    async with following() as (here, _, live):

        async def lost(*_arguments: Any, **_keywords: Any) -> Any:
            raise ProtocolError("unknown_position")

        here.parts.log.read = lost  # type: ignore[method-assign]
        assert b'"unknown_position"' in await anext(live)


async def test_one_too_many_is_refused_before_it_begins() -> None:
    """As a problem, not as an answer that ends at once."""
    async with following() as (here, phone, _):
        user_pk = (await here.parts.principal(phone)).user_pk
        held = [here.services.watches.add(user_pk) for _ in range(15)]
        answer = await here.http.get("/api/v1/events/live?stream=notes", headers=await here.token(phone))
        assert (answer.status_code, answer.json()["code"]) == (429, "limit_exceeded")
        for watch in held:
            here.services.watches.remove(user_pk, watch)


@pytest.mark.parametrize("last", ["x", "-1", "1.0", "", "9" * 30])
async def test_a_last_event_id_is_a_seq(last: str) -> None:
    """Anything else is malformed."""
    async with following() as (here, phone, _):
        headers = {**await here.token(phone), "last-event-id": last}
        answer = await here.http.get("/api/v1/events/live?stream=notes", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


async def test_a_last_event_id_goes_before_the_query() -> None:
    """The URL of a client that reconnects still says where it began."""
    async with following() as (here, phone, _):
        headers = {**await here.token(phone), "last-event-id": "7"}
        answer = await here.http.get("/api/v1/events/live?stream=notes&after=1", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "unknown_position")
