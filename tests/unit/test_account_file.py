"""An account as a file: written by one server, read in and verified by another."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keepstep.account_file import MAGIC, AccountExport, AccountFile, AccountFileError, End
from keepstep.account_import import Imported, import_account
from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import Page
from keepstep.memory import MemoryAccounts, MemoryDatabase, MemoryLog, MemoryMaintenance
from keepstep.model import Kind, Policy
from keepstep.protocol.event import decode_header
from keepstep.protocol.keys import KeysPayload, encode_keys
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_confirm, encode_erase, encode_snapshot
from tests.support.events import DeviceFixture, SignedEvent, seed, submission
from tests.support.parts import SERVER_KEY, Parts

if TYPE_CHECKING:
    from keepstep.model import AccountChange

STREAMS: Final = 5


async def append(
    parts: Parts, device: DeviceFixture, *events: SignedEvent, change: AccountChange | None = None
) -> None:
    """Store events at the clock's time, which must work."""
    principal = await parts.principal(device)
    appended = await parts.log.append(
        [submission(principal, *events)], now_ms=parts.clock.now_ms(), account_change=change
    )
    assert {type(result).__name__ for result in appended.results[0]} == {"ResultAccepted"}


async def see_devices(parts: Parts, device: DeviceFixture) -> None:
    """The device has read the account log."""
    principal = await parts.principal(device)
    head = (await parts.log.stream(principal.user_pk, "$devices")).head
    device.seen["$devices"] = head.seq, head.chain


async def a_life(parts: Parts) -> DeviceFixture:
    """An account in which things happened, some of them at the same moment."""
    phone, laptop = await parts.register("alice", "phone", "laptop")
    await append(parts, laptop, laptop.event("notes", b"at the moment of its enrolment"))
    parts.clock.at_ms += 5
    await append(parts, phone, phone.event("scores", encode_policy(Policy.LATEST), kind=Kind.POLICY))
    for device in (phone, laptop, phone):
        await append(parts, device, device.event("scores", b"score", key=b"k" * 16))
        await append(parts, device, *device.events("notes", 2))
        parts.clock.at_ms += 7
    await append(parts, laptop, laptop.event("farewell"))
    await see_devices(parts, phone)
    event, change = phone.revoke(laptop)
    await append(parts, phone, event, change=change)
    await append(parts, phone, phone.event("notes", b"at the moment of the revocation"))
    await parts.register("bob", "phone")
    return phone


async def nothing() -> None:
    """Allow everything."""


async def export(parts: Parts, device: DeviceFixture) -> bytes:
    """The account's file."""
    principal = await parts.principal(device)
    pieces = AccountExport(parts.log, parts.signer, principal, parts.clock, server_key=SERVER_KEY, check=nothing)
    return b"".join([piece async for piece in pieces])


