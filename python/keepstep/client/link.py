"""Keeps a device connected: sessions one after the other, with waiting times in between that spread the load."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.connection import connect
from keepstep.client.healing import HEAL_RID_END, HEAL_RID_FIRST
from keepstep.client.inbox import READ_RID_FIRST, Inbox
from keepstep.client.live import SIGNAL_RID_FIRST
from keepstep.client.notices import Notice, NoticeKind
from keepstep.client.repinning import overdue, read_announcements, successor
from keepstep.client.store import Alarm
from keepstep.client.transport import Disconnected
from keepstep.client.worker import open_nursery
from keepstep.errors import ERRORS, ClientError, DeviceRevoked, ProtocolError, StoreError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.protocol.messages import (
    Accepted,
    CaughtUp,
    ChainAtResult,
    Cloned,
    Draining,
    Error,
    Events,
    Head,
    HealResult,
    KeyAnnounced,
    Ping,
    PresenceFrom,
    Pruned,
    ReadResult,
    Resumed,
    Revoked,
    Rewound,
    SignalFrom,
    Signalled,
    Subscribe,
)
from keepstep.protocol.succession import decode_announcement

if TYPE_CHECKING:
    import ssl

    from keepstep.client.connection import Connection
    from keepstep.client.environment import Environment
    from keepstep.client.follower import Followed, Follower, Outcome, Start
    from keepstep.client.healing import Healer
    from keepstep.client.live import Live
    from keepstep.client.publisher import Publisher
    from keepstep.client.store import Store
    from keepstep.client.subscription import EventSource
    from keepstep.client.worker import Worker
    from keepstep.model import Position
    from keepstep.protocol.messages import FromServer
    from keepstep.protocol.succession import Announcement

RECONNECT_S: Final = 0.5
RECONNECT_S_MAX: Final = 60.0
"""Waiting before the next attempt: up to this, doubled with each failure, evenly spread, seconds."""
DOUBLINGS_MAX: Final = 10
STEADY_S: Final = 10.0
"""A session that lasted this long was a good one: waiting begins small again, seconds."""
PING_S: Final = 30.0
"""Between pings; the server closes a connection that says nothing for 120 seconds."""
FINAL_CLOSE_CODE: Final = 4500
"""From this close code on a device does not reconnect as after the others (protocol.md section 4)."""
FINAL_RETRY_S: Final = 3600.0
"""Before the next attempt after such a code: it came unauthenticated, and one forged frame must not end a device."""
FINAL_RETRY_JITTER_S: Final = 600.0
"""What is waited beyond that, at most, evenly spread, seconds."""
FINAL_CODES: Final = frozenset({"auth_failed", "cloned", "revoked", "unsupported"})
"""Errors found on this side that another attempt would only meet again."""
_REPLACED_CLOSE_CODE: Final = ERRORS["replaced"].close_code
_REVOKED_CLOSE_CODE: Final = ERRORS["revoked"].close_code
_BY_CLOSE_CODE: Final = {row.close_code: row for row in ERRORS.values()}


class Link:
    """The sessions of one device.

    Attributes:
        failure: why there is no session soon, or none any more; ``None`` once there is one again.
        last_problem: why the last attempt failed or the last session ended, in plain words.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        environment: Environment,
        *,
        device_url: str,
        tls: ssl.SSLContext | None,
        follower: Follower,
        publisher: Publisher,
        source: EventSource,
        live: Live,
        healer: Healer,
    ) -> None:
        self._healer = healer
        self.failure: Exception | None = None
        self.announced: Announcement | None = None
        self.last_problem = ""
        self._store = store
        self._worker = worker
        self._environment = environment
        self._device_url = device_url
        self._tls = tls
        self._follower = follower
        self._publisher = publisher
        self._source = source
        self._live = live
        self._connection: Connection | None = None
        self._inbox: Inbox | None = None
        self._caught_up: set[str] = set()
        self._following = trio.Lock()
        self._retry_after_ms = 0
        self._was_told_of_its_end = False

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""
        return self._inbox is not None

    def is_caught_up(self, stream: str) -> bool:
        """Whether this session has received everything that was there when the server last said so."""
        return stream in self._caught_up

    async def follow(self, stream: str, start: Start | Position) -> Followed:
        """Read a stream from now on.

        A cancellation may come before the server was asked: the next session asks.
        """
        async with self._following:
            known = self._follower.followed.get(stream)
            if known is not None:
                return known
            followed = self._follower.follow(stream, start)
            inbox = self._inbox
            if inbox is not None:
                await self._publisher.hold_until_resumed(stream)
                # Where the session has just ended, the next one asks.
                with contextlib.suppress(Disconnected, ProtocolError):
                    await inbox.subscribe([stream])
            return followed

    async def run(self) -> None:
        """Connect, and connect again, until there is a reason not to; then ``failure`` is set.

        Where the reason is a close code alone, which anybody on the way can forge, it goes on, rarely.
        """
        failures = 0
        while True:
            is_told_to_stay_away = False
            began_s = trio.current_time()
            try:
                await self._session()
            except (Disconnected, StoreError, ProtocolError, VerificationError) as error:
                self.last_problem = str(error)
                if await self._has_ended(error):
                    self._fail(ProtocolError("revoked", "this device was revoked; its keys and its outbox are gone"))
                    return
                is_shown_why = self._may_be_shown_why(error)
                if _is_final(error) and not is_shown_why and not await self._has_succeeded(error):
                    await self._stop(error)
                    is_told_to_stay_away = _may_be_forged(error)
                    if not is_told_to_stay_away:
                        return
            finally:
                self._disconnected()
            if is_told_to_stay_away:
                failures = 0
                await trio.sleep(FINAL_RETRY_S + self._environment.jitter(FINAL_RETRY_JITTER_S))
                continue
            failures = 1 if trio.current_time() - began_s >= STEADY_S else failures + 1
            limit_s = min(RECONNECT_S * 2.0 ** min(failures, DOUBLINGS_MAX), RECONNECT_S_MAX)
            named_s, self._retry_after_ms = self._retry_after_ms / 1000, 0
            await trio.sleep(min(named_s, RECONNECT_S_MAX) + self._environment.jitter(limit_s))

    def _may_be_shown_why(self, error: Exception) -> bool:
        """Whether a close code says that this device was revoked: the next handshake shows the proof."""
        is_first = not self._was_told_of_its_end
        self._was_told_of_its_end = isinstance(error, Disconnected) and error.close_code == _REVOKED_CLOSE_CODE
        return self._was_told_of_its_end and is_first

    async def _has_succeeded(self, error: Exception) -> bool:
        """Whether the server showed another key than the pinned one because that one was replaced.

        It believes nobody but the pinned key's own signature, in ``$devices`` or over REST; the next session is with
        the successor.
        """
        if not isinstance(error, ProtocolError) or error.code != "auth_failed":
            return False
        identity = self._store.identity
        announcements, shown = list(self._follower.account.announcements), None
        with contextlib.suppress(ClientError, ProtocolError):
            shown, told = await read_announcements(identity.rest_url, tls=self._tls)
            announcements += told
        return await self.repin(successor(identity.server_key, announcements, shown=shown))

    async def repin(self, server_key: bytes) -> bool:
        """Know the server by that key; whether it is another one than before."""
        if server_key == self._store.identity.server_key:
            return False
        async with self._following:
            await self._worker.run(lambda: self._follower.repin(server_key))
        return True

    async def _has_ended(self, error: Exception) -> bool:
        """Whether a session ended because this device did, as ``$devices`` or a signed revocation shows; then wipe it.

        A server's word alone wipes nothing.
        """
        at_ms = self._follower.ended_at_ms
        if at_ms is None and isinstance(error, DeviceRevoked):
            shown = error.event
            at_ms = await self._worker.run(lambda: self._follower.end_shown(shown))
        elif not isinstance(error, ProtocolError) or error.code != "revoked":
            return False
        if at_ms is None:
            return False
        ended_at_ms = at_ms
        await self._worker.run(lambda: self._wipe(ended_at_ms))
        return True

    def _wipe(self, at_ms: int) -> None:
        self._store.wipe(at_ms)
        with self._store.transaction():
            self._store.add_notice(Notice(NoticeKind.REVOKED, at_ms, self._store.identity.device_id))

    def close(self) -> None:
        """Nothing more comes: tell whoever waits."""
        if self.failure is None:
            self._fail(ClientError("the device was closed"))

    async def _stop(self, error: Exception) -> None:
        """There will be no further session, or none soon."""
        if isinstance(error, VerificationError):
            alarm = Alarm(self._environment.now_ms(), error.stream, error.seq, error.reason)
            await self._worker.run(lambda: self._keep_alarm(alarm))
        self._fail(_as_shown(error))

    async def _tell(self, notice: Notice) -> None:
        await self._worker.run(lambda: self._keep_notice(notice))
        self._source.announce()

    def _keep_notice(self, notice: Notice) -> None:
        with self._store.transaction():
            self._store.add_notice(notice)

    def _keep_alarm(self, alarm: Alarm) -> None:
        with self._store.transaction():
            self._store.add_alarm(alarm)

    def _fail(self, failure: Exception) -> None:
        self.failure = failure
        self._publisher.fail(failure)
        self._source.announce()

    def _disconnected(self) -> None:
        self._inbox = self._connection = None
        self._caught_up.clear()
        self._publisher.end()
        self._healer.end()
        self._live.end()
        self._source.announce()

    # -- one session ----------------------------------------------------------------------------------------------

    async def _session(self) -> None:
        identity = self._store.identity
        await self.repin(overdue(identity.server_key, self._follower.account.announcements, self._environment.now_ms()))
        opened = connect(self._store.identity, self._environment, device_url=self._device_url, tls=self._tls)
        async with opened as connection:
            pending = await self._check_epoch(connection.epoch)
            inbox = Inbox(connection, self._follower, self._worker, self._report)
            async with self._following:
                readable = [name for name, each in self._follower.followed.items() if each.failure is None]
                self._publisher.begin(connection, self._follower.followed.keys())
                self._connection, self._inbox = connection, inbox
                self._healer.begin(connection, inbox.subscribe, pending=pending)
                await inbox.subscribe(readable)
                await self._ask_what_is_left(connection)
            self.last_problem = ""
            self.failure = None
            self._source.announce()
            async with open_nursery() as nursery:
                nursery.start_soon(self._receive, connection, inbox)
                nursery.start_soon(inbox.run)
                nursery.start_soon(self._publisher.run)
                nursery.start_soon(self._healer.run)
                nursery.start_soon(self._live.run, connection)
                nursery.start_soon(self._ping, connection)

    async def _ask_what_is_left(self, connection: Connection) -> None:
        """Of streams that it only writes, ask what the latest restore left of this device's events."""
        unasked = await self._worker.run(self._follower.kept.unasked)
        asked: dict[str, tuple[int, bytes] | Start] = {
            stream: "end" for stream in unasked if stream not in self._follower.followed
        }
        if asked:
            self._publisher.ask(asked.keys())
            await connection.send(Subscribe(asked))

    async def _check_epoch(self, epoch: int) -> bool:
        """Whether a restore began an epoch in which this device has not handed in what it holds."""
        known = self._store.epoch()
        if epoch < known:
            raise VerificationError("the server's epoch went back", stream=DEVICES_STREAM)
        if epoch > known:
            await self._worker.run(lambda: self._keep_epoch(epoch))
        if epoch <= await self._worker.run(self._store.healed_epoch):
            return False
        async with self._following:
            for stream in self._follower.positions():  # whatever this device holds may be what was lost
                self._follower.follow(stream, "start")
        return True

    def _keep_epoch(self, epoch: int) -> None:
        with self._store.transaction():
            self._store.raise_epoch(epoch)

    async def _receive(self, connection: Connection, inbox: Inbox) -> None:
        while True:
            message = await connection.receive()
            if isinstance(message, Events | CaughtUp | Head | Pruned | Resumed | Rewound | ReadResult):
                if isinstance(message, Resumed) and message.stream not in self._follower.followed:
                    await self._take_asked(message)
                await inbox.put(message)
            elif isinstance(message, Revoked):
                raise DeviceRevoked(message.row)
            elif isinstance(message, KeyAnnounced):
                self._take_announcement(message.announcement)
            elif isinstance(message, Cloned):
                await self._tell(Notice(NoticeKind.CLONED, message.at_ms, message.device_id))
            else:
                self._take(message)

    async def _take_asked(self, message: Resumed) -> None:
        """What the server has of this device in a stream that it does not read."""
        if message.answer == "limit_exceeded":
            self._publisher.not_told(message.stream)
            return
        await self._worker.run(partial(self._follower.take_rewinds, message.stream, message.rewinds))
        self._publisher.resumed(message.stream, message.author)

    def _take_announcement(self, data: bytes) -> None:
        """The server's next key, for the other devices (``keeper``); what the pinned key did not sign is nothing."""
        announcement = decode_announcement(data)
        if successor(self._store.identity.server_key, [announcement]) != self._store.identity.server_key:
            self.announced = announcement
            self._source.announce()

    def _take(self, message: FromServer) -> None:
        """Everything that is not about a stream that is followed."""
        if isinstance(message, Accepted):
            self._publisher.accepted(message)
        elif isinstance(message, Draining):
            self._retry_after_ms = message.reconnect_after_ms
            self._publisher.hold()
        elif isinstance(message, SignalFrom | PresenceFrom | Signalled):
            self._live.take(message)
        elif isinstance(message, ChainAtResult | HealResult):
            self._healer.take(message)
        elif isinstance(message, Error):
            if message.rid is not None and HEAL_RID_FIRST <= message.rid < HEAL_RID_END:
                self._healer.take(message)
                return
            if message.rid is not None and SIGNAL_RID_FIRST <= message.rid < READ_RID_FIRST:
                self._live.take(message)
                return
            self._retry_after_ms = message.retry_after_ms or 0
            if message.rid is not None and message.rid < READ_RID_FIRST:
                self._publisher.refused(message)

    async def _ping(self, connection: Connection) -> None:
        rid = READ_RID_FIRST
        while True:
            await trio.sleep(PING_S)
            await connection.send(Ping(rid))

    def _report(self, outcome: Outcome) -> None:
        """Something was stored: tell whoever waits for it."""
        for stream in outcome.failed:
            failure = self._follower.followed[stream].failure
            if stream in (DEVICES_STREAM, KEYS_STREAM) and failure is not None:
                raise failure
        if outcome.ended_at_ms is not None:
            raise ProtocolError("revoked", "this device has ended, as $devices says")
        self._caught_up.update(outcome.caught_up)
        self._healer.rewound(outcome.rewound)
        self._healer.note(outcome.authors)
        if not self._healer.pending:
            for stream, author in outcome.authors.items():
                self._publisher.resumed(stream, author)
        self._live.refresh()
        self._source.announce()


def _is_final(error: Exception) -> bool:
    """Whether another attempt could only meet the same."""
    if isinstance(error, Disconnected):
        return error.close_code is not None and FINAL_CLOSE_CODE <= error.close_code < FINAL_CLOSE_CODE + 500
    if isinstance(error, ProtocolError):
        return error.code in FINAL_CODES
    # After a failed transaction what is in memory is ahead of what is on the disk.
    return True


def _may_be_forged(error: Exception) -> bool:
    """Whether nothing but a close code says so, which nobody signs; after ``replaced`` two would take turns."""
    return isinstance(error, Disconnected) and error.close_code != _REPLACED_CLOSE_CODE


def _as_shown(error: Exception) -> Exception:
    """The error that an application sees."""
    if isinstance(error, Disconnected):
        row = _BY_CLOSE_CODE.get(error.close_code or 0, ERRORS["internal"])
        return ProtocolError(row.code, row.meaning)
    return error
