"""What ends a device ends its sessions, on every node within a second; and a user learns of a cloned device.

A commit on this node is looked at once, other nodes' by polling (protocol.md section 1). There is one path for both:
the database is asked which devices ended since the last look. That publishing is refused from the commit on does not
hang on it: each append sees the devices as of its heads (docs/explanation/log.md).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.store import DEVICES_STREAM_PK
from keepstep.model import DEVICES_STREAM, UserPk
from keepstep.pages import encode_revoked
from keepstep.protocol.messages import Cloned, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keepstep._keepstep import Run
    from keepstep.interfaces import Accounts, Clock, EventLog
    from keepstep.model import DevicePk
    from keepstep.session import Session

POLL_INTERVAL_S: Final = 0.5
"""Between two looks at what other nodes committed: half of the second in which a revoked device's sessions close."""
LOOK_BACK_MS: Final = 60_000
"""How long before its commit an event may have been given its ``received_at``, clocks of nodes included."""
NOTICE_TIMEOUT_S: Final = 0.25
"""How long a device that ended waits for the event that ended it; its session ends without, where it takes longer."""
NOTICE_BYTES_MAX: Final = 1024 * 1024
"""An account event and its framing are less."""
CLONES_REMEMBERED_MAX: Final = 10_000
"""Cloned devices whose users have been told; beyond it the oldest may be told again."""


class Sessions(Protocol):
    """The sessions of this node, as the gateway has them."""

    def session(self, user_pk: UserPk, device_pk: DevicePk) -> Session | None:
        """A device's session."""

    def sessions_of(self, user_pk: UserPk) -> Iterable[Session]:
        """All sessions of a user."""


async def read_notice(log: EventLog, user_pk: UserPk, seq: int, *, now_ms: int) -> bytes | None:
    """``messages.Revoked`` with the event of ``$devices`` that ended a device, or ``None`` where it cannot be read now.

    Cancel-safe.
    """
    with trio.move_on_after(NOTICE_TIMEOUT_S):
        try:
            page = await log.read(
                user_pk, DEVICES_STREAM, after=seq - 1, events_max=1, bytes_max=NOTICE_BYTES_MAX, now_ms=now_ms
            )
        except ProtocolError:
            return None
        return encode_revoked(page) if page.count == 1 else None
    return None


class Revocations:
    """Ends sessions, and tells of clones.

    Args:
        log: whose commits are looked at, and where the events are read that end devices.
        accounts: what is asked.
        sessions: what is ended.
        clock: the one ``received_at`` follows.
    """

    def __init__(self, log: EventLog, accounts: Accounts, sessions: Sessions, clock: Clock) -> None:
        self._log = log
        self._accounts = accounts
        self._sessions = sessions
        self._clock = clock
        self._news = trio.Event()
        self._told: OrderedDict[tuple[UserPk, bytes], int] = OrderedDict()
        log.subscribe_commits(self._committed)

    def look_now(self) -> None:
        """Do not wait for the next poll."""
        self._news.set()

    def _committed(self, runs: Sequence[Run]) -> None:
        if any(run.stream_pk == DEVICES_STREAM_PK and self._has_sessions(UserPk(run.user_pk)) for run in runs):
            self.look_now()

    def _has_sessions(self, user_pk: UserPk) -> bool:
        return any(True for _ in self._sessions.sessions_of(user_pk))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, until cancelled."""
        looked_at_ms = self._clock.now_ms()
        task_status.started()
        while True:
            # Clear, look, then wait: a commit during the look makes another one.
            self._news = trio.Event()
            now_ms = self._clock.now_ms()
            try:
                await self._look(looked_at_ms - LOOK_BACK_MS)
            except Unavailable:
                pass  # the next look goes as far back as this one
            else:
                looked_at_ms = now_ms
            with trio.move_on_after(POLL_INTERVAL_S):
                await self._news.wait()

    async def _look(self, since_ms: int) -> None:
        for device in await self._accounts.revoked_since(since_ms):
            session = self._sessions.session(device.user_pk, device.device_pk)
            if session is not None:
                now_ms = self._clock.now_ms()
                session.revoke(await read_notice(self._log, device.user_pk, device.revoked_seq, now_ms=now_ms))
        for clone in await self._accounts.cloned_since(since_ms):
            key = clone.user_pk, clone.device_id
            if self._told.get(key) == clone.cloned_at_ms:
                continue
            self._told[key] = clone.cloned_at_ms
            self._told.move_to_end(key)
            if len(self._told) > CLONES_REMEMBERED_MAX:
                self._told.popitem(last=False)
            notice = encode(Cloned(clone.device_id, clone.cloned_at_ms))
            for session in self._sessions.sessions_of(clone.user_pk):
                session.tell(notice)