class Target:
    """Another server's storage."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.log = MemoryLog(self.database)
        self.accounts = MemoryAccounts(self.database)

    async def read_in(self, data: bytes) -> Imported:
        """Read a file in."""
        return await import_account(AccountFile(io.BytesIO(data)), self.log, self.accounts)


def of_user(database: MemoryDatabase, user_key: bytes) -> Any:
    """Everything that is stored of a user, row numbers aside."""
    user_pk = database.user_pk(user_key)
    assert user_pk is not None
    user = database.users[user_pk]
    names = {stream_pk: head.name for stream_pk, head in user.heads.items()}
    return {
        "next root": user.next_root_hash,
        "devices": [(row.entry, row.manage_from_ms, row.revoked) for row in user.devices.values()],
        "heads": {
            head.name: (head.seq, head.chain, head.received_at_ms, head.retention_class, head.authors_packed)
            for head in user.heads.values()
        },
        "events": {
            names[place[1]]: [
                (row.seq, row.received_at_ms, row.header, row.sig, row.payload, row.chain) for row in rows
            ]
            for place, rows in database.events.items()
            if place[0] == user_pk and rows
        },
        "latest": {
            names[place[1]]: winners for place, winners in database.latest.items() if place[0] == user_pk and winners
        },
    }


async def test_an_account_is_the_same_on_another_server() -> None:
    """Places, times, chains, devices and what follows from events; nothing of another account."""
    parts = Parts()
    phone = await a_life(parts)
    target = Target()
    imported = await target.read_in(await export(parts, phone))
    assert of_user(target.database, phone.user.user_key) == of_user(parts.database, phone.user.user_key)
    assert len(target.database.users) == 1
    assert imported == Imported(phone.user.user_key, streams=STREAMS, events=imported.events, stored=imported.events)
    assert imported.events == sum(map(len, target.database.events.values()))


async def test_an_account_that_was_recovered_is_the_same_elsewhere() -> None:
    """A rotation comes from a device that it enrols itself; those that it ended wrote before it."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    await append(parts, laptop, *laptop.events("notes", 2))
    await see_devices(parts, phone)
    rescue = DeviceFixture(phone.user, "rescue", seen=dict(phone.seen))
    parts.clock.at_ms += 3
    event = rescue.rotate(phone)
    body = msgspec.msgpack.encode([event.header, event.sig, event.payload])
    assert (await parts.identity.rotate(phone.user.user_key, body, address="")).is_new
    await append(parts, rescue, rescue.event("notes", b"back again"))
    target = Target()
    imported = await target.read_in(await export(parts, rescue))
    assert of_user(target.database, phone.user.user_key) == of_user(parts.database, phone.user.user_key)
    assert (await target.read_in(await export(parts, rescue))).stored == 0
    assert imported.stored == imported.events == 6


async def test_reading_a_file_in_again_changes_nothing() -> None:
    """It goes on where it stopped, and what a device published here since stays."""
    parts = Parts()
    phone = await a_life(parts)
    data = await export(parts, phone)
    target = Target()
    first = await target.read_in(data)
    again = await target.read_in(data)
    assert (again.events, again.stored) == (first.events, 0)


async def test_what_was_added_since_is_read_in_from_a_newer_file() -> None:
    """The older file is the newer one's beginning."""
    parts = Parts()
    phone = await a_life(parts)
    target = Target()
    await target.read_in(await export(parts, phone))
    parts.clock.at_ms += 1
    await append(parts, phone, phone.event("notes", b"more"))
    assert (await target.read_in(await export(parts, phone))).stored == 1
    assert of_user(target.database, phone.user.user_key) == of_user(parts.database, phone.user.user_key)


async def test_another_history_of_the_account_is_not_mixed_with_this_one() -> None:
    """Neither another first event nor another event at a place that is taken."""
    parts, others = Parts(), Parts()
    phone = await a_life(parts)
    others.clock.at_ms += 1_000
    await others.register("alice", "phone")
    target = Target()
    await target.read_in(await export(parts, phone))
    with pytest.raises(AccountFileError, match=r"\$devices#1: another history"):
        await target.read_in(await export(others, phone))


# -- what is wrong with a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 5, len(MAGIC), len(MAGIC) + 2, len(MAGIC) + 30, -1, -60])
async def test_a_file_that_was_cut_short_is_not_read(length: int) -> None:
    """Not even its beginning is stored."""
    parts = Parts()
    data = await export(parts, await a_life(parts))
    with pytest.raises(AccountFileError, match=r"not an account file|cut short"):
        AccountFile(io.BytesIO(data[:length]))


async def test_a_flipped_bit_is_found() -> None:
    """Wherever it is: in a frame's length, its form, its content, or the hash."""
    parts = Parts()
    data = await export(parts, await a_life(parts))
    for index in range(0, len(data), 97):
        damaged = data[:index] + bytes((data[index] ^ 1,)) + data[index + 1 :]
        with pytest.raises(AccountFileError):
            AccountFile(io.BytesIO(damaged))


