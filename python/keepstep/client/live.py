"""Who of the user's devices is here, and short messages between those who are (protocol.md sections 4 and 5).

Nothing of it is kept: presence is the latest state of each connected device, a signal reaches a device that is
connected now or nobody. Both are sealed under the current content key. Replays are refused; that a server tells of a
change late or not at all, nobody can see, and so a state carries its author's time.
"""

from __future__ import annotations

import abc
import contextlib
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.livesealing import (
    SIGNAL_DATA_BYTES_MAX,
    STATE_BYTES_MAX,
    LivePlace,
    decode_state,
    encode_state,
    open_live,
    seal_live,
)
from keepstep.client.payload import NONCE_BYTES, PayloadError
from keepstep.client.transport import Disconnected
from keepstep.errors import ERRORS, ClientError, ProtocolError
from keepstep.protocol.messages import Error, Presence, PresenceFrom, Signal, SignalFrom, Signalled

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.client.connection import Connection
    from keepstep.client.environment import Environment
    from keepstep.client.keys import Keyring
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker

PRESENCE_INTERVAL_S: Final = 1.0
"""Between two presence messages of this device, seconds; the server tells the others no faster."""
SIGNALS_QUEUE_MAX: Final = 256
"""Signals that wait for a slow reader; beyond it the oldest are lost, and counted."""
SIGNALS_UNANSWERED_MAX: Final = 64
"""Signals under way at a time."""
PRESENCES_MAX: Final = 1_024
"""Devices whose state is remembered: more than a user can have."""
SIGNAL_RID_FIRST: Final = 2**61
"""Numbers of signals, apart from those of publishes and reads."""
SESSION_RANDOM_BYTES: Final = 8
HLC_COUNTER_BITS: Final = 16
_NOTHING: Final = (b"", 0)


@dataclass(frozen=True, slots=True)
class DevicePresence:
    """What is known of another device.

    Attributes:
        device_id: 16 bytes.
        connected: whether the server says that it is here.
        state: what its application told; ``None`` where it told nothing, or is away.
        at_ms: since when, unix milliseconds by the server's clock.
        sent_at_ms: when it told, by its own clock; ``None`` where it is away.
    """

    device_id: bytes
    connected: bool
    state: bytes | None
    at_ms: int
    sent_at_ms: int | None


@dataclass(frozen=True, slots=True)
class ReceivedSignal:
    """A signal from another device of the user."""

    device_id: bytes
    data: bytes


class DeviceAway(ClientError):
    """The device a signal is for is not connected, or its presence has not come yet."""


