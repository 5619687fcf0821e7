"""What the log needs of the place where it is kept: transactions over heads and events, and reads by position.

All of it blocks and is called in a worker thread, by one thread at a time for each ``Store`` or ``Reader``. Unless it
says otherwise, everything raises ``errors.Unavailable`` when the place is away; then nothing was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from keepstep.errors import KeepstepError, Unavailable
from keepstep.model import DevicePk, RetentionClass, StreamPk, UserPk

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from keepstep._keepstep import Ingested, StreamHead
    from keepstep.interfaces import Genesis
    from keepstep.model import DeviceEntry

T = TypeVar("T")

StreamKey = tuple[int, str]
"""(user_pk, stream name), as ingest keys heads."""
StreamPlace = tuple[int, int]
"""(user_pk, stream_pk)."""

DEVICES_STREAM_PK: Final = StreamPk(1)
"""``$devices``: the lowest of each user, so that it is locked first."""
KEYS_STREAM_PK: Final = StreamPk(2)
"""``$keys``."""
WALK_EVENTS_MAX: Final = 1024
"""How many events of one author a lookup goes back (protocol.md section 3, ``duplicate(unchecked)``)."""
ROW_BYTES_MAX: Final = 128
"""What a row of a page takes at most beside its header and payload: signature, ids, times, framing."""


class TryAgain(KeepstepError):
    """The transaction was rolled back and what stood in its way is gone: decide and store again."""


class Contended(KeepstepError):
    """The transaction was rolled back because another one was in its way: store it under locks."""


class DataFault(KeepstepError):
    """The transaction was rolled back because the store refuses what it holds.

    Attributes:
        code: what the event at fault is answered: ``unprocessable``, or ``internal`` where the fault is ours.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class OutcomeUnknown(Unavailable):
    """The connection was lost during COMMIT and nothing could be learned since: it may be stored or not."""


@dataclass(frozen=True, slots=True)
class UserStreams:
    """What creating a stream takes to know of its user.

    Attributes:
        user_key: the user id, 32 bytes.
        auth_epoch: of ``$devices``; a new stream starts with it.
        stream_count: streams the user has.
        last_stream_pk: the highest of them.
    """

    user_key: bytes
    auth_epoch: int
    stream_count: int
    last_stream_pk: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Heads as the store has them; ``users`` holds the users of the streams that were asked for and are not there."""

    heads: dict[StreamKey, StreamHead] = field(default_factory=dict)
    users: dict[int, UserStreams] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where an author's event is looked for: back from ``from_seq``, event by event, to author number ``n``."""

    user_pk: int
    stream_pk: int
    retention_class: int
    from_seq: int
    n: int


@dataclass(frozen=True, slots=True)
class Found:
    """A stored event that a lookup found."""

    seq: int
    received_at_ms: int
    header: bytes
    sig: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream as reads see it."""

    user_pk: UserPk
    user_key: bytes
    stream_pk: StreamPk
    name: str
    retention_class: RetentionClass
    head_seq: int
    head_chain: bytes


class Transaction(Protocol):
    """One open transaction. Leaving its context without ``commit`` rolls it back."""

    def lock(self, keys: Collection[StreamKey]) -> Loaded:
        """Heads under lock, ``$devices`` of every user with them, so that no other transaction moves or creates them.

        Raises:
            Contended: the locks could not be had in time.
        """

    def write(self, ingested: Ingested, *, created: Collection[StreamKey]) -> frozenset[StreamPlace]:
        """Move heads by compare and set, create the streams in ``created``, store the events of what moved.

        Returns:
            The streams that did not move, because another transaction moved or created them; nothing of them is stored.

        Raises:
            TryAgain, Contended, DataFault: as they say.
        """

    def enrol(self, user_pk: int, device: DeviceEntry, *, now_ms: int) -> None:
        """Add a device. Raises DataFault where its id or key was used before."""

    def create_user(self, genesis: Genesis, *, now_ms: int) -> UserPk | None:
        """A new user; ``None`` where the user is there already."""

    def open_account(self, ingested: Ingested, keys_head: StreamHead, device: DeviceEntry, *, now_ms: int) -> None:
        """Store a new user's ``$devices`` with its genesis event, the empty ``$keys``, and the first device."""

    def commit(self) -> None:
        """Make it durable: when this returns, all of it has been fsynced.

        Raises:
            Unavailable: it was not stored, which is known and not guessed.
            OutcomeUnknown: see there.
        """


class Store(Protocol):
    """The writing side, for the length of one ``append``."""

    def generation(self) -> int:
        """Changes when the store turns out to be another one than before: what was remembered of it is void."""

    def load(self, keys: Collection[StreamKey]) -> Loaded:
        """Heads as of one snapshot, without locks. Raises TryAgain when the generation has changed."""

    def begin(self) -> AbstractContextManager[Transaction]:
        """Open a transaction. Raises TryAgain when the generation has changed."""

    def find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        """Stored events by author number, at most ``WALK_EVENTS_MAX`` of the author's events back."""

    def user_pk(self, user_key: bytes) -> UserPk | None:
        """The user's row number, if there is such a user."""


class Reader(Protocol):
    """The reading side, for the length of one read."""

    def stream(self, user_pk: UserPk, name: str) -> StreamRow | None:
        """One stream."""

    def streams(self, user_pk: UserPk) -> list[StreamRow]:
        """All streams of a user: ``$devices``, ``$keys``, then by name."""

    def page(
        self, stream: StreamRow, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> tuple[list[tuple[int, bytes, int, bytes, bytes, bytes | None]], bytes]:
        """Rows (seq, device_id, received_at_ms, header, sig, payload) after a position, and the chain at the last.

        At least one row if there is any, even if it alone is above ``bytes_max``. Expired payloads are ``None``.
        """

    def chain(self, stream: StreamRow, seq: int) -> bytes | None:
        """The chain at an event, ``None`` where the event is not there."""

    def author(self, stream: StreamRow, device_pk: DevicePk) -> tuple[int, bytes] | None:
        """(last_n, last_hash) of an author, ``None`` where it never wrote."""


class Backend(Protocol):
    """Where the log is kept: gets work on a store into a thread and back."""

    def generation(self) -> int:
        """As ``Store.generation``, known without asking."""

    async def write(self, work: Callable[[Store], T]) -> T:
        """Run ``work`` with a store. A cancellation waits for its end. Raises Unavailable while the store is away."""

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run ``work`` with a reader; it may run twice. Raises Unavailable while the store is away."""
