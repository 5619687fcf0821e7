"""What the log needs of the place where it is kept: transactions over heads and events, and reads by position.

All of it blocks and is called in a worker thread, by one thread at a time for each ``Store`` or ``Reader``. Unless it
says otherwise, everything raises ``errors.Unavailable`` when the place is away; then nothing was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from keepstep.errors import KeepstepError, Unavailable
from keepstep.model import DevicePk, Policy, RetentionClass, StreamPk, UserPk, has_expired

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from keepstep._keepstep import Ingested, RememberedAccounts, RememberedHeads, StreamHead, Submission
    from keepstep.eventlog.retention import TailAuthors
    from keepstep.interfaces import Genesis, Page, SnapshotInfo
    from keepstep.model import AccountChange, DeviceEntry, Position, Principal, PrunedPrefix

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
COMPACTION_DELAY_MS: Final = 60 * 60 * 1000
"""How long an event that lost its key keeps its payload, so that devices that are there see what was (protocol.md)."""
ERASE_WALK_EVENTS_MAX: Final = 65_536
"""How many events of one author an erasure goes back: about a second of a transaction that others wait for."""
SNAPSHOTS_MAX: Final = 100
"""Snapshots of one stream that are listed; the newest are what anybody starts from."""
EVENT_OVERHEAD_BYTES_MAX: Final = 1_024
"""What header and signature of an event take at most: the longest stream name in it, all numbers at their longest."""
ROW_BYTES_MAX: Final = 128
"""What a row of a page takes at most beside its header and payload: signature, ids, times, framing."""


class TryAgain(KeepstepError):
    """The transaction was rolled back and what stood in its way is gone: decide and store again."""


class Contended(KeepstepError):
    """The transaction was rolled back because another one was in its way: store it under locks."""


class DataFault(KeepstepError):
    """The transaction was rolled back because the store refuses what it holds.

    Attributes:
        code: what the event at fault is answered: ``internal`` where the fault is ours.
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
        inboxes: names of the streams that the user's devices may have beside those.
        streams_max: the account's own quota; ``None`` where the server's limit counts.
    """

    user_key: bytes
    auth_epoch: int
    stream_count: int
    last_stream_pk: int
    inboxes: frozenset[str]
    streams_max: int | None = None


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
    policy: Policy
    ttl_max_s: int | None
    head_seq: int
    head_chain: bytes
    bytes_max: int | None = None
    stored_bytes: int = 0
    tail: Position | None = None


@dataclass(frozen=True, slots=True)
class FollowedRow:
    """A stream, and what one device did in it.

    Attributes:
        stream: as reads see it.
        author: (last_n, last_hash), ``None`` where it never wrote.
        acked_seq: up to where it acknowledged, 0 for nothing.
    """

    stream: StreamRow
    author: tuple[int, bytes] | None
    acked_seq: int


@dataclass(frozen=True, slots=True)
class LiveDevices:
    """The devices of a user that have not ended, as of one ``auth_epoch``.

    Attributes:
        auth_epoch: of ``$devices``; it moves when a device ends or comes back, and not when one is enrolled.
        expires_at_ms: by device_pk, unix milliseconds; ``None`` for never.
        bytes_max: the account's own quota of bytes, which moves ``auth_epoch`` too; ``None`` where the server's counts.
    """

    auth_epoch: int
    expires_at_ms: Mapping[int, int | None]
    bytes_max: int | None = None

    def lets_write(self, device_pk: int, now_ms: int) -> bool:
        """Whether the device is live and has not expired."""
        return not has_expired(self.expires_at_ms.get(device_pk, 0), now_ms)


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot as the log keeps it; its sealed state is in the event at ``seq``.

    Attributes:
        seq: of the snapshot itself.
        covers_seq: the last event that it holds.
        covers_chain: the chain there.
        device_pk: its author.
        received_at_ms: unix milliseconds.
        confirmed: seq of the first confirmation and its author, ``None`` before there is one.
    """

    seq: int
    covers_seq: int
    covers_chain: bytes
    device_pk: int
    received_at_ms: int
    confirmed: tuple[int, int] | None = None


