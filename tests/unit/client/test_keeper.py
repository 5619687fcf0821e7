"""What a device that manages does for the others by itself, against a server in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from keepstep.client import Capability, Device, NoticeKind, ProtocolError, VerificationError, open_device
from keepstep.client.keys import generate_content_key, recovery_box, wrap
from keepstep.client.outbox import Draft
from keepstep.client.store import open_store
from keepstep.client.survey import Survey
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Kind
from keepstep.protocol.account_payloads import CheckpointPayload, decode_account, encode_checkpoint, encode_revoke
from keepstep.protocol.keys import decode_keys
from keepstep.protocol.messages import Accepted, Cloned, Publish, ResultError, Revoked
from tests.support.device_server import DeviceServer

HOUR_S = 3600
DAY_MS = 24 * HOUR_S * 1000
MANAGES = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE


@pytest.fixture
def phone_path(tmp_path: Path) -> Path:
    """Where the second device's file will be."""
    return tmp_path / "phone.sqlite3"


@asynccontextmanager
async def opened(server: DeviceServer, path: Path) -> AsyncIterator[Device]:
    """A device that is connected and has read what there is."""
    async with open_device(path, environment=server.environment) as device:
        await device.wait_until_ready()
        await device.wait_until_caught_up(DEVICES_STREAM)
        await device.wait_until_caught_up(KEYS_STREAM)
        yield device


@asynccontextmanager
async def laptop_of(server: DeviceServer, directory: Path) -> AsyncIterator[Device]:
    """A new user's first device."""
    with trio.fail_after(2 * DAY_MS / 1000):
        async with opened(server, server.new_user(directory)) as laptop:
            yield laptop


async def publish(device: Device, *drafts: Draft) -> None:
    """Publish events that have no call of their own, and wait until they are stored and read back."""
    receipts = [await publication.accepted() for publication in await device._publish(drafts)]
    await device._until(lambda: all(device.position(each.stream).seq >= (each.seq or 0) for each in receipts))


def revocation(device_id: bytes, **accepted: int) -> Draft:
    """A revoke event."""
    return Draft(DEVICES_STREAM, encode_revoke(device_id, accepted), kind=Kind.ACCOUNT)


def checkpoints(server: DeviceServer) -> list[CheckpointPayload]:
    """Those that are in ``$devices``."""
    changes = [decode_account(row[5] or b"") for row in server.streams[DEVICES_STREAM].rows]
    return [change for change in changes if isinstance(change, CheckpointPayload)]


