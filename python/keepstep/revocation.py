"""What ends a device ends its sessions, on every node within a second; and a user learns of a cloned device.

A commit on this node is looked at once, other nodes' by polling (protocol.md section 1). There is one path for both:
the database is asked which devices ended since the last look. That publishing is refused from the commit on does not
hang on it: each append sees the devices as of its heads (docs/explanation/log.md).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, UserPk
from keepstep.pages import encode_revoked
from keepstep.polling import Poll
from keepstep.protocol.messages import Cloned, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep._keepstep import Run
    from keepstep.interfaces import Accounts, Clock, EventLog
    from keepstep.polling import Sessions

NOTICE_TIMEOUT_S: Final = 0.25
"""How long devices that ended wait for the events that ended them; after it their sessions end without."""
NOTICE_BYTES_MAX: Final = 1024 * 1024
"""An account event and its framing are less."""
CLONES_REMEMBERED_MAX: Final = 10_000
"""Cloned devices whose users have been told; beyond it the oldest may be told again."""


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


class Revocations(Poll):
    """Ends sessions, and tells of clones.

    Args:
        log: whose commits are looked at, and where the events are read that end devices.
        accounts: what is asked.
        sessions: what is ended.
        clock: the one ``received_at`` follows.
    """

    def __init__(self, log: EventLog, accounts: Accounts, sessions: Sessions, clock: Clock) -> None:
        super().__init__(clock)
        self._log = log
        self._accounts = accounts
        self._sessions = sessions
        self._told: OrderedDict[tuple[UserPk, bytes], int] = OrderedDict()
        log.subscribe_device_commits(self._committed)

    def _committed(self, runs: Sequence[Run]) -> None:
        if any(self._has_sessions(UserPk(run.user_pk)) for run in runs):
            self.look_now()

    def _has_sessions(self, user_pk: UserPk) -> bool:
        return any(True for _ in self._sessions.sessions_of(user_pk))

    async def _look(self, since_ms: int) -> None:
        ended = await self._accounts.revoked_since(since_ms)
        until_s = trio.current_time() + NOTICE_TIMEOUT_S  # for all of them: the last has to end in time too
        for device in ended:
            session = self._sessions.session(device.user_pk, device.device_pk)
            if session is not None:
                notice, now_ms = None, self._clock.now_ms()
                with trio.move_on_at(until_s):
                    notice = await read_notice(self._log, device.user_pk, device.revoked_seq, now_ms=now_ms)
                session.revoke(notice)
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
