"""Reading: pages, positions, heads, what has expired; from the tail and from the database alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import RESUMED_TOGETHER_MAX, Followed
from keepstep.memory.reader import MemoryReader
from keepstep.model import UserPk
from keepstep.postgres.reader import PostgresReader
from keepstep.protocol.messages import ResultAccepted
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PAGE_BYTES_MAX, Place, append, create_account, enrol, read_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.eventlog.store import StreamRow

ADA = UserFixture("ada")
WITHOUT_TAIL = {"tail_bytes_max": 0, "tail_stream_bytes_max": 0}


@pytest.fixture(params=["from the tail", "from the database"])
def options(request: pytest.FixtureRequest) -> dict[str, int]:
    """Of the node that reads."""
    return {} if request.param == "from the tail" else WITHOUT_TAIL


async def test_pages_are_bounded_in_events(place: Place, options: dict[str, int]) -> None:
    """A stream is read in pages of at most that many events."""
    log = place.node(**options)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    for _ in range(3):
        await append(log, principal, *device.events("notes", 5))

    reading = await read_all(log, principal, "notes", events_max=4)

    assert (len(reading.rows), reading.pages) == (15, 4)


async def test_pages_are_bounded_in_bytes(place: Place, options: dict[str, int]) -> None:
    """No page is larger, unless its only event is."""
    log = place.node(**options)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    for size in (3_000, 3_000, 3_000, 40_000, 3_000, 3_000):
        await append(log, principal, device.event("notes", bytes(size)))

    position, counts, sizes = 0, [], []
    while position < 6:
        page = await log.read(
            principal.user_pk, "notes", after=position, events_max=1000, bytes_max=8_000, now_ms=NOW_MS
        )
        position = page.last_seq
        counts.append(page.count)
        sizes.append(len(page.rows))

    assert counts == [2, 1, 1, 2]
    assert [size <= 8_000 for size in sizes] == [True, True, False, True]


async def test_a_page_begins_anywhere(place: Place, options: dict[str, int]) -> None:
    """After any position, also inside what one commit added."""
    log = place.node(**options)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    events = device.events("notes", 6)
    await append(log, principal, *events[:3])
    await append(log, principal, *events[3:])

    for after in range(7):
        reading = await read_all(log, principal, "notes", after=after)
        assert reading.hashes == [event.hash for event in events[after:]]


async def test_at_the_head_a_page_is_empty(place: Place, options: dict[str, int]) -> None:
    """It carries the chain there, and says that nothing is missing."""
    log = place.node(**options)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    (accepted,) = await append(log, principal, *device.events("notes", 2))
    assert isinstance(accepted, ResultAccepted)

    page = await log.read(principal.user_pk, "notes", after=2, events_max=10, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)
    keys = await log.read(principal.user_pk, "$keys", after=0, events_max=10, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)

    assert (page.rows, page.count, page.last_seq, page.chain, page.head_seq) == (b"", 0, 2, accepted.chain, 2)
    assert (keys.rows, keys.last_seq, keys.chain, keys.head_seq) == (b"", 0, ADA.chain_0("$keys"), 0)


async def test_what_is_not_there_is_told_apart(place: Place) -> None:
    """An unknown stream, and a position that the stream does not reach, for every question."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    user_pk = principal.user_pk

    async def code(stream: str, after: int) -> str:
        with pytest.raises(ProtocolError) as caught:
            await log.read(user_pk, stream, after=after, events_max=1, bytes_max=1, now_ms=NOW_MS)
        return caught.value.code

    assert await code("nothing", 0) == "unknown_stream"
    assert await code("notes", 2) == "unknown_position"
    for ask in (log.chain_at(user_pk, "nothing", 0), log.stream(user_pk, "nothing")):
        with pytest.raises(ProtocolError, match="unknown_stream"):
            await ask
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await log.author(user_pk, "nothing", principal.device_pk)
    with pytest.raises(ProtocolError, match="unknown_position"):
        await log.chain_at(user_pk, "notes", 2)
    assert await log.streams(UserPk(user_pk + 1)) == []


async def test_the_chain_is_known_at_every_seq(place: Place) -> None:
    """At 0 it is what user and name make it; after that it covers every event."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 3))

    chains = [await log.chain_at(principal.user_pk, "notes", seq) for seq in range(4)]

    assert chains[0] == ADA.chain_0("notes")
    for after in range(4):
        assert (await read_all(log, principal, "notes", after=after, chain=chains[after])).chain == chains[3]
    assert (await log.stream(principal.user_pk, "notes")).head.chain == chains[3]


async def test_an_author_learns_its_last_number(place: Place) -> None:
    """And zeros where it never wrote."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 3))

    assert await log.author(principal.user_pk, "notes", principal.device_pk) == device.authored["notes"]
    assert await log.author(principal.user_pk, "$keys", principal.device_pk) == (0, bytes(32))


