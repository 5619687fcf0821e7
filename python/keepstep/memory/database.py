"""The tables of the log in memory, with the row locks and the atomic commits that the log relies on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keepstep.administration import Quota
from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.administration import AuditEntry
    from keepstep.eventlog.store import SnapshotRow, StreamPlace
    from keepstep.memory.rows import EventRow
    from keepstep.model import DeviceEntry


def refuses_nothing(row: EventRow) -> bool:
    """What a database does that stores whatever it is given."""
    del row
    return False


@dataclass(eq=False, slots=True)
class TokenFamily:
    """A family of refresh tokens; ``tokens`` maps a hash to when it runs out and what it was exchanged for."""

    created_at_ms: int
    expires_at_ms: int
    refreshes: int = 0
    tokens: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class DeviceRow:
    """A device, its session number, and up to where it acknowledged which stream.

    ``revoked`` is (unix ms, seq in ``$devices``) once it has ended, ``cloned_at_ms`` when it was last seen twice.
    """

    entry: DeviceEntry
    manage_from_ms: int = 0
    revoked: tuple[int, int] | None = None
    cloned_at_ms: int | None = None
    session_no: int = 0
    acks: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    token_families: dict[bytes, TokenFamily] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session; ``closed`` is (unix ms, reason) once it ended."""

    user_pk: int
    device_pk: int
    session_no: int
    opened_at_ms: int
    closed: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """An event that competes for a key; the highest wins, in the order of the attributes."""

    hlc: int
    device_id: bytes
    seq: int

    @property
    def rank(self) -> tuple[int, bytes, int]:
        """What is compared."""
        return self.hlc, self.device_id, self.seq


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An invite to register; ``used`` is (unix ms, user id) once somebody registered with it."""

    created_at_ms: int
    expires_at_ms: int
    note: str = ""
    used: tuple[int, bytes] | None = None


@dataclass(eq=False, slots=True)
class UserRow:
    """A user with devices and stream heads by row number; the lowest numbers are 1."""

    user_key: bytes
    next_root_hash: bytes
    devices: dict[int, DeviceRow] = field(default_factory=dict)
    heads: dict[int, StreamHead] = field(default_factory=dict)
    created_at_ms: int = 0
    disabled_at_ms: int | None = None
    deleted_at_ms: int | None = None
    quota: Quota = field(default_factory=Quota)

    def head(self, name: str) -> StreamHead | None:
        """The head of the stream with that name."""
        return next((head for head in self.heads.values() if head.name == name), None)


class MemoryDatabase:
    """What one database holds.

    Attributes:
        away: while it is true, everything raises Unavailable.
        refuses: rows that the database does not take, as a constraint would.
        epoch: as in ``server_state``; a test that plays a restore raises it and ``generation``.
        generation: changes when this is another database than before.
        users: by user_pk.
        events: rows by (user_pk, stream_pk), in order of seq.
        latest: the winner of each key by (user_pk, stream_pk).
        snapshots: by (user_pk, stream_pk) and seq.
        removals: events that lost their key, by (user_pk, stream_pk): seq and when the payload goes, unix milliseconds.
        sessions: by session id.
        invites: by the hash of their code.
        audit: what administrators did, in order.
        cuts: when which sessions were cut, by (user_pk, device_pk, session_no); (user_pk, 0, 0) are all of a user.
        deleted_users: when accounts were deleted, by the hash of their user ids.
        last_user_pk: row numbers up to here have been given out.
        locks: who holds which row.
    """

    def __init__(self) -> None:
        self.away = False
        self.refuses: Callable[[EventRow], bool] = refuses_nothing
        self.epoch = 0
        self.generation = 0
        self.users: dict[int, UserRow] = {}
        self.events: defaultdict[StreamPlace, list[EventRow]] = defaultdict(list)
        self.latest: defaultdict[StreamPlace, dict[bytes, Contender]] = defaultdict(dict)
        self.snapshots: defaultdict[StreamPlace, dict[int, SnapshotRow]] = defaultdict(dict)
        self.removals: defaultdict[StreamPlace, dict[int, int]] = defaultdict(dict)
        self.sessions: dict[bytes, SessionRow] = {}
        self.invites: dict[bytes, InviteRow] = {}
        self.audit: list[AuditEntry] = []
        self.cuts: dict[tuple[int, int, int], int] = {}
        self.deleted_users: dict[bytes, int] = {}
        self.last_user_pk = 0
        self.locks: dict[Hashable, object] = {}

    def check_here(self) -> None:
        """Raise Unavailable while the database is away."""
        if self.away:
            raise Unavailable("the database in memory plays that it is away")

    def user_pk(self, user_key: bytes) -> int | None:
        """The row number of a user."""
        return next((user_pk for user_pk, user in self.users.items() if user.user_key == user_key), None)
