"""Who a device is that has proved a key, and the session that it gets (protocol.md section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.errors import ProtocolError, Unavailable

if TYPE_CHECKING:
    from keepstep.interfaces import Accounts, Claim, OpenedSession
    from keepstep.model import UserPk


class DeviceEnded(ProtocolError):
    """A device that proved its key is no longer live.

    Attributes:
        user_pk: of its user.
        seq: in ``$devices``, of the event that ended it.
    """

    def __init__(self, user_pk: UserPk, seq: int) -> None:
        super().__init__("revoked")
        self.user_pk = user_pk
        self.seq = seq


async def open_session(
    accounts: Accounts, claim: Claim, session_id: bytes, *, now_ms: int
) -> tuple[OpenedSession, int]:
    """Look up a device that proved that it holds ``claim.device_key``, and open a session for it, in one question.

    A cancellation waits for the record.

    Args:
        accounts: where devices are.
        claim: who it says it is.
        session_id: of the session, unique.
        now_ms: unix milliseconds.

    Returns:
        what is known of it, and the number of its session.

    Raises:
        DeviceEnded: the device has been revoked, or a rotation did not list it.
        ProtocolError: ``auth_failed``, the same for an unknown user, an unknown device, another key than the enrolled
            one, and a device that has expired.
        Unavailable: it cannot be looked up now.
    """
    opened = await accounts.open_session(claim, session_id, now_ms=now_ms)
    if opened is None or not _keepstep.constant_time_equal(opened.known.principal.device_key, claim.device_key):
        raise ProtocolError("auth_failed")
    if opened.known.revoked_seq is not None:
        raise DeviceEnded(opened.known.principal.user_pk, opened.known.revoked_seq)
    if opened.session_no is not None:
        return opened, opened.session_no
    if opened.known.principal.is_expired(now_ms):
        raise ProtocolError("auth_failed", "the device has expired")
    raise Unavailable("the device has ended, or was renewed, at this moment", retry_after_ms=0)
