"""Presence and signals between devices, against a server in memory that lies where a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing

from keepstep.client import ClientError, Device, DeviceAway, DevicePresence, ProtocolError, live, open_device
from keepstep.client.live import PRESENCE_INTERVAL_S, SIGNALS_QUEUE_MAX
from keepstep.client.livesealing import (
    SIGNAL_DATA_BYTES_MAX,
    STATE_BYTES_MAX,
    LivePlace,
    decode_state,
    encode_state,
    open_live,
    seal_live,
)
from keepstep.client.payload import NONCE_BYTES, ContentKey, PayloadError, content_epoch_of
from keepstep.client.store import open_store
from keepstep.protocol.messages import (
    PRESENCE_BYTES_MAX,
    SIGNAL_BYTES_MAX,
    Error,
    Presence,
    PresenceFrom,
    Signal,
    SignalFrom,
    Signalled,
)
from tests.support.device_server import START_MS, DeviceServer

if TYPE_CHECKING:
    from trio.testing import MockClock

    from keepstep.client import PresenceChanges, Signals

KEY: Final = ContentKey(content_epoch_of(b"k" * 32), 1, b"k" * 32, b"i" * 32)
PLACE: Final = LivePlace(b"u" * 32, b"a" * 16, b"r" * 16, b"s" * 16)


@pytest.fixture
async def pair(server: DeviceServer, tmp_path: Path) -> AsyncIterator[tuple[Device, Device]]:
    """Two connected devices of one user that know of each other."""
    async with two(server, tmp_path) as devices:
        yield devices


@asynccontextmanager
async def two(server: DeviceServer, directory: Path) -> AsyncIterator[tuple[Device, Device]]:
    """A laptop and a phone; each has been told that the other is here."""
    path = server.new_user(directory)
    async with open_device(path, environment=server.environment) as laptop:
        await laptop.enrol(directory / "phone.sqlite3", "phone")
        async with open_device(directory / "phone.sqlite3", environment=server.environment) as phone:
            await anext(laptop.presences())
            await anext(phone.presences())
            yield laptop, phone


async def nothing_from(source: PresenceChanges | Signals) -> bool:
    """Whether an iterator has nothing to give once everything has come to rest."""
    with trio.move_on_after(0.01):
        await anext(source)
        return False
    return True


# -- presence -------------------------------------------------------------------------------------------------------


async def test_devices_are_told_of_each_other(autojump_clock: MockClock, pair: tuple[Device, Device]) -> None:
    """That they are here, without having set anything, and whatever they set then."""
    laptop, phone = pair
    changes = laptop.presences()
    first = await anext(changes)
    assert first == DevicePresence(phone.identity.device_id, True, None, START_MS, START_MS)
    await phone.set_presence(b"typing")
    assert (await anext(changes)).state == b"typing"
    await phone.set_presence(None)
    assert (await anext(changes)).state is None


async def test_states_are_told_once_a_second(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device]
) -> None:
    """The first at once, then the last one; one that is as it was costs nothing."""
    laptop, phone = pair
    changes = laptop.presences()
    await anext(changes)
    await trio.sleep(2 * PRESENCE_INTERVAL_S)
    before = len(server.messages(Presence))
    await phone.set_presence(b"1")
    assert (await anext(changes)).state == b"1"
    for state in (b"2", b"3", b"3"):
        await phone.set_presence(state)
    assert (await anext(changes)).state == b"3"
    await phone.set_presence(b"3")
    await trio.sleep(5 * PRESENCE_INTERVAL_S)
    assert len(server.messages(Presence)) == before + 2


async def test_a_device_that_goes_is_away(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """And cannot be signalled any more."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        changes = laptop.presences()
        async with open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone:
            phone_id = phone.identity.device_id
            await anext(changes)
        assert await anext(changes) == DevicePresence(phone_id, False, None, START_MS, None)
        with pytest.raises(DeviceAway):
            await laptop.signal(phone_id, b"hello")


async def test_without_a_connection_nobody_is_known_to_be_here(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device]
) -> None:
    """With the next one everybody is again, also those that have told nothing new since."""
    laptop, phone = pair
    changes = laptop.presences()
    await anext(changes)
    next(each for each in server.sessions if each.device_id == laptop.identity.device_id).transport.close(None)
    assert not (await anext(changes)).connected
    with pytest.raises(ClientError, match="no connection"):
        await laptop.signal(phone.identity.device_id, b"hello")
    assert (await anext(changes)).connected