async def test_a_checkpoint_comes_once_a_day(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """With what this device has verified of every stream."""
    async with laptop_of(server, tmp_path) as laptop:
        await (await laptop.publish("notes", b"1")).accepted()
        await laptop.wait_until_caught_up("notes")
        server.now_ms += DAY_MS
        await trio.sleep(2 * HOUR_S)
        (checkpoint,) = checkpoints(server)
        notes = laptop.position("notes")
        assert checkpoint.positions["notes"] == (notes.seq, notes.chain)
        assert set(checkpoint.positions) == {DEVICES_STREAM, KEYS_STREAM, "notes"}
        await trio.sleep(6 * HOUR_S)
        assert len(checkpoints(server)) == 1


async def test_another_history_shows_at_a_checkpoint(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """A stream of which another device was shown something else stops; the others go on."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        await (await laptop.publish("notes", b"1")).accepted()
        async with opened(server, phone_path) as phone:
            subscription = await phone.subscribe("notes")
            assert (await anext(subscription)).data == b"1"
            lie = encode_checkpoint({"notes": (1, bytes(32)), "never/read": (1, bytes(32))})
            await publish(laptop, Draft(DEVICES_STREAM, lie, kind=Kind.ACCOUNT))
            with pytest.raises(VerificationError, match="another history"):
                await anext(subscription)
            assert [alarm.stream for alarm in await phone.alarms()] == ["notes"]
            assert phone.failure is None


async def test_a_stream_that_is_held_but_not_followed_is_compared_too(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """A true position changes nothing, another one is an alarm."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        await (await laptop.publish("notes", b"1")).accepted()
        await laptop.wait_until_caught_up("notes")
        async with opened(server, phone_path) as phone:
            await phone.wait_until_caught_up("notes")
            chain = phone.position("notes").chain
        async with opened(server, phone_path) as phone:
            for claimed in (chain, bytes(32)):
                assert await phone.alarms() == []
                checkpoint = encode_checkpoint({"notes": (1, claimed)})
                await publish(laptop, Draft(DEVICES_STREAM, checkpoint, kind=Kind.ACCOUNT))
                await phone._until(lambda: phone.position(DEVICES_STREAM) == laptop.position(DEVICES_STREAM))
            assert [alarm.stream for alarm in await phone.alarms()] == ["notes"]


async def test_a_week_without_a_checkpoint_is_told_once(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """By devices that cannot publish one; again after another week."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
    async with opened(server, phone_path) as phone:
        await trio.sleep(2 * HOUR_S)
        assert await phone.warnings() == []
        for weeks in (1, 2):
            server.now_ms += 7 * DAY_MS
            await trio.sleep(2 * HOUR_S)
            assert [each.kind for each in await phone.warnings()] == [NoticeKind.NO_CHECKPOINT] * weeks


async def test_a_device_that_manages_hands_out_the_epoch_that_another_one_owes(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """A device that signed itself out cannot; the one that manages does it after a while, for who stays."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet")
        async with opened(server, tmp_path / "tablet.sqlite3") as tablet:
            async with opened(server, phone_path) as phone:
                gone = phone.identity.device_id
                await publish_and_end(phone, revocation(gone))
            began_s = trio.current_time()
            await tablet.wait_for_content_epoch(4)
            assert trio.current_time() - began_s == pytest.approx(20)
            keys = decode_keys(server.streams[KEYS_STREAM].rows[-1][5] or b"")
            root_receiver, _ = recovery_box(laptop.identity.user_key)
            assert set(keys.wraps) == {laptop.identity.device_id, tablet.identity.device_id, root_receiver}
            assert await notice(tablet) == (NoticeKind.REVOKED, gone)


async def notice(device: Device) -> tuple[NoticeKind, bytes | None]:
    """The next one."""
    told = await anext(aiter(device.notices()))
    return told.kind, told.device_id


async def publish_and_end(device: Device, draft: Draft) -> None:
    """Publish what ends the device itself, and wait until it knows."""
    await device._publish([draft])
    with pytest.raises(ProtocolError, match="revoked"):
        await device._until(lambda: False)


async def test_a_device_that_ends_has_no_keys_any_more(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """Neither its own nor the content's; nor events, nor an outbox."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        async with opened(server, phone_path) as phone:
            secrets = phone.identity.device_secret, phone.identity.box_secret
            await phone.publish("notes", b"1")
            await publish_and_end(phone, revocation(phone.identity.device_id, notes=1))
            with pytest.raises(ProtocolError, match="its keys and its outbox are gone"):
                await phone.publish("notes", b"2")
            async for told in phone.notices():
                assert told.kind is NoticeKind.REVOKED
                break
    store = open_store(phone_path)
    try:
        assert (store.identity.device_secret, store.content_keys(), store.rows("SELECT * FROM outbox")) == (
            bytes(32),
            [],
            [],
        )
    finally:
        store.close()
    content = phone_path.read_bytes()
    assert not any(secret in content for secret in secrets)


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_device_that_signs_itself_out_is_told_once_its_keys_are_gone(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    server: DeviceServer,
    tmp_path: Path,
    phone_path: Path,
    is_answered: bool,
) -> None:
    """Whether the answer or the news of its end comes first."""

    async def wrote_nothing(_survey: Survey, device_ids: Sequence[bytes]) -> dict[bytes, dict[str, int]]:
        return {device_id: {} for device_id in device_ids}

    monkeypatch.setattr(Survey, "author_numbers", wrote_nothing)
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        async with opened(server, phone_path) as phone:
            if not is_answered:
                server.rewrite = lambda message: [] if isinstance(message, Accepted) else [message]
            await phone.revoke("phone")
            assert phone._store.content_keys() == []


async def test_a_server_that_only_says_so_wipes_nothing(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """The event it shows has to end the device, signed by one that manages."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
    async with opened(server, phone_path) as phone:
        await server.sessions[0].send(Revoked(server.streams[DEVICES_STREAM].rows[1]))
        with pytest.raises(ProtocolError, match="revoked"):
            await phone.wait_until_caught_up("notes")
    async with opened(server, phone_path) as phone:
        assert phone.failure is None


async def test_what_was_written_beyond_a_revocation_no_longer_counts(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """Also where this device had stored it already; a recovery that keeps the device after all brings it back."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        async with opened(server, phone_path) as phone:
            for text in (b"1", b"2", b"3"):
                await (await phone.publish("notes", text)).accepted()
        assert await problems(laptop) == [None] * 3
        await publish(laptop, revocation(phone.identity.device_id, notes=1))
        assert await problems(laptop) == [None, "after_revocation", "after_revocation"]
        with laptop._store.transaction():
            laptop._log.reinstate(phone.identity.device_id)
        assert await problems(laptop) == [None] * 3


async def problems(device: Device) -> list[str | None]:
    """Of the first three events."""
    subscription = await device.subscribe("notes", after=0)
    return [(await anext(subscription)).problem for _ in range(3)]


async def test_a_content_key_for_a_place_that_its_author_had_not_read_is_refused(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """Else a stolen device could make its own epoch the last one for ever."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        async with opened(server, phone_path) as phone:
            known = phone._keyring.all()
            box_key = phone._follower.account.devices[phone.identity.device_id].entry.box_key
            key = generate_content_key(server.environment, after=99)
            await publish(laptop, Draft(KEYS_STREAM, wrap(key, {phone.identity.device_id: box_key}), kind=Kind.KEYS))
            await phone._until(lambda: phone.position(KEYS_STREAM) == laptop.position(KEYS_STREAM))
            assert phone._keyring.all() == known
            assert [alarm.stream for alarm in await phone.alarms()] == [KEYS_STREAM]


async def test_keys_that_the_server_refuses_are_handed_out_later(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """A refusal is no end: a minute later it is tried again."""
    refused = 0

    def refuse(_end: object, message: object) -> list[Accepted] | None:
        nonlocal refused
        if isinstance(message, Publish) and KEYS_STREAM.encode() in bytes(message.events) and refused < 2:
            refused += 1
            return [Accepted(message.rid, [ResultError("forbidden", [])])]
        return None

    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone")
        async with opened(server, phone_path) as phone:
            gone = phone.identity.device_id
        server.answer = refuse  # type: ignore[assignment]
        await publish(laptop, revocation(gone))
        began_s = trio.current_time()
        await laptop.wait_for_new_epoch()
        assert trio.current_time() - began_s >= 120


async def test_a_copied_device_is_told_to_the_others(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """The server sees it connect from more than one place."""
    async with laptop_of(server, tmp_path) as laptop:
        await server.sessions[0].send(Cloned(bytes(16), server.now_ms))
        async for told in laptop.notices():
            assert (told.kind, told.device_id, told.at_ms) == (NoticeKind.CLONED, bytes(16), server.now_ms)
            break


async def test_a_new_device_is_told_to_the_others(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path, phone_path: Path
) -> None:
    """Not to the one that enrolled it, nor to itself; with the end of the wait where it will manage."""
    async with laptop_of(server, tmp_path) as laptop:
        await laptop.enrol(phone_path, "phone", capabilities=MANAGES)
        async with opened(server, phone_path) as phone:
            await laptop.enrol(tmp_path / "tablet.sqlite3", "tablet", capabilities=MANAGES)
            told = []
            async for each in phone.notices():
                told.append((each.kind, each.until_ms))
                if len(told) == 2:
                    break
            assert told == [(NoticeKind.ENROLLED, None), (NoticeKind.MANAGE_PENDING, server.now_ms + DAY_MS)]
            assert await laptop.warnings() == []
            async with opened(server, tmp_path / "tablet.sqlite3") as tablet:
                assert await tablet.warnings() == []