class Live:
    """Presence and signals of one device; lives as long as the device, ``run`` is one session of it.

    Args:
        store: the device's file, for who it is and a number that rises with each session.
        worker: where the file is used.
        keyring: the content keys.
        environment: clock and randomness.
        is_live: whether a device id is that of a live device of the user.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        keyring: Keyring,
        environment: Environment,
        is_live: Callable[[bytes], bool],
    ) -> None:
        self._store = store
        self._worker = worker
        self._keyring = keyring
        self._environment = environment
        self._is_live = is_live
        self._state: bytes | None = None
        self._connection: Connection | None = None
        self._session = b""
        self._counter = 0
        self._news = trio.Event()
        self._next_rid = SIGNAL_RID_FIRST
        self._unanswered: dict[int, _Answer] = {}
        self._sealed: dict[bytes, tuple[bytes, int]] = {}
        self._present: dict[bytes, DevicePresence] = {}
        self._sessions: dict[bytes, bytes] = {}
        self._seen_presence: dict[bytes, tuple[bytes, int]] = {}
        self._seen_signal: dict[bytes, tuple[bytes, int]] = {}
        self._watchers: weakref.WeakSet[PresenceChanges] = weakref.WeakSet()
        self._readers: weakref.WeakSet[Signals] = weakref.WeakSet()

    # -- what an application calls --------------------------------------------------------------------------------

    async def set_presence(self, state: bytes | None) -> None:
        """As ``LiveCalls.set_presence``."""
        if state is not None and len(state) > STATE_BYTES_MAX:
            raise ClientError(f"a state has at most {STATE_BYTES_MAX} bytes, this one has {len(state)}")
        self._state = state
        self._news.set()
        await trio.lowlevel.checkpoint()

    def presences(self) -> PresenceChanges:
        """As ``LiveCalls.presences``."""
        changes = PresenceChanges(self._present)
        self._watchers.add(changes)
        return changes

    def signals(self) -> Signals:
        """As ``LiveCalls.signals``."""
        signals = Signals()
        self._readers.add(signals)
        return signals

    async def signal(self, to: bytes, data: bytes) -> None:
        """As ``LiveCalls.signal``."""
        if len(data) > SIGNAL_DATA_BYTES_MAX:
            raise ClientError(f"a signal has at most {SIGNAL_DATA_BYTES_MAX} bytes, this one has {len(data)}")
        connection, session = self._connection, self._sessions.get(to)
        if connection is None or not self._session:
            raise ClientError("there is no connection now; signals are not kept")
        if session is None:
            raise DeviceAway("that device is not connected now")
        if len(self._unanswered) >= SIGNALS_UNANSWERED_MAX:
            raise ClientError(f"{SIGNALS_UNANSWERED_MAX} signals wait for their answer already")
        identity = self._store.identity
        sealed = self._seal(LivePlace(identity.user_key, identity.device_id, to, session), data)
        rid, self._next_rid = self._next_rid, self._next_rid + 1
        answer = self._unanswered[rid] = _Answer()
        try:
            await connection.send(Signal(rid, to, sealed))
            await answer.come.wait()
        except (Disconnected, ProtocolError) as exc:
            raise ClientError("the connection ended; whether the signal arrived is not known") from exc
        finally:
            self._unanswered.pop(rid, None)
        if answer.error is not None:
            raise answer.error

    # -- a session ------------------------------------------------------------------------------------------------

    async def run(self, connection: Connection) -> None:
        """Tell this device's state, now and when it changes, until cancelled. Raises Disconnected."""
        self._session = await self._worker.run(self._name_session)
        self._counter = 0
        self._connection = connection
        told: tuple[bytes | None, bytes] | None = None
        while True:
            self._news = trio.Event()
            with contextlib.suppress(ClientError):  # no content key yet: it comes in $keys, which is news
                telling = (self._state, self._keyring.current().content_epoch)
                if telling != told:
                    await connection.send(Presence(self._seal_state()))
                    told = telling
                    await trio.sleep(PRESENCE_INTERVAL_S)
                    continue
            await self._news.wait()

    def end(self) -> None:
        """The session is over: nobody is known to be here, and signals under way are unanswered."""
        self._connection = None
        self._session = b""
        for answer in self._unanswered.values():
            answer.settle(ClientError("the connection ended; whether the signal arrived is not known"))
        self._unanswered.clear()
        self._sealed.clear()
        self._sessions.clear()
        for device_id, known in list(self._present.items()):
            self._gone(device_id, known.at_ms)

    def _name_session(self) -> bytes:
        """A name above that of every earlier session of this device, whatever its clock says; on the disk."""
        hlc = max(self._environment.now_ms() << HLC_COUNTER_BITS, self._store.hlc() + 1)
        with self._store.transaction():
            self._store.raise_hlc(hlc)
        return hlc.to_bytes(8, "big") + self._environment.random_bytes(SESSION_RANDOM_BYTES)

    def _seal_state(self) -> bytes:
        identity = self._store.identity
        plaintext = encode_state(self._state, sent_at_ms=self._environment.now_ms())
        return self._seal(LivePlace(identity.user_key, identity.device_id), plaintext)

    def _seal(self, place: LivePlace, plaintext: bytes) -> bytes:
        self._counter += 1
        return seal_live(
            self._keyring.current(),
            place,
            plaintext,
            session=self._session,
            counter=self._counter,
            nonce=self._environment.random_bytes(NONCE_BYTES),
        )

    # -- what arrives ---------------------------------------------------------------------------------------------

    def take(self, message: SignalFrom | PresenceFrom | Signalled | Error) -> None:
        """A message of the session that is about presence or signals."""
        if isinstance(message, Signalled):
            self._answer(message.rid, None)
        elif isinstance(message, Error):
            if message.rid is not None:
                self._answer(message.rid, _refusal(message))
        elif isinstance(message, PresenceFrom):
            for device_id, sealed, at_ms in message.devices:
                self._take_presence(device_id, sealed, at_ms)
        else:
            self._take_signal(message)

    def refresh(self) -> None:
        """``$devices`` or ``$keys`` moved: what did not open before may open now, who was revoked is not here."""
        for device_id, known in list(self._present.items()):
            if not self._is_live(device_id):
                self._gone(device_id, known.at_ms)
        for device_id in list(self._sealed):
            self._open_presence(device_id)
        self._news.set()

    def _answer(self, rid: int, error: ClientError | ProtocolError | None) -> None:
        answer = self._unanswered.get(rid)
        if answer is not None:
            answer.settle(error)

    def _take_presence(self, device_id: bytes, sealed: bytes | None, at_ms: int) -> None:
        if sealed is None:
            self._sealed.pop(device_id, None)
            self._gone(device_id, at_ms)
        elif device_id in self._sealed or len(self._sealed) < PRESENCES_MAX:
            self._sealed[device_id] = (sealed, at_ms)
            self._open_presence(device_id)

    def _open_presence(self, device_id: bytes) -> None:
        """Show a state that was kept sealed, where it opens and is none that was shown before."""
        sealed, at_ms = self._sealed[device_id]
        if not self._is_live(device_id):
            return
        try:
            opened = open_live(self._keyring.current(), LivePlace(self._store.identity.user_key, device_id), sealed)
            sent_at_ms, state = decode_state(opened.plaintext)
        except (PayloadError, ClientError):
            return
        del self._sealed[device_id]
        at = (opened.session, opened.counter)
        if at < self._seen_presence.get(device_id, at):
            return
        self._seen_presence[device_id] = at
        self._sessions[device_id] = opened.session
        self._show(DevicePresence(device_id, connected=True, state=state, at_ms=at_ms, sent_at_ms=sent_at_ms))

    def _gone(self, device_id: bytes, at_ms: int) -> None:
        self._sessions.pop(device_id, None)
        if self._present.pop(device_id, None) is not None:
            away = DevicePresence(device_id, connected=False, state=None, at_ms=at_ms, sent_at_ms=None)
            for watcher in self._watchers:
                watcher.changed(away)

    def _show(self, shown: DevicePresence) -> None:
        self._present[shown.device_id] = shown
        for watcher in self._watchers:
            watcher.changed(shown)

    def _take_signal(self, message: SignalFrom) -> None:
        """Give a signal to the application; one that does not open, or came before, is dropped."""
        identity = self._store.identity
        if not self._session or not self._is_live(message.device_id):
            return
        place = LivePlace(identity.user_key, message.device_id, identity.device_id, self._session)
        try:
            opened = open_live(self._keyring.current(), place, message.sealed)
        except (PayloadError, ClientError):
            return
        at = (opened.session, opened.counter)
        if at > self._seen_signal.get(message.device_id, _NOTHING):
            self._seen_signal[message.device_id] = at
            for reader in self._readers:
                reader.put(ReceivedSignal(message.device_id, opened.plaintext))


