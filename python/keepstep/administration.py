"""What administrating a server needs of the place where users are kept; implemented over PostgreSQL and memory.

All methods raise Unavailable while that place is away. A cancellation waits for the end of what changes something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from keepstep.model import DevicePk, UserPk
    from keepstep.protocol.succession import Succession

AUDIT_TEXT_MAX: Final = 64
"""Longest request id and address that are recorded, characters."""
AUDIT_ACTION_MAX: Final = 128
AUDIT_TARGET_MAX: Final = 256
"""Longest operation and target; what is longer is cut off."""
RETENTION_DAYS_MAX: Final = 36_500
"""A hundred years."""
CUTS_MAX: Final = 10_000
"""Sessions to be ended that are answered at a time, the latest first."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call of an administrator.

    Attributes:
        audit_no: counts the entries; 0 for one that is not recorded yet.
        at_ms: unix milliseconds.
        request_id: of the request.
        address: the peer's.
        action: the endpoint's name.
        target: its path parameters, as JSON.
        status: HTTP status of the answer.
    """

    audit_no: int
    at_ms: int
    request_id: str
    address: str
    action: str
    target: str
    status: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What one account may have; ``None`` where the server's own limit counts.

    Attributes:
        streams_max: streams, ``$devices`` and ``$keys`` among them.
        devices_max: live devices.
        bytes_max: headers, signatures and payloads outside ``$devices`` and ``$keys``.
        retention_days: how long its events stay, where that is shorter than on the server in general.
    """

    streams_max: int | None = None
    devices_max: int | None = None
    bytes_max: int | None = None
    retention_days: int | None = None


@dataclass(frozen=True, slots=True)
class ListedUser:
    """An account as its operator sees it.

    Attributes:
        user_pk: its row number; the lists are in its order.
        user_key: the user id, 32 bytes.
        created_at_ms: unix milliseconds.
        disabled_at_ms: since when nothing of it is let in, ``None`` where it is.
        devices: live ones.
        streams: ``$devices`` and ``$keys`` among them.
        quota: of its own.
        stored_bytes: headers, signatures and payloads outside ``$devices`` and ``$keys``.
        reserved_bytes: those in them.
    """

    user_pk: UserPk
    user_key: bytes
    created_at_ms: int
    disabled_at_ms: int | None
    devices: int
    streams: int
    quota: Quota
    stored_bytes: int = 0
    reserved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session that is open as far as the database knows; that of a node which died stays about an hour.

    A device's earlier sessions ended with its next.

    Attributes:
        session_id: 16 bytes; the lists are in its order.
        user_key: whose device it is, 32 bytes.
        device_id: 16 bytes.
        session_no: counts the device's sessions.
        opened_at_ms: unix milliseconds.
    """

    session_id: bytes
    user_key: bytes
    device_id: bytes
    session_no: int
    opened_at_ms: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Sessions that every node is to end: one of a device, or all of a user.

    Attributes:
        user_pk: whose.
        session: (device_pk, session_no), ``None`` for all.
    """

    user_pk: UserPk
    session: tuple[DevicePk, int] | None


@dataclass(frozen=True, slots=True)
class ListedInvite:
    """An invite to register.

    Attributes:
        code_hash: BLAKE3 of the code, which is not kept; the lists are in its order.
        created_at_ms: unix milliseconds.
        expires_at_ms: unix milliseconds.
        note: the operator's reminder.
        used: unix milliseconds and the user id that was registered, ``None`` before.
    """

    code_hash: bytes
    created_at_ms: int
    expires_at_ms: int
    note: str
    used: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a server holds.

    Attributes:
        users: accounts.
        disabled_users: of them.
        devices: live ones.
        streams: of all accounts.
        events: ever accepted, of the accounts that are there.
        open_sessions: as ``ListedSession``.
        database_bytes: on disk, ``None`` where nothing is kept on disk.
    """

    users: int
    disabled_users: int
    devices: int
    streams: int
    events: int
    open_sessions: int
    database_bytes: int | None


class ServerKeys(Protocol):
    """The successor of the server's identity key (protocol.md section 1)."""

    async def successor(self) -> Succession | None:
        """The key that takes the present one's place; ``None`` where none is announced. Raises Unavailable."""

    async def announce(self, *, from_ms: int, until_ms: int) -> Succession:
        """Make a successor, and the announcement that both keys sign.

        Args:
            from_ms: unix milliseconds from which it may take over.
            until_ms: unix milliseconds from which devices take the old key for an impostor's.

        Raises:
            ProtocolError: ``unexpected``: one is announced already.
            Unavailable: the keys cannot be read or written now.
        """


class Administration(Protocol):
    """Users, sessions, invites and the audit trail, of all users: only administrators and jobs ask."""

    async def add_audit(self, entry: AuditEntry) -> None:
        """Record a call; ``audit_no`` is given here."""

    async def audit(self, *, before: int | None, limit: int) -> list[AuditEntry]:
        """The newest entries whose number is below ``before``, newest first, at most ``limit``."""

    async def clean_up(self, *, audit_before_ms: int, cuts_before_ms: int, rows_max: int) -> int:
        """Drop at most ``rows_max`` older audit entries and as many older cuts; returns how many went (0: done)."""

    async def users(self, *, after: int, limit: int) -> list[ListedUser]:
        """Accounts by row number, from the one after ``after`` on, at most ``limit``; deleted ones are not there."""

    async def user(self, user_key: bytes) -> ListedUser | None:
        """One account, ``None`` for an unknown or deleted one."""

    async def set_disabled(self, user_pk: UserPk, *, disabled: bool, now_ms: int) -> None:
        """Let nothing of an account in any more, or let it in again.

        Disabling cuts its sessions; from the commit on no node takes a new event of it.
        """

    async def delete_user(self, user_pk: UserPk, user_key: bytes, *, now_ms: int) -> None:
        """Begin to delete an account: nothing of it is let in any more, and its genesis never begins it again.

        Cuts its sessions. What is stored of it goes with ``remove_deleted``. Deleting it again changes nothing.
        """

    async def remove_deleted(self, *, before_ms: int, rows_max: int) -> int:
        """Remove at most ``rows_max`` rows of accounts deleted at ``before_ms`` or earlier; how many (0: done)."""

    async def forget_deleted(self, user_key: bytes) -> bool:
        """Let a deleted account begin again, with its whole log; whether it was deleted, and all of it is removed."""

    async def set_quota(self, user_pk: UserPk, quota: Quota) -> None:
        """Replace what an account may have; nothing of what it has goes."""

    async def quota(self, user_pk: UserPk) -> Quota:
        """What an account may have."""

    async def sessions(self, *, user_pk: UserPk | None, after: bytes, limit: int) -> list[ListedSession]:
        """Open sessions of an account, or of all, by id from the one after ``after`` on, at most ``limit``."""

    async def cut_session(self, session_id: bytes, *, now_ms: int) -> bool:
        """Have every node end an open session; whether there is one."""

    async def cuts_since(self, since_ms: int) -> list[Cut]:
        """What was cut at ``since_ms`` or later, the latest first, at most ``CUTS_MAX``."""

    async def invites(self, *, after: bytes, limit: int) -> list[ListedInvite]:
        """Invites by hash from the one after ``after`` on, at most ``limit``."""

    async def add_invite(self, code_hash: bytes, *, note: str, now_ms: int, expires_at_ms: int) -> None:
        """Keep a new invite."""

    async def delete_invite(self, code_hash: bytes) -> bool:
        """Forget an invite, used or not; whether there was one."""

    async def statistics(self) -> Statistics:
        """What is there. Counts everything: not for often."""