async def test_a_state_that_was_shown_before_is_not_shown_again(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device]
) -> None:
    """A server that goes back to an earlier state, or one of an earlier session, is not believed."""
    laptop, phone = pair
    changes = laptop.presences()
    await anext(changes)
    await phone.set_presence(b"later")
    assert (await anext(changes)).state == b"later"
    at_laptop = next(each for each in server.sessions if each.device_id == laptop.identity.device_id)
    for told in server.messages(Presence)[:-1]:
        await at_laptop.send(PresenceFrom([(phone.identity.device_id, told.sealed, server.now_ms)]))
    assert await nothing_from(changes)


@pytest.mark.parametrize("lie", ["other author", "itself", "a stranger", "not sealed", "another form"])
async def test_what_does_not_open_as_that_devices_state_is_not_shown(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device], lie: str
) -> None:
    """The server cannot put words into a device's mouth."""
    laptop, phone = pair
    changes = laptop.presences()
    await anext(changes)
    await phone.set_presence(b"true")
    await anext(changes)
    sealed = server.messages(Presence)[-1].sealed
    key = laptop._keyring.current()
    wrong = seal_live(
        key,
        LivePlace(laptop.identity.user_key, phone.identity.device_id),
        b"\xc0",
        session=b"\xff" * 16,
        counter=1,
        nonce=bytes(NONCE_BYTES),
    )
    author, told = {
        "other author": (phone.identity.device_id, own_state(server, laptop)),
        "itself": (laptop.identity.device_id, own_state(server, laptop)),
        "a stranger": (bytes(16), sealed),
        "not sealed": (phone.identity.device_id, b"here"),
        "another form": (phone.identity.device_id, wrong),
    }[lie]
    at_laptop = next(each for each in server.sessions if each.device_id == laptop.identity.device_id)
    await at_laptop.send(PresenceFrom([(author, told, server.now_ms)]))
    assert await nothing_from(changes)


def own_state(server: DeviceServer, device: Device) -> bytes:
    """The state that a device's session has told."""
    (sealed,) = [each.sealed for each in server.sessions if each.device_id == device.identity.device_id]
    assert sealed is not None
    return sealed


async def test_states_of_devices_that_are_not_known_are_bounded(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may become known; beyond a limit they are forgotten."""
    monkeypatch.setattr(live, "PRESENCES_MAX", 3)
    laptop, _ = pair
    at_laptop = next(each for each in server.sessions if each.device_id == laptop.identity.device_id)
    strangers: list[Any] = [(bytes([number]) * 16, b"sealed", server.now_ms) for number in range(10)]
    await at_laptop.send(PresenceFrom(strangers))
    await trio.testing.wait_all_tasks_blocked()
    assert len(laptop._live._sealed) == 3


async def test_a_device_without_keys_tells_its_state_when_they_come(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """A new device has none in its first moments; and what it is shown then, it opens then."""
    path = server.new_user(tmp_path)
    async with open_device(path, environment=server.environment) as laptop:
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
    store = open_store(tmp_path / "phone.sqlite3")
    assert store.content_keys() == []
    store.close()
    async with (
        open_device(path, environment=server.environment) as laptop,
        open_device(tmp_path / "phone.sqlite3", environment=server.environment) as phone,
    ):
        assert (await anext(laptop.presences())).device_id == phone.identity.device_id
        assert (await anext(phone.presences())).device_id == laptop.identity.device_id


async def test_a_revoked_device_is_not_here(
    autojump_clock: MockClock, pair: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server says, from the moment on in which its end is known."""
    laptop, phone = pair
    changes = laptop.presences()
    await anext(changes)
    monkeypatch.setattr(laptop._live, "_is_live", lambda _device_id: False)
    laptop._live.refresh()
    gone = await anext(changes)
    assert (gone.device_id, gone.connected) == (phone.identity.device_id, False)
    signals = laptop.signals()
    await phone.signal(laptop.identity.device_id, b"still here")
    assert await nothing_from(signals)


# -- signals --------------------------------------------------------------------------------------------------------


async def test_a_signal_arrives_once(autojump_clock: MockClock, pair: tuple[Device, Device]) -> None:
    """At the device it is for, with its author."""
    laptop, phone = pair
    here, elsewhere = phone.signals(), laptop.signals()
    await laptop.signal(phone.identity.device_id, b"ring")
    received = await anext(here)
    assert (received.device_id, received.data) == (laptop.identity.device_id, b"ring")
    assert await nothing_from(here)
    assert await nothing_from(elsewhere)


async def test_a_replayed_signal_is_dropped(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device]
) -> None:
    """In the same session, and in every later one."""
    laptop, phone = pair
    signals = phone.signals()
    for data in (b"1", b"2"):
        await laptop.signal(phone.identity.device_id, data)
        assert (await anext(signals)).data == data

    async def replay() -> None:
        (at_phone,) = [each for each in server.sessions if each.device_id == phone.identity.device_id]
        for message in server.messages(Signal):
            await at_phone.send(SignalFrom(laptop.identity.device_id, message.sealed))

    await replay()
    assert await nothing_from(signals)
    (at_phone,) = [each for each in server.sessions if each.device_id == phone.identity.device_id]
    at_phone.transport.close(None)
    await phone.wait_until_disconnected()
    await phone.wait_until_connected()
    await trio.testing.wait_all_tasks_blocked()
    await replay()
    assert await nothing_from(signals)