class LiveCalls(abc.ABC):
    """What an application calls on its ``Device``."""

    _live: Live

    @abc.abstractmethod
    def _raise_failure(self) -> None:
        """Raise why there will be no further session, where there will be none."""

    async def set_presence(self, state: bytes | None) -> None:
        """Tell the user's other devices something for as long as this one is connected; the last one counts.

        It is sealed, is told anew in each session, and reaches the others once a second at most.

        Args:
            state: at most 3 KiB; ``None``: only that this device is here, which they are told anyway.

        Raises:
            ClientError: it is too long.
        """
        self._raise_failure()
        await self._live.set_presence(state)

    def presences(self) -> PresenceChanges:
        """The user's other devices that are here, then each that comes, goes or tells something else.

        Whether they are here is what the server says. A slow reader sees the latest state of each.
        """
        return self._live.presences()

    async def signal(self, to: bytes, data: bytes) -> None:
        """Send something to another device of the user that is connected now; it is kept nowhere.

        When this returns the server has handed it to that device's connection, no more: where that just ends, it is
        lost.

        Args:
            to: its device id, 16 bytes.
            data: at most 15 KiB; only that device can read it.

        Raises:
            DeviceAway: that device is not connected, or takes nothing.
            ClientError: it is too long, there is no connection now, or too many wait for their answer.
            ProtocolError: ``rate_limited``, ``forbidden``.

        After a cancellation it may have been sent.
        """
        self._raise_failure()
        await self._live.signal(to, data)

    def signals(self) -> Signals:
        """The signals that other devices send to this one from now on, in order."""
        return self._live.signals()


class PresenceChanges:
    """Iterate it: first every device that is here, then each that changes, its latest state. Bounded by the devices.

    It ends only with a cancellation. A slow reader sees the latest state of each device, not every one in between.
    """

    def __init__(self, present: dict[bytes, DevicePresence]) -> None:
        self._changed = dict(present)
        self._news = trio.Event()

    def changed(self, presence: DevicePresence) -> None:
        """Something is known anew of a device."""
        self._changed[presence.device_id] = presence
        self._news.set()

    def __aiter__(self) -> PresenceChanges:
        return self

    async def __anext__(self) -> DevicePresence:
        """The next device. A cancellation loses nothing."""
        while not self._changed:
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._changed.pop(next(iter(self._changed)))


class Signals:
    """Iterate it: the signals that arrive from now on, in order. It ends only with a cancellation.

    Attributes:
        lost: signals that were dropped because this reader was ``SIGNALS_QUEUE_MAX`` behind.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._queue: deque[ReceivedSignal] = deque()
        self._news = trio.Event()

    def put(self, signal: ReceivedSignal) -> None:
        """A signal arrived."""
        if len(self._queue) >= SIGNALS_QUEUE_MAX:
            self._queue.popleft()
            self.lost += 1
        self._queue.append(signal)
        self._news.set()

    def __aiter__(self) -> Signals:
        return self

    async def __anext__(self) -> ReceivedSignal:
        """The next signal. A cancellation loses nothing."""
        while not self._queue:
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._queue.popleft()


class _Answer:
    """To one signal: that it was handed on, or why not."""

    def __init__(self) -> None:
        self.come = trio.Event()
        self.error: ClientError | ProtocolError | None = None

    def settle(self, error: ClientError | ProtocolError | None) -> None:
        """It has come."""
        self.error = error
        self.come.set()


def _refusal(message: Error) -> ClientError | ProtocolError:
    if message.code == "device_away":
        return DeviceAway("that device is not connected now, or takes nothing")
    code = message.code if message.code in ERRORS else "internal"
    return ProtocolError(code, retry_after_ms=message.retry_after_ms)
