"""The tables of the log in memory, with the row locks and the atomic commits that the log relies on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.eventlog.store import StreamPlace
    from keepstep.memory.rows import EventRow
    from keepstep.model import DeviceEntry


def refuses_nothing(row: EventRow) -> bool:
    """What a database does that stores whatever it is given."""
    del row
    return False


@dataclass(eq=False, slots=True)
class DeviceRow:
    """A device, its session number, and up to where it acknowledged which stream."""

    entry: DeviceEntry
    session_no: int = 0
    acks: dict[int, tuple[int, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session; ``closed`` is (unix ms, reason) once it ended."""

    user_pk: int
    device_pk: int
    session_no: int
    opened_at_ms: int
    closed: tuple[int, str] | None = None


@dataclass(eq=False, slots=True)
class UserRow:
    """A user with devices and stream heads by row number; the lowest numbers are 1."""

    user_key: bytes
    devices: dict[int, DeviceRow] = field(default_factory=dict)
    heads: dict[int, StreamHead] = field(default_factory=dict)

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
        sessions: by session id.
        locks: who holds which row.
    """

    def __init__(self) -> None:
        self.away = False
        self.refuses: Callable[[EventRow], bool] = refuses_nothing
        self.epoch = 0
        self.generation = 0
        self.users: dict[int, UserRow] = {}
        self.events: defaultdict[StreamPlace, list[EventRow]] = defaultdict(list)
        self.sessions: dict[bytes, SessionRow] = {}
        self.locks: dict[Hashable, object] = {}

    def check_here(self) -> None:
        """Raise Unavailable while the database is away."""
        if self.away:
            raise Unavailable("the database in memory plays that it is away")

    def user_pk(self, user_key: bytes) -> int | None:
        """The row number of a user."""
        return next((user_pk for user_pk, user in self.users.items() if user.user_key == user_key), None)