class StoredStream(Protocol):
    """What lies in one stream, for the length of a transaction that has it locked."""

    def device_pks(self, device_ids: Collection[bytes]) -> dict[bytes, int]:
        """Row numbers of the user's devices, ended ones too; those that are not there are left out."""

    def chain(self, seq: int) -> bytes | None:
        """The chain at an event, ``None`` where the event is not there."""

    def authored(self, device_pk: int, numbers: Sequence[int], *, from_seq: int) -> list[Found]:
        """An author's events by their numbers, at most ``ERASE_WALK_EVENTS_MAX`` of its events back from ``from_seq``.

        Those that are further back, or gone, are left out.
        """

    def drop_payloads(self, places: Sequence[tuple[int, int]]) -> None:
        """Drop the payloads of events, by (seq, received_at_ms)."""

    def pruned_authors(self) -> TailAuthors:
        """Whose events up to which number are no part of the stream any more, with the hash of the last one."""

    def drop_kept(self, device_pk: int, numbers: Sequence[int]) -> None:
        """Drop the payloads of what is kept of an author's events that are gone, by number."""

    def erase_archived(self, device_pk: int, numbers: Sequence[int]) -> None:
        """Have the payloads of an author's events leave the archive, where the stream has anything there, by number."""

    def add_snapshot(self, snapshot: SnapshotRow) -> None:
        """Keep a snapshot."""

    def snapshot_author(self, seq: int) -> int | None:
        """device_pk of the snapshot's author, ``None`` where there is no snapshot at ``seq``."""

    def emptied_header(self, seq: int) -> bytes | None:
        """The header of the event at ``seq`` where its payload has gone, else ``None``."""

    def confirm_snapshot(self, snapshot_seq: int, *, seq: int, device_pk: int) -> None:
        """Keep its first confirmation; a later one changes nothing."""


