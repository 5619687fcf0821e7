"""What a change of the user's devices does to this device's file: events that no longer count, and notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.client.notices import Notice, NoticeKind
from keepstep.protocol.account_state import EndReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.client.locallog import LocalLog
    from keepstep.client.store import Store
    from keepstep.protocol.account_state import EnrolledDevice

_KINDS: Final = {
    EndReason.REVOKED: NoticeKind.REVOKED,
    EndReason.REVOKED_WITH: NoticeKind.REVOKED_WITH,
    EndReason.ROTATED: NoticeKind.ENDED_BY_RECOVERY,
}


class AccountChanges:
    """Follows the user's devices for one store; every call is part of a transaction.

    Its user is told what other devices did; what this one did he has done himself.
    """

    def __init__(self, store: Store, log: LocalLog) -> None:
        self._store = store
        self._log = log

    def take(
        self,
        before: Mapping[bytes, EnrolledDevice],
        after: Mapping[bytes, EnrolledDevice],
        received_at_ms: Mapping[int, int],
    ) -> None:
        """Follow from one state of ``$devices`` to a later one.

        Args:
            before: the devices then.
            after: the devices now.
            received_at_ms: of the events in between, by seq.
        """
        for device_id, device in after.items():
            old = before.get(device_id)
            if old == device:
                continue
            ended = device.ended
            if ended is not None and ended.accepted is not None:
                self._log.withdraw(device_id, ended.accepted)
            elif ended is None and old is not None and old.ended is not None:
                self._log.reinstate(device_id)
            if device.seq in received_at_ms and device_id != self._store.identity.device_id:
                self._tell_of_enrolment(device, received_at_ms[device.seq])
            if (
                ended is not None
                and ended.seq in received_at_ms
                and self._is_news(ended.seq)
                and ended.by != self._store.identity.device_id
            ):
                self._store.add_notice(Notice(_KINDS[ended.reason], ended.received_at_ms, device_id))
            elif ended is None and old is not None and old.ended is not None:
                self._store.add_notice(Notice(NoticeKind.RETURNED, max(received_at_ms.values()), device_id))

    def _tell_of_enrolment(self, device: EnrolledDevice, at_ms: int) -> None:
        mine = self._store.identity
        if not self._is_news(device.seq) or device.enrolled_by == mine.device_id:
            return
        device_id = device.entry.device_id
        kind = NoticeKind.ROTATED if device.enrolled_by is None else NoticeKind.ENROLLED
        self._store.add_notice(Notice(kind, at_ms, device_id))
        if device.manage_from_ms:
            self._store.add_notice(Notice(NoticeKind.MANAGE_PENDING, at_ms, device_id, device.manage_from_ms))

    def _is_news(self, seq: int) -> bool:
        """Whether a change came after this device was enrolled; what was before, whoever enrolled it knew."""
        return seq > self._store.identity.handed_over.seq
