"""Keeps a device connected: sessions one after the other, with waiting times in between that spread the load."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.connection import connect
from keepstep.client.inbox import READ_RID_FIRST, Inbox
from keepstep.client.store import Alarm
from keepstep.client.transport import Disconnected
from keepstep.client.worker import open_nursery
from keepstep.errors import ERRORS, ClientError, ProtocolError, StoreError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.protocol.messages import (
    Accepted,
    CaughtUp,
    Draining,
    Error,
    Events,
    Head,
    Ping,
    ReadResult,
    Resumed,
)

if TYPE_CHECKING:
    import ssl

    from keepstep.client.connection import Connection
    from keepstep.client.environment import Environment
    from keepstep.client.follower import Followed, Follower, Outcome, Start
    from keepstep.client.publisher import Publisher
    from keepstep.client.store import Store
    from keepstep.client.subscription import EventSource
    from keepstep.client.worker import Worker
    from keepstep.protocol.messages import FromServer

RECONNECT_S: Final = 0.5
RECONNECT_S_MAX: Final = 60.0
"""Waiting before the next attempt: up to this, doubled with each failure, evenly spread, seconds."""
DOUBLINGS_MAX: Final = 10
STEADY_S: Final = 10.0
"""A session that lasted this long was a good one: waiting begins small again, seconds."""
PING_S: Final = 30.0
"""Between pings; the server closes a connection that says nothing for 120 seconds."""
FINAL_CLOSE_CODE: Final = 4500
"""From this close code on a device does not reconnect by itself (protocol.md section 4)."""
FINAL_CODES: Final = frozenset({"auth_failed", "cloned", "unsupported"})
"""Errors found on this side that another attempt would only meet again."""
_BY_CLOSE_CODE: Final = {row.close_code: row for row in ERRORS.values()}


class Link:
    """The sessions of one device.

    Attributes:
        failure: why there will be no further session; ``None`` while there may be.
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
    ) -> None:
        self.failure: Exception | None = None
        self.last_problem = ""
        self._store = store
        self._worker = worker
        self._environment = environment
        self._device_url = device_url
        self._tls = tls
        self._follower = follower
        self._publisher = publisher
        self._source = source
        self._connection: Connection | None = None
        self._inbox: Inbox | None = None
        self._caught_up: set[str] = set()
        self._following = trio.Lock()
        self._retry_after_ms = 0

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""
        return self._inbox is not None

    def is_caught_up(self, stream: str) -> bool:
        """Whether this session has received everything that was there when the server last said so."""
        return stream in self._caught_up

    async def follow(self, stream: str, start: Start) -> Followed:
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
        """Connect, and connect again, until there is a reason not to; then ``failure`` is set."""
        failures = 0
        while True:
            began_s = trio.current_time()
            try:
                await self._session()
            except (Disconnected, StoreError, ProtocolError, VerificationError) as error:
                self.last_problem = str(error)
                if _is_final(error):
                    await self._stop(error)
                    return
            finally:
                self._disconnected()
            failures = 1 if trio.current_time() - began_s >= STEADY_S else failures + 1
            limit_s = min(RECONNECT_S * 2.0 ** min(failures, DOUBLINGS_MAX), RECONNECT_S_MAX)
            named_s, self._retry_after_ms = self._retry_after_ms / 1000, 0
            await trio.sleep(min(named_s, RECONNECT_S_MAX) + self._environment.jitter(limit_s))

    def close(self) -> None:
        """Nothing more comes: tell whoever waits."""
        if self.failure is None:
            self._fail(ClientError("the device was closed"))

    async def _stop(self, error: Exception) -> None:
        """There will be no further session."""
        if isinstance(error, VerificationError):
            alarm = Alarm(self._environment.now_ms(), error.stream, error.seq, error.reason)
            await self._worker.run(lambda: self._keep_alarm(alarm))
        self._fail(_as_shown(error))

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
        self._source.announce()

    # -- one session ----------------------------------------------------------------------------------------------

    async def _session(self) -> None:
        opened = connect(self._store.identity, self._environment, device_url=self._device_url, tls=self._tls)
        async with opened as connection:
            await self._check_epoch(connection.epoch)
            inbox = Inbox(connection, self._follower, self._worker, self._report)
            async with self._following:
                readable = [name for name, each in self._follower.followed.items() if each.failure is None]
                self._publisher.begin(connection, self._follower.followed.keys())
                self._connection, self._inbox = connection, inbox
                await inbox.subscribe(readable)
            self.last_problem = ""
            self._source.announce()
            async with open_nursery() as nursery:
                nursery.start_soon(self._receive, connection, inbox)
                nursery.start_soon(inbox.run)
                nursery.start_soon(self._publisher.run)
                nursery.start_soon(self._ping, connection)

    async def _check_epoch(self, epoch: int) -> None:
        known = self._store.epoch()
        if epoch < known:
            raise VerificationError("the server's epoch went back", stream=DEVICES_STREAM)
        if epoch > known:
            await self._worker.run(lambda: self._keep_epoch(epoch))

    def _keep_epoch(self, epoch: int) -> None:
        with self._store.transaction():
            self._store.raise_epoch(epoch)

    async def _receive(self, connection: Connection, inbox: Inbox) -> None:
        while True:
            message = await connection.receive()
            if isinstance(message, Events | CaughtUp | Head | Resumed | ReadResult):
                if isinstance(message, Resumed) and message.stream not in self._follower.followed:
                    self._publisher.resumed(message.stream, message.author)
                await inbox.put(message)
            else:
                self._take(message)

    def _take(self, message: FromServer) -> None:
        """Everything that is not about a stream that is followed."""
        if isinstance(message, Accepted):
            self._publisher.accepted(message)
        elif isinstance(message, Draining):
            self._retry_after_ms = message.reconnect_after_ms
            self._publisher.hold()
        elif isinstance(message, Error):
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
        self._caught_up.update(outcome.caught_up)
        for stream, author in outcome.authors.items():
            self._publisher.resumed(stream, author)
        self._source.announce()


def _is_final(error: Exception) -> bool:
    """Whether another attempt could only meet the same."""
    if isinstance(error, Disconnected):
        return error.close_code is not None and FINAL_CLOSE_CODE <= error.close_code < FINAL_CLOSE_CODE + 500
    if isinstance(error, ProtocolError):
        return error.code in FINAL_CODES
    # After a failed transaction what is in memory is ahead of what is on the disk.
    return True


def _as_shown(error: Exception) -> Exception:
    """The error that an application sees."""
    if isinstance(error, Disconnected):
        row = _BY_CLOSE_CODE.get(error.close_code or 0, ERRORS["internal"])
        return ProtocolError(row.code, row.meaning)
    return error