async def test_streams_come_in_their_order(place: Place) -> None:
    """``$devices``, ``$keys``, then by the bytes of the name, whenever they were created."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *(device.event(name) for name in ("b", "B", "a/1", "a-1", "A")))

    names = [info.name for info in await log.streams(principal.user_pk)]

    assert names == ["$devices", "$keys", "A", "B", "a-1", "a/1", "b"]


async def test_an_expired_payload_is_never_served(place: Place, options: dict[str, int]) -> None:
    """From that millisecond on the row comes without it, before and after the clean-up; the chain holds as before."""
    log = place.node(**options)
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes", b"stays"))
    await append(log, principal, device.event("notes", b"goes", ttl_s=60), device.event("notes", b"last"))
    expiry_ms = NOW_MS + 60_000

    before = await read_all(log, principal, "notes", now_ms=expiry_ms - 1)
    after = await read_all(log, principal, "notes", now_ms=expiry_ms)
    assert await place.maintenance.expire_payloads(now_ms=expiry_ms, rows_max=10) == 1
    cleaned = await read_all(log, principal, "notes", now_ms=expiry_ms)
    reset = await read_all(place.node(), principal, "notes", now_ms=expiry_ms - 1)

    assert before.payloads == [b"stays", b"goes", b"last"]
    assert after.payloads == cleaned.payloads == reset.payloads == [b"stays", None, b"last"]
    assert before.chain == after.chain == cleaned.chain


async def test_a_trace_travels_live_and_is_not_stored(place: Place) -> None:
    """It is served from the tail only."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes", trace=b"trace context"))

    live = await read_all(log, principal, "notes")
    stored = await read_all(place.node(), principal, "notes")

    assert [row[6] for row in live.rows] == [b"trace context"]
    assert [row[6] for row in stored.rows] == [None]
    assert live.hashes == stored.hashes


async def test_the_tail_serves_while_the_database_is_away(place: Place) -> None:
    """What it does not reach is unavailable until the database is back."""
    log = place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *device.events("notes", 3))
    place.go_away()

    page = await log.read(principal.user_pk, "notes", after=1, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)
    with pytest.raises(Unavailable):
        await log.read(principal.user_pk, "notes", after=3, events_max=9, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS)
    with pytest.raises(Unavailable):
        await log.streams(principal.user_pk)
    place.come_back()

    assert (page.count, page.last_seq, page.head_seq) == (2, 3, 3)


async def test_pages_with_events_are_counted_by_where_they_came_from(place: Place) -> None:
    """Found in the tail, or missing there and read from the database; asking at the head is neither."""
    writer, reader = place.node(), place.node()
    device = DeviceFixture(ADA, "phone")
    principal = await create_account(place, writer, device)
    await append(writer, principal, *device.events("notes", 4))
    for log in (writer, reader):
        for after in (0, 2, 4):
            await log.read(
                principal.user_pk, "notes", after=after, events_max=2, bytes_max=PAGE_BYTES_MAX, now_ms=NOW_MS
            )

    hits = writer.cache_hits()["tail"], reader.cache_hits()["tail"]

    assert [(each.found, each.missing) for each in hits] == [(2, 0), (0, 2)]


async def test_what_a_device_goes_on_with_is_told_in_one_answer(place: Place) -> None:
    """Heads, what the device wrote and acknowledged, and the chain where it is; nothing of streams not there."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)
    await append(log, on_phone, *phone.events("notes", 5))
    await append(log, on_phone, *phone.events("tasks", 1))
    await place.accounts.save_acks(on_laptop, {"notes": (3, bytes(16))})
    user_pk = on_phone.user_pk
    notes, tasks = await log.stream(user_pk, "notes"), await log.stream(user_pk, "tasks")

    named = await log.follow(on_phone, {"notes": 2, "tasks": 9, "nothing": 0}, every=False)
    every = await log.follow(on_laptop, {"tasks": 0}, every=True)

    assert named == [
        Followed(
            notes, await log.author(user_pk, "notes", on_phone.device_pk), 0, await log.chain_at(user_pk, "notes", 2)
        ),
        Followed(tasks, await log.author(user_pk, "tasks", on_phone.device_pk), 0, None),
    ]
    assert [each.info for each in every] == await log.streams(user_pk)
    assert every[2] == Followed(notes, (0, bytes(32)), 3, await log.chain_at(user_pk, "notes", 3))
    assert every[3] == Followed(tasks, (0, bytes(32)), 0, await log.chain_at(user_pk, "tasks", 0))


async def test_what_is_told_of_all_streams_takes_a_bounded_number_of_questions(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains of streams that are named; of the others at most so many, and none of those that the caller knows."""
    looked_up: list[str] = []
    for reader in (MemoryReader, PostgresReader):
        monkeypatch.setattr(reader, "chain", _counting(reader.chain, looked_up))
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    names = [f"s{number:03}" for number in range(RESUMED_TOGETHER_MAX + 3)]
    for name in names:
        await append(log, principal, *phone.events(name, 2))
    await place.accounts.save_acks(principal, dict.fromkeys(names, (1, bytes(16))))

    found = await log.follow(principal, {names[0]: 1, names[-1]: 2}, every=True, known={*names[:2], names[-1]})
    chains = {each.info.name: each.chain for each in found}

    assert looked_up == [names[0], *names[2:-1]]
    assert [name for name, chain in chains.items() if chain is None] == names[1:2]
    assert chains[names[2]] == await log.chain_at(principal.user_pk, names[2], 1)
    looked_up.clear()
    assert [each.chain for each in await log.follow(principal, {}, every=True)].count(None) == 3
    assert looked_up == names[:RESUMED_TOGETHER_MAX]


def _counting(chain: Callable[[Any, StreamRow, int], bytes | None], looked_up: list[str]) -> Any:
    def counted(self: Any, stream: StreamRow, seq: int) -> bytes | None:
        looked_up.append(stream.name)
        return chain(self, stream, seq)

    return counted