class Transaction(Protocol):
    """One open transaction. Leaving its context without ``commit`` rolls it back."""

    def lock(self, keys: Collection[StreamKey]) -> Loaded:
        """Heads under lock, ``$devices`` of every user with them, so that no other transaction moves or creates them.

        Raises:
            Contended: the locks could not be had in time.
        """

    def write(self, ingested: Ingested, *, created: Collection[StreamKey]) -> frozenset[StreamPlace]:
        """Move heads by compare and set, create the streams in ``created``, store the events of what moved.

        Policies, and the winners and losers of keys, go with the heads they came by.

        Returns:
            The streams that did not move, because another transaction moved or created them; nothing of them is stored.

        Raises:
            TryAgain, Contended, DataFault: as they say.
        """

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """The live devices of users whose ``$devices`` is locked."""

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """As ``Store.stored_bytes``, with what this transaction wrote."""

    def stored(self, head: StreamHead) -> StoredStream:
        """What lies in a stream that this transaction has locked, up to ``head``, and what it writes there itself."""

    def next_device_pk(self, user_pk: int) -> DevicePk:
        """The row number that ``apply_account_change`` gives the next device; ``$devices`` is locked."""

    def apply_account_change(self, user_pk: int, change: AccountChange, *, seq: int, received_at_ms: int) -> None:
        """Change the device table as the event of ``$devices`` at ``seq`` says, which is stored with it.

        Where access changes, ``auth_epoch`` of all the user's streams goes up by one.

        Raises:
            DataFault: an id or key was used before.
        """

    def create_user(self, genesis: Genesis, *, now_ms: int) -> UserPk | None:
        """A new user; ``None`` where the user is there already."""

    def use_invite(self, code_hash: bytes, user_key: bytes, *, now_ms: int) -> bool:
        """Use up an invite for a user; whether there was one that was neither used nor expired."""

    def open_account(self, ingested: Ingested, keys_head: StreamHead, device: DeviceEntry, *, now_ms: int) -> None:
        """Store a new user's ``$devices`` with its genesis event, the empty ``$keys``, and the first device."""

    def begin_after(
        self,
        head: StreamHead,
        prefix: PrunedPrefix,
        device_pks: Mapping[bytes, int],
        authors: Sequence[tuple[int, int, int, bytes]],
        *,
        now_ms: int,
    ) -> None:
        """Create a stream whose events up to ``head`` are gone, with what is kept of them.

        Args:
            head: at the tail.
            prefix: what is gone.
            device_pks: of its authors, by device id.
            authors: (device_pk, last_n, last_seq, last_hash).
            now_ms: unix milliseconds.
        """

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

    def append(self, ingested: Ingested) -> bool:
        """Move heads, store the events of what moves and make it durable, by a shorter way than a transaction.

        Only for what ``only_moves``, in streams that there are.

        Returns:
            Whether it is done; where not, nothing is stored, and ``begin`` does it or shows why it cannot be done: a
            head was moved by another transaction, or there is no shorter way now.

        Raises:
            TryAgain, Contended, DataFault, Unavailable, OutcomeUnknown: as ``Transaction.write`` and ``commit``;
                TryAgain also when the generation has changed.
        """

    def begin(self) -> AbstractContextManager[Transaction]:
        """Open a transaction. Raises TryAgain when the generation has changed."""

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """The live devices of users, as of one snapshot. Raises TryAgain when the generation has changed."""

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """What users store outside ``$devices`` and ``$keys``, bytes.

        Raises TryAgain when the generation has changed.
        """

    def device_chains(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """The chains of ``$devices`` by (user_pk, seq), chain_0 at 0; of those that there are.

        Raises TryAgain when the generation has changed.
        """

    def find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        """Stored events by author number, at most ``WALK_EVENTS_MAX`` of the author's events back."""

    def confirm(self) -> None:
        """What was seen stored is as safe as what is acknowledged: a wait for a standby may have been cut short.

        Raises:
            OutcomeUnknown: it may be lost if a standby takes over.
        """

    def user_pk(self, user_key: bytes) -> UserPk | None:
        """The user's row number, if there is such a user."""

    def is_deleted(self, user_key: bytes) -> bool:
        """Whether an account of that user was deleted, however long ago."""


class Reader(Protocol):
    """The reading side, for the length of one read."""

    def stream(self, user_pk: UserPk, name: str) -> StreamRow | None:
        """One stream."""

    def streams(self, user_pk: UserPk) -> list[StreamRow]:
        """All streams of a user: ``$devices``, ``$keys``, then by name."""

    def follow(self, principal: Principal, names: Collection[str] | None) -> list[FollowedRow]:
        """Streams of a device's user with what the device did in them, in the order of ``streams``; ``None``: all."""

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

    def pruned(self, stream: StreamRow) -> PrunedPrefix | None:
        """What stands for the beginning of a stream, ``None`` where nothing of it is gone."""

    def snapshots(self, stream: StreamRow, *, rows_max: int) -> list[SnapshotInfo]:
        """The newest snapshots of a stream, newest first."""


class Past(Protocol):
    """Events that are gone from the database with the beginnings of their streams, and are elsewhere."""

    async def page(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page | None:
        """As ``EventLog.read``, below the tail; ``None`` where they are gone for good. Raises Unavailable."""

    async def chain(self, user_pk: UserPk, stream: str, seq: int) -> bytes | None:
        """The chain at a position below the tail; ``None`` where that is gone for good. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A batch that may be decided upon what is remembered.

    Attributes:
        submissions: the events, in order.
        heads: of streams.
        accounts: their live devices, and positions that there are.
        now_ms: unix milliseconds.
        received_at_ms_max: heads that were received later are not believed.
        generation: of what is remembered.
    """

    submissions: Sequence[Submission]
    heads: RememberedHeads
    accounts: RememberedAccounts
    now_ms: int
    received_at_ms_max: int
    generation: int


class Backend(Protocol):
    """Where the log is kept: gets work on a store into a thread and back."""

    def generation(self) -> int:
        """As ``Store.generation``, known without asking."""

    def epoch(self) -> int:
        """As ``EventLog.epoch``."""

    async def append_known(self, batch: KnownBatch) -> Ingested | None:
        """Decide a batch and make it durable, where all that this takes is remembered; a cancellation waits for it.

        Returns:
            What was committed; ``None`` where it does not go this way, and nothing was stored.

        Raises:
            Contended: nothing was stored: another transaction had moved a head.
            TryAgain, DataFault, Unavailable, OutcomeUnknown: as ``Store.append``.
        """

    async def write(self, work: Callable[[Store], T]) -> T:
        """Run ``work`` with a store. A cancellation waits for its end. Raises Unavailable while the store is away."""

    async def read(self, user_pk: UserPk, work: Callable[[Reader], T]) -> T:
        """Run ``work``, perhaps twice, with a reader that is to be shown the rows of that user only.

        Raises Unavailable while the store is away.
        """
