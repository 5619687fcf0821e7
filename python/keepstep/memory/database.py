"""The tables of the log in memory, with the row locks and the atomic commits that the log relies on."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from keepstep.administration import Quota
from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.administration import AuditEntry
    from keepstep.eventlog.retention import TailAuthors
    from keepstep.eventlog.store import SnapshotRow, StreamPlace
    from keepstep.memory.restores import Window
    from keepstep.memory.rows import EventRow
    from keepstep.model import DeviceEntry, Position


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

    ``revoked`` is (unix ms, seq in ``$devices``) once it has ended, ``cloned_at_ms`` when it was last seen twice,
    ``cleaned_at_ms`` when it was last found inactive.
    """

    entry: DeviceEntry
    manage_from_ms: int = 0
    revoked: tuple[int, int] | None = None
    cloned_at_ms: int | None = None
    last_seen_at_ms: int | None = None
    cleaned_at_ms: int | None = None
    session_no: int = 0
    acks: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    token_families: dict[bytes, TokenFamily] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session; ``closed`` is (unix ms, reason) once it ended; ``seen_at_ms`` when it was last said to be open."""

    user_pk: int
    device_pk: int
    session_no: int
    opened_at_ms: int
    closed: tuple[int, str] | None = None
    seen_at_ms: int | None = None


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


@dataclass(frozen=True, slots=True)
class TailRow:
    """Where what is left of a stream begins: everything up to ``seq`` is gone, but for the rows in ``kept``."""

    seq: int
    chain: bytes
    authors: TailAuthors
    kept: tuple[EventRow, ...] = ()


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
        safe_at_ms: as in ``server_state``.
        generation: changes when this is another database than before.
        users: by user_pk.
        events: rows by (user_pk, stream_pk), in order of seq.
        latest: the winner of each key by (user_pk, stream_pk).
        snapshots: by (user_pk, stream_pk) and seq.
        tails: of streams that have lost their oldest events, by (user_pk, stream_pk).
        removals: events that lost their key, by (user_pk, stream_pk): seq and when the payload goes, unix milliseconds.
        sessions: by session id.
        invites: by the hash of their code.
        audit: what administrators did, in order.
        cuts: when which sessions were cut, by (user_pk, device_pk, session_no); (user_pk, 0, 0) are all of a user.
        deleted_users: when accounts were deleted, by the hash of their user ids.
        rewinds: heads right after each restore, by user_pk, epoch and name of the stream.
        heal_windows: by user_pk.
        turns: who has which work until when, unix milliseconds.
        last_user_pk: row numbers up to here have been given out.
        locks: who holds which row.
    """

    def __init__(self) -> None:
        self.away = False
        self.refuses: Callable[[EventRow], bool] = refuses_nothing
        self.epoch = 0
        self.safe_at_ms = 0
        self.generation = 0
        self.users: dict[int, UserRow] = {}
        self.events: defaultdict[StreamPlace, list[EventRow]] = defaultdict(list)
        self.latest: defaultdict[StreamPlace, dict[bytes, Contender]] = defaultdict(dict)
        self.snapshots: defaultdict[StreamPlace, dict[int, SnapshotRow]] = defaultdict(dict)
        self.tails: dict[StreamPlace, TailRow] = {}
        self.removals: defaultdict[StreamPlace, dict[int, int]] = defaultdict(dict)
        self.sessions: dict[bytes, SessionRow] = {}
        self.invites: dict[bytes, InviteRow] = {}
        self.audit: list[AuditEntry] = []
        self.cuts: dict[tuple[int, int, int], int] = {}
        self.deleted_users: dict[bytes, int] = {}
        self.rewinds: dict[int, dict[int, dict[str, Position]]] = {}
        self.heal_windows: dict[int, Window] = {}
        self.turns: dict[str, tuple[bytes, int]] = {}
        self.last_user_pk = 0
        self.locks: dict[Hashable, object] = {}

    def check_here(self) -> None:
        """Raise Unavailable while the database is away."""
        if self.away:
            raise Unavailable("the database in memory plays that it is away")

    def rows_after(self, place: StreamPlace, seq: int) -> list[EventRow]:
        """The rows of a stream that are there, above ``seq``."""
        rows = self.events[place]
        return rows[bisect_right(rows, seq, key=attrgetter("seq")) :]

    def row(self, place: StreamPlace, seq: int) -> EventRow | None:
        """The row at ``seq``, where it is there."""
        index = self._index(place, seq)
        return None if index is None else self.events[place][index]

    def drop_payload(self, place: StreamPlace, seq: int) -> None:
        """Drop the payload of a row, where the row is there, and what it took off its stream's bytes."""
        index = self._index(place, seq)
        if index is None:
            return
        row = self.events[place][index]
        self.events[place][index] = replace(row, payload=None, expires_at_ms=None)
        tail = self.tails.get(place)
        if tail is None or seq > tail.seq:
            heads = self.users[place[0]].heads
            heads[place[1]] = heads[place[1]].with_stored_bytes(heads[place[1]].stored_bytes - len(row.payload or b""))

    def _index(self, place: StreamPlace, seq: int) -> int | None:
        rows = self.events[place]
        index = bisect_left(rows, seq, key=attrgetter("seq"))
        return index if index < len(rows) and rows[index].seq == seq else None

    def user_pk(self, user_key: bytes) -> int | None:
        """The row number of a user."""
        return next((user_pk for user_pk, user in self.users.items() if user.user_key == user_key), None)