@pytest.mark.parametrize("lie", ["changed", "other author", "not sealed"])
async def test_a_signal_that_does_not_open_is_dropped(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device], lie: str
) -> None:
    """Nobody but a device of the user can make one."""
    laptop, phone = pair
    signals = phone.signals()

    def forge(message: Any) -> list[Any]:
        if not isinstance(message, SignalFrom):
            return [message]
        sealed = {"changed": message.sealed[:-1] + b"\0", "not sealed": b"ring"}.get(lie, message.sealed)
        author = bytes(16) if lie == "other author" else message.device_id
        return [SignalFrom(author, sealed)]

    server.rewrite = forge
    await laptop.signal(phone.identity.device_id, b"ring")
    assert await nothing_from(signals)


@pytest.mark.parametrize(
    ("answer", "error", "what"),
    [
        (Error(0, "device_away", None), DeviceAway, "not connected"),
        (Error(0, "rate_limited", 60), ProtocolError, "rate_limited"),
        (Error(0, "of a later version", None), ProtocolError, "internal"),
    ],
)
async def test_why_a_signal_was_not_handed_on_is_raised(
    autojump_clock: MockClock,
    server: DeviceServer,
    pair: tuple[Device, Device],
    answer: Error,
    error: type[Exception],
    what: str,
) -> None:
    """By the call that sent it; the session goes on."""
    laptop, phone = pair

    def refuse(_end: object, message: object) -> list[Any] | None:
        if isinstance(message, Signal):
            unknown = Signalled(message.rid + 1000)  # answers what was not asked
            return [unknown, Error(None, "forbidden", None), Error(message.rid, answer.code, answer.retry_after_ms)]
        return None

    server.answer = refuse
    with pytest.raises(error, match=what):
        await laptop.signal(phone.identity.device_id, b"ring")
    assert laptop.connected


async def test_a_signal_whose_connection_ends_is_not_known_to_have_arrived(
    autojump_clock: MockClock, server: DeviceServer, pair: tuple[Device, Device]
) -> None:
    """The caller is told so."""
    laptop, phone = pair

    def cut(end: Any, message: object) -> list[Any] | None:
        if isinstance(message, Signal):
            end.transport.close(None)
            return []
        return None

    server.answer = cut
    with pytest.raises(ClientError, match="not known"):
        await laptop.signal(phone.identity.device_id, b"ring")