def rewritten(data: bytes, change: Any) -> bytes:
    """A file with other frames, and a hash that fits them: what a forger would write."""
    from keepstep import _keepstep

    frames, rest = [], data.removeprefix(MAGIC)
    while rest:
        length = int.from_bytes(rest[:4], "big")
        frames.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    digest, out = bytes(32), MAGIC
    for frame in change([msgspec.msgpack.decode(frame) for frame in frames[:-1]]):
        encoded = msgspec.msgpack.encode(frame)
        digest = _keepstep.blake3(digest + encoded)
        out += len(encoded).to_bytes(4, "big") + encoded
    end = msgspec.msgpack.encode(End(digest))
    return out + len(end).to_bytes(4, "big") + end


def without_last_row(frames: list[Any]) -> list[Any]:
    """The last event of the last stream is left out."""
    return [*frames[:-1], [3, frames[-1][1][:-1]]]


def with_another_payload(frames: list[Any]) -> list[Any]:
    """An event's payload is another one."""
    *rows, last = frames[-1][1]
    return [*frames[:-1], [3, [*rows, [*last[:5], b"forged", None]]]]


def later(frames: list[Any]) -> list[Any]:
    """An event was received later than it was."""
    *rows, last = frames[-1][1]
    return [*frames[:-1], [3, [*rows, [*last[:2], last[2] + 1, *last[3:]]]]]


def swapped(frames: list[Any]) -> list[Any]:
    """Two events change their places."""
    rows = frames[-1][1]
    return [*frames[:-1], [3, [rows[1], rows[0], *rows[2:]]]]


def by_another(frames: list[Any]) -> list[Any]:
    """An event is said to be somebody else's."""
    *rows, last = frames[-1][1]
    return [*frames[:-1], [3, [*rows, [last[0], b"d" * 16, *last[2:]]]]]


def of_another_server(frames: list[Any]) -> list[Any]:
    """The heads are said to be another server's."""
    return [[1, frames[0][1], b"s" * 32, *frames[0][3:]], *frames[1:]]


def of_another_user(frames: list[Any]) -> list[Any]:
    """The file is said to be another account's."""
    return [[1, b"u" * 32, *frames[0][2:]], *frames[1:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_last_row, "do not end in the signed head"),
        (with_another_payload, "refused as malformed"),
        (later, "do not end in the signed head"),
        (swapped, "refused as|do not follow"),
        (by_another, "refused as"),
        (of_another_server, "not signed by the server"),
        (of_another_user, "another account"),
        (lambda frames: frames[:1], "do not follow each other"),
        (lambda frames: [*frames, frames[1]], "do not follow each other"),
        (lambda frames: frames[1:], "do not follow each other"),
    ],
)
async def test_a_forged_file_is_not_believed(change: Any, reason: str) -> None:
    """Although its hash fits: events are signed, chained, and end in a signed head."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    await append(parts, phone, *phone.events("notes", 4))
    forged = rewritten(await export(parts, phone), change)
    with pytest.raises(AccountFileError, match=reason):
        await Target().read_in(forged)


@pytest.mark.parametrize("kind", [Kind.POLICY, Kind.ERASE, Kind.ACCOUNT, Kind.KEYS])
async def test_a_payload_that_nothing_removes_is_not_left_out_of_a_file(kind: Kind) -> None:
    """Without it the stream would follow another policy, or keep what was erased."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    keys = encode_keys(KeysPayload(seed("epoch")[:16], 1, {phone.device_id: bytes(112)}))
    await append(parts, phone, phone.event("$keys", keys, kind=Kind.KEYS))
    policy = phone.event("scores", encode_policy(Policy.FORK), kind=Kind.POLICY)
    await append(parts, phone, policy, phone.event("scores", b"gone"))
    await append(parts, phone, phone.event("scores", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE))

    def without(frames: list[Any]) -> list[Any]:
        for frame in frames:
            for row in frame[1] if frame[0] == 3 else ():
                row[5] = None if decode_header(row[3]).kind == kind else row[5]
        return frames

    data = await export(parts, phone)
    await Target().read_in(data)
    with pytest.raises(AccountFileError, match="refused as malformed"):
        await Target().read_in(rewritten(data, without))