async def test_signals_under_way_are_bounded(
    autojump_clock: MockClock,
    server: DeviceServer,
    pair: tuple[Device, Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one is refused here."""
    monkeypatch.setattr(live, "SIGNALS_UNANSWERED_MAX", 1)
    laptop, phone = pair
    server.answer = lambda _end, message: [] if isinstance(message, Signal) else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(laptop.signal, phone.identity.device_id, b"1")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ClientError, match="wait for their answer"):
            await laptop.signal(phone.identity.device_id, b"2")
        nursery.cancel_scope.cancel()
    assert not laptop._live._unanswered


async def test_a_slow_reader_loses_the_oldest_signals(autojump_clock: MockClock, pair: tuple[Device, Device]) -> None:
    """And is told how many."""
    laptop, phone = pair
    signals = phone.signals()
    for number in range(SIGNALS_QUEUE_MAX + 2):
        await laptop.signal(phone.identity.device_id, b"%d" % number)
    await trio.testing.wait_all_tasks_blocked()
    assert signals.lost == 2
    assert (await anext(signals)).data == b"2"


async def test_what_is_too_long_is_refused_before_it_is_sent(pair: tuple[Device, Device]) -> None:
    """With the limit in the message."""
    laptop, phone = pair
    with pytest.raises(ClientError, match=str(STATE_BYTES_MAX)):
        await laptop.set_presence(bytes(STATE_BYTES_MAX + 1))
    with pytest.raises(ClientError, match=str(SIGNAL_DATA_BYTES_MAX)):
        await laptop.signal(phone.identity.device_id, bytes(SIGNAL_DATA_BYTES_MAX + 1))


async def test_a_devices_sessions_are_named_in_order_whatever_its_clock_says(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """Else its peers would take what it says after its clock was set back for a replay."""
    path = server.new_user(tmp_path)
    names = []
    for at_ms in (START_MS, START_MS - 1_000_000, START_MS + 1_000_000):
        server.now_ms = at_ms
        async with open_device(path, environment=server.environment) as laptop:
            await laptop.wait_until_connected()
            await trio.testing.wait_all_tasks_blocked()
            names.append(laptop._live._session)
    assert names == sorted(names)
    assert len(set(names)) == 3


# -- sealing --------------------------------------------------------------------------------------------------------


def sealed(plaintext: bytes = b"data", place: LivePlace = PLACE, key: ContentKey = KEY) -> bytes:
    """Sealed for a place."""
    return seal_live(key, place, plaintext, session=b"x" * 16, counter=3, nonce=bytes(NONCE_BYTES))


def test_what_was_sealed_opens_with_its_session_and_counter() -> None:
    """By which a replay shows."""
    opened = open_live(KEY, PLACE, sealed())
    assert (opened.session, opened.counter, opened.plaintext) == (b"x" * 16, 3, b"data")


@pytest.mark.parametrize(
    "place",
    [
        LivePlace(b"v" * 32, b"a" * 16, b"r" * 16, b"s" * 16),
        LivePlace(b"u" * 32, b"b" * 16, b"r" * 16, b"s" * 16),
        LivePlace(b"u" * 32, b"a" * 16, b"q" * 16, b"s" * 16),
        LivePlace(b"u" * 32, b"a" * 16, b"r" * 16, b"t" * 16),
        LivePlace(b"u" * 32, b"a" * 16),
    ],
)
def test_it_opens_in_no_other_place(place: LivePlace) -> None:
    """Another user, author, receiver, session of the receiver, or as presence."""
    with pytest.raises(PayloadError):
        open_live(KEY, place, sealed())


def test_only_the_key_that_is_current_opens_it() -> None:
    """Who was revoked has the earlier ones."""
    other = ContentKey(content_epoch_of(b"l" * 32), 2, b"l" * 32, b"i" * 32)
    with pytest.raises(PayloadError, match="another content key"):
        open_live(other, PLACE, sealed())


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x91\x01"])
def test_what_has_another_form_does_not_open(data: bytes) -> None:
    """Whatever a server sends."""
    with pytest.raises(PayloadError):
        open_live(KEY, PLACE, data)
    with pytest.raises(PayloadError):
        decode_state(data)


def test_the_largest_ones_fit_their_messages() -> None:
    """Random bytes, which do not compress."""
    noise = server_noise(SIGNAL_DATA_BYTES_MAX)
    assert len(sealed(noise)) <= SIGNAL_BYTES_MAX
    state = encode_state(noise[:STATE_BYTES_MAX], sent_at_ms=2**63 - 1)
    assert decode_state(state) == (2**63 - 1, noise[:STATE_BYTES_MAX])
    assert len(sealed(state)) <= PRESENCE_BYTES_MAX


def server_noise(count: int) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return DeviceServer().environment.random_bytes(count)