async def test_a_snapshot_that_was_confirmed_and_then_erased_keeps_its_place() -> None:
    """Nobody starts from it any more; its confirmation is an event like others."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    await append(parts, phone, phone.event("notes", b"first"))
    head = (await parts.log.stream((await parts.principal(phone)).user_pk, "notes")).head
    snapshot = encode_snapshot(head, {phone.device_id: 1}, b"state")
    await append(parts, phone, phone.event("notes", snapshot, kind=Kind.SNAPSHOT))
    await append(parts, laptop, laptop.event("notes", encode_confirm(2), kind=Kind.CONFIRM))
    await append(parts, phone, phone.event("notes", encode_erase({phone.device_id: [2]}), kind=Kind.ERASE))
    assert (await Target().read_in(await export(parts, phone))).events == 6


async def test_an_event_whose_payload_has_gone_keeps_its_place() -> None:
    """Its header and signature are checked, and what follows it chains on."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    await append(parts, phone, phone.event("notes", b"soon gone", ttl_s=1), phone.event("notes", b"stays"))
    parts.clock.at_ms += 2_000
    target = Target()
    await target.read_in(await export(parts, phone))
    maintenance = MemoryMaintenance(parts.database, clock=parts.clock)
    assert await maintenance.expire_payloads(now_ms=parts.clock.now_ms(), rows_max=9) == 1
    here = of_user(target.database, phone.user.user_key)
    assert here == of_user(parts.database, phone.user.user_key)
    assert [event[4] for event in here["events"]["notes"]] == [None, b"stays"]


async def test_a_log_that_is_away_is_no_fault_of_the_file() -> None:
    """It may be tried again."""
    parts = Parts()
    data = await export(parts, await a_life(parts))
    target = Target()
    target.database.away = True
    with pytest.raises(Unavailable):
        await target.read_in(data)


# -- writing --------------------------------------------------------------------------------------------------------


async def test_writing_ends_when_it_may_not_go_on() -> None:
    """Without the last frame: what was written is no whole file."""
    parts = Parts()
    phone = await a_life(parts)
    pieces: list[bytes] = []

    async def check() -> None:
        if len(pieces) == 3:
            raise ProtocolError("invalid_token")

    principal = await parts.principal(phone)
    export = AccountExport(parts.log, parts.signer, principal, parts.clock, server_key=SERVER_KEY, check=check)

    async def take_all() -> None:
        async for piece in export:
            pieces.append(piece)  # noqa: PERF401 - what came before the end is kept

    with pytest.raises(ProtocolError, match="invalid_token"):
        await take_all()
    with pytest.raises(AccountFileError, match="cut short"):
        AccountFile(io.BytesIO(b"".join(pieces)))


async def test_a_page_that_does_not_continue_is_not_written() -> None:
    """The file would have a hole."""
    parts = Parts()
    phone = await a_life(parts)

    async def nowhere(*_arguments: Any, after: int, **_keywords: Any) -> Page:
        return Page(after, b"", 0, after, bytes(32), after)

    parts.log.read = nowhere  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="unavailable"):
        await export(parts, phone)


async def test_an_account_that_was_written_to_meanwhile_is_whole() -> None:
    """Up to where it stood when the writing began."""
    parts = Parts()
    phone = await a_life(parts)
    principal = await parts.principal(phone)
    pieces = AccountExport(parts.log, parts.signer, principal, parts.clock, server_key=SERVER_KEY, check=nothing)
    data = await anext(pieces)
    await append(parts, phone, phone.event("notes", b"too late"))
    data += b"".join([piece async for piece in pieces])
    target = Target()
    await target.read_in(data)
    user_pk = target.database.user_pk(phone.user.user_key)
    assert user_pk is not None
    copied = target.database.users[user_pk].head("notes")
    original = await parts.log.stream(principal.user_pk, "notes")
    assert copied is not None
    assert copied.seq == original.head.seq - 1
