"""What the services need from the edges: each is implemented over PostgreSQL or memory and handed in by ``server``.

Implementations of one interface pass one contract suite (``tests/contract``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from keepstep.errors import KeepstepError
from keepstep.protocol.results import decode_results

if TYPE_CHECKING:
    import trio

    from keepstep._keepstep import RecordReader, RecordSealer, Run, Submission
    from keepstep.errors import ProtocolError
    from keepstep.eventlog.healing import LostEvents
    from keepstep.eventlog.store import StreamKey
    from keepstep.model import (
        AccountChange,
        ClonedDevice,
        DeviceEntry,
        DevicePk,
        KnownDevice,
        Policy,
        Position,
        Principal,
        PrunedPrefix,
        RetentionClass,
        RevokedDevice,
        Rotation,
        StreamPk,
        UserPk,
    )
    from keepstep.protocol.messages import Result

    Opened: TypeAlias = tuple[int, Submission | ProtocolError] | bytes | ProtocolError
    """What a record was, as ``RecordReader.read`` gives it: a publish, another message, what ends the session."""

T = TypeVar("T")

RESUMED_TOGETHER_MAX: Final = 256
"""Streams of a session that are looked up, and answered, at once."""


class Clock(Protocol):
    """Time, injected so that a simulation owns it."""

    def now_ms(self) -> int:
        """Wall clock, unix milliseconds; may step."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary point; never steps back."""


class Randomness(Protocol):
    """Cryptographic randomness, injected so that a simulation owns it."""

    def bytes(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""


class Threads(Protocol):
    """The hop to a worker thread, injected so that a simulation owns it."""

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """Run ``function`` in a worker thread; never abandoned on cancel: a cancellation waits for its end."""


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events of one stream, ready to send.

    Attributes:
        after: the position the page continues; its first row has seq ``after + 1``.
        rows: concatenated MessagePack ``EventRow`` values.
        count: how many.
        last_seq: seq of the last row, ``after`` where there is none.
        chain: the chain at ``last_seq``.
        head_seq: the stream's head when the page was read; ``last_seq == head_seq`` means caught up.
    """

    after: int
    rows: bytes
    count: int
    last_seq: int
    chain: bytes
    head_seq: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as a session needs it.

    Attributes:
        user_pk: whose it is.
        stream_pk: its row number.
        name: unique within the user.
        head: its last event, and the chain there.
        policy: what becomes of concurrent events.
        retention_class: which event table its rows live in.
        ttl_max_s: the longest life of an application event, seconds; ``None`` where it may live for ever.
        bytes_max: what its policy lets it store, bytes; ``None`` where that sets no bound.
        stored_bytes: of headers, signatures and payloads.
        tail: everything up to here is gone (``EventLog.pruned``); ``None`` where the stream has all its events.
    """

    user_pk: UserPk
    stream_pk: StreamPk
    name: str
    head: Position
    policy: Policy
    retention_class: RetentionClass
    ttl_max_s: int | None
    bytes_max: int | None = None
    stored_bytes: int = 0
    tail: Position | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """A stream as a device finds it that goes on from a position.

    Attributes:
        info: the stream.
        author: (last_n, last_hash) of the device in it; (0, 32 zero bytes) where it never wrote.
        acked_seq: up to where the device has acknowledged it.
        chain: at the position that was named, the acknowledged one where none was; ``None`` where that is above the
            head, or it was not looked up, or cannot be told at once (``EventLog.chain_at``).
    """

    info: StreamInfo
    author: tuple[int, bytes]
    acked_seq: int
    chain: bytes | None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot of a stream (protocol.md section 3); its sealed state is in the event at ``seq``.

    Attributes:
        seq: of the snapshot itself.
        covers: the last event that it holds, and the chain there.
        device_id: its author.
        received_at_ms: unix milliseconds.
        confirmed: seq of the first confirmation and its author, ``None`` before there is one.
    """

    seq: int
    covers: Position
    device_id: bytes
    received_at_ms: int
    confirmed: tuple[int, bytes] | None


class EventLog(Protocol):
    """The append-only log per stream (docs/explanation/log.md); ``append`` is called by one pipeline per user."""

    def generation(self) -> int:
        """Changes when the log turns out to be another one than it was: restored, promoted, replaced.

        Positions, heads and row numbers learned before mean nothing in it.
        """

    def epoch(self) -> int:
        """The log's epoch: unix milliseconds of the latest restore, 0 where there was none (protocol.md section 4).

        Known once anything was asked of the log. It never changes without ``generation``.
        """

    async def create_account(self, genesis: Genesis, *, now_ms: int, invite_hash: bytes | None = None) -> Result:
        """Create user, first device, ``$devices``, ``$keys`` and append the genesis event, in one transaction.

        Idempotent: the same genesis again answers the duplicate; another one for the same user ``id_reused``. With
        ``invite_hash`` that invite is used up in the same transaction, or the answer is ``invite_invalid``.

        Raises:
            Unavailable: the outcome is not that it was stored, or it is unknown even after looking.
        """

    async def append(
        self, batch: Sequence[Submission], *, now_ms: int, account_change: AccountChange | None = None
    ) -> Appended:
        """Verify, order and store a batch durably: when it returns, every accepted event has been fsynced.

        ``account_change`` comes with a batch of exactly one submission of exactly one event. Streams named by the
        events and not there yet are created (kind 0 in an application stream by a device that may publish; at most
        ``streams_per_user_max``). A cancellation waits for the outcome.

        Raises:
            Unavailable: nothing of the batch was stored (known, not guessed).
        """

    async def rotate(self, rotation: Rotation, change: AccountChange, *, now_ms: int) -> Result:
        """Append a checked rotation by a device that it enrols itself, and what it changes, in one transaction.

        Raises:
            Unavailable: not stored: ``$devices`` has moved since ``change.checked_seq``, or the database is away; or
                it is unknown even after looking.
        """

    async def heal(self, key: StreamKey, before: Position, lost: Sequence[LostEvents], *, is_proven: bool) -> None:
        """Store events that a restore lost behind a stream's head ``before``, all or none (``eventlog.healing.heal``).

        What is not proven stays within the bounds of what is new, and its authors have to be live.

        A cancellation waits for the outcome. Raises as ``eventlog.healing.heal``.
        """

    async def read(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page:
        """Events after a position, from the in-memory tail when that reaches, from the database when not.

        Raises:
            ProtocolError: ``unknown_stream``; ``unknown_position`` where ``after`` is above the head.
            Unavailable: the database is needed and away.
        """

    def ends_with(self, stream: str, run: Run) -> bool:
        """Whether the in-memory tail of a stream ends with ``run``: ``read_in_memory`` gives its events as they are.

        Those that have expired aside (``Run.expires_at_ms``).
        """

    def read_in_memory(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page | None:
        """The page that ``read`` would return, where the in-memory tail has it; ``None``: only the database knows."""

    async def chain_at(self, user_pk: UserPk, stream: str, seq: int) -> bytes:
        """The chain at ``seq`` (chain_0 at 0). Raises as ``read``."""

    async def author(self, user_pk: UserPk, stream: str, device_pk: DevicePk) -> tuple[int, bytes]:
        """(last_n, last_hash) of a device in a stream; (0, 32 zero bytes) where it never wrote. Raises as ``read``."""

    async def stream(self, user_pk: UserPk, name: str) -> StreamInfo:
        """Head of one stream. Raises as ``read``."""

    async def streams(self, user_pk: UserPk) -> list[StreamInfo]:
        """All streams of a user: ``$devices``, ``$keys``, then by name."""

    async def follow(
        self, principal: Principal, starts: Mapping[str, int | None], *, every: bool, known: Collection[str] = ()
    ) -> list[Followed]:
        """What a device has to know of streams to go on with them, in one question.

        Args:
            principal: the device.
            starts: by name, the seq where it goes on, if it names one. Streams that are not there are left out.
            every: of all streams of the user; their order is that of ``streams``. Of those that ``starts`` does not
                name, at most ``RESUMED_TOGETHER_MAX`` chains are looked up.
            known: with ``every``, streams whose chain is of no use to the caller unless ``starts`` names them.

        Raises:
            Unavailable: the database is away.
        """

    async def pruned(self, user_pk: UserPk, stream: str) -> PrunedPrefix | None:
        """What stands for the beginning of a stream; ``None`` where nothing of it is gone. Raises as ``stream``."""

    async def begin_after(self, user_pk: UserPk, stream: str, prefix: PrunedPrefix, *, now_ms: int) -> bool:
        """Create a stream whose first events are gone; whether it was not there (``beginning.begin_after``)."""

    async def snapshots(self, user_pk: UserPk, stream: str) -> list[SnapshotInfo]:
        """The newest snapshots of a stream, newest first. Raises as ``read``."""

    def subscribe_commits(self, listener: Callable[[Sequence[tuple[StreamKey, Run]]], None]) -> None:
        """Call ``listener`` in the Trio thread after each commit with what it added; it must not block or raise."""

    def subscribe_device_commits(self, listener: Callable[[Sequence[Run]], None]) -> None:
        """As ``subscribe_commits``, with the runs in ``$devices`` of any user, where there were some."""


@dataclass(frozen=True, slots=True)
class Genesis:
    """A checked genesis event (``identity.check_genesis``): user, first device, and the event as signed."""

    user_key: bytes
    next_root_hash: bytes
    device: DeviceEntry
    header: bytes
    sig: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch.

    Attributes:
        encoded: per submission, the answers for ``messages.Accepted``, in order of its events, runs joined; encoded as
            in ``protocol.results``, for most of them only travel on.
        counts: how many events were answered ``accepted``, ``duplicate`` or the code of an error.
        suspects: indices of submissions that held a bad signature.
    """

    encoded: list[bytes]
    counts: Mapping[str, int]
    suspects: frozenset[int]

    @property
    def results(self) -> list[list[Result]]:
        """The answers, decoded anew each time."""
        return [decode_results(each) for each in self.encoded]


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device of an account, live or ended.

    Attributes:
        device_pk: its row number.
        entry: as ``$devices`` lists it.
        manage_from_ms: unix milliseconds from which on it manages, 0 for at once.
        revoked: unix milliseconds and the seq in ``$devices`` at which it ended, ``None`` while it is live.
        last_seen_ms: unix milliseconds at which it was connected last, or got tokens; ``None``: never. Nothing signed
            says so, it is the server's word.
    """

    device_pk: DevicePk
    entry: DeviceEntry
    manage_from_ms: int
    revoked: tuple[int, int] | None
    last_seen_ms: int | None = None


class Claim(Protocol):
    """Who a device says it is, after it proved that it holds ``device_key``."""

    @property
    def user_key(self) -> bytes:
        """The user id, 32 bytes."""

    @property
    def device_id(self) -> bytes:
        """16 bytes, unique within the user."""

    @property
    def device_key(self) -> bytes:
        """32 bytes."""


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A device that connects, and its session.

    Attributes:
        known: the device, live or ended.
        session_no: its session's number, above those of its earlier ones; ``None`` where it got no session: it has
            ended or expired, or has another key than the one claimed.
        devices_pk: row number of its user's ``$devices``.
        devices: the head of that.
    """

    known: KnownDevice
    session_no: int | None
    devices_pk: StreamPk
    devices: Position


class Accounts(Protocol):
    """Users, devices and sessions."""

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """The live device, or ``None`` for an unknown user or device. Raises Unavailable."""

    async def device(self, user_key: bytes, device_id: bytes) -> KnownDevice | None:
        """The device, live or ended, or ``None`` for an unknown user or device. Raises Unavailable."""

    async def user(self, user_key: bytes) -> UserPk | None:
        """The user's row number, ``None`` for an unknown user. Raises Unavailable."""

    async def revoked_since(self, since_ms: int) -> list[RevokedDevice]:
        """Devices that ended at ``since_ms`` or later, by ``received_at``, the latest first, at most 10,000.

        Raises:
            Unavailable: the database is away.
        """

    async def record_clone(self, principal: Principal, *, now_ms: int) -> None:
        """Record that a device connects from more than one place. Raises Unavailable."""

    async def cloned_since(self, since_ms: int) -> list[ClonedDevice]:
        """Devices noticed as cloned at ``since_ms`` or later, the latest first, at most 10,000. Raises Unavailable."""

    async def devices(self, user_pk: UserPk) -> list[ListedDevice]:
        """All devices of a user, also those that have ended, in order of enrolment. Raises Unavailable."""

    async def open_session(self, claim: Claim, session_id: bytes, *, now_ms: int) -> OpenedSession | None:
        """Look a device up and record a session of it, where it may have one; ``None``: an unknown user or device.

        Unknown takes as long as known. A number that was given fences the device's older sessions.

        Raises:
            Unavailable: the database is away.
        """

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """Record the end. Raises Unavailable."""

    async def keep_sessions(self, *, now_ms: int) -> None:
        """Record that the sessions opened here are open still, and their devices seen.

        One that was taken for a dead node's meanwhile (``Housekeeping.close_lost_sessions``) is open again. Raises
        Unavailable: some may have been recorded. A cancellation waits.
        """

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """Move ack positions up, never down nor above a stream's head. Raises Unavailable."""


class Maintenance(Protocol):
    """Housekeeping of the log: one short unit of work each, which the server's jobs repeat. All raise Unavailable."""

    async def ping(self) -> None:
        """One round trip to the store, for readiness."""

    async def now_ms(self) -> int:
        """The store's own clock, unix milliseconds, which ``received_at`` follows."""

    async def safe_at_ms(self) -> int:
        """What was received by then is in a verified backup, unix milliseconds; 0 for nothing."""

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """Make the event partitions of the running period and ``ahead`` more; returns how many were missing."""

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of at most ``rows_max`` events whose TTL ran out; returns how many (0: done)."""

    async def empty_inboxes(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of about ``rows_max`` messages that the inbox's device acknowledged; how many (0: done).

        ``now_ms`` has no say in it.
        """

    async def compact(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of at most ``rows_max`` events that lost their key an hour ago; how many (0: done).

        Only in streams of the policy ``latest`` (protocol.md section 3).
        """


class ConnectionClosed(KeepstepError):
    """The peer or the network ended a device's connection; nothing more can be sent or received."""


class Receiver(Protocol):
    """Who a connection hands over to, once it listens: called in the Trio thread, never while it calls the connection.

    An exception ends the connection and is raised from ``listen``, or ``over``.
    """

    def received(self, opened: Sequence[Opened], record_bytes: int, now_s: float) -> None:
        """What arrived together, in order: at most a chunk of bytes, and a message begun before it.

        Args:
            opened: nothing comes after what ends the session.
            record_bytes: size of the records that it was.
            now_s: Trio time, of which many connections have the same.
        """

    def writable(self) -> None:
        """What was written has gone. It surely comes after ``blocked``, and may come without."""

    def lost(self, reason: ProtocolError | None) -> None:
        """The peer is gone, or broke the protocol in the way named; nothing comes after it. Called once at most."""


class RestingReceiver(Receiver, Protocol):
    """One that has no task while its connection rests."""

    async def resume(self) -> None:
        """The connection rests no more: await ``over``, then close it. In a task of its own, once."""


class Records(NamedTuple):
    """A session's records, while a connection listens.

    Attributes:
        reader: opens what comes.
        sealer: makes records of what is written; ``None``: it goes as it is.
    """

    reader: RecordReader
    sealer: RecordSealer | None = None


class Resting(Protocol):
    """A connection that can listen without a task, so that an idle device costs none."""

    def rest(self, receiver: RestingReceiver, records: Records) -> None:
        """Listen; whom the connection was given to returns now, and leaves it open. Never raises: ``over`` does.

        ``receiver.resume`` is called in a task once it is over, once the receiver has raised, after ``rouse``, and when
        the connections are cancelled.
        """

    def rouse(self) -> None:
        """Call ``resume`` now, unless it was called."""

    def stop(self) -> None:
        """Listen no more: it is over, and nothing more is handed over."""

    @property
    def is_over(self) -> bool:
        """Whether ``over`` has nothing to wait for."""

    async def over(self) -> None:
        """Within ``resume``: as ``Connection.listen``, from where ``rest`` is."""

    def part(self, code: int, reason: str, parted: Callable[[], None]) -> None:
        """Within ``resume``, at its end: as ``Connection.close``, which goes on without a task.

        ``parted`` is called once the connection is closed, perhaps at once; also where the connections are cancelled.
        """


class Connection(Protocol):
    """One device's message transport, as ``websocket`` implements it: awaited up to ``listen``, called back within it.

    Attributes:
        address: the peer's IP address.
        accepted_at_s: Trio time when the socket was accepted: deadlines up to ``active`` run from here.
    """

    address: str
    accepted_at_s: float

    @property
    def resting(self) -> Resting | None:
        """How it listens without a task; ``None`` where it cannot."""

    @property
    def backlog_bytes(self) -> int:
        """Framed bytes that the kernel has not taken yet."""

    @property
    def blocked(self) -> bool:
        """Whether the socket takes no more for now; ``writable()`` follows once the whole backlog has gone."""

    async def listen(self, receiver: Receiver, records: Records) -> None:
        """Hand all that comes to ``receiver``, opened with ``records``, until it is over or this is cancelled.

        What is written is sealed with them. Nobody else opens or seals with them meanwhile.
        Instead of ``receive`` and ``send``; afterwards only ``close`` is left. Cancelled, it does not call ``lost``.
        What is in the backlog then is lost: wait for ``writable`` first where it must not be.
        """

    def write(self, messages: Sequence[bytes | None]) -> None:
        """Send messages in order, with what else is sent in this turn; never waits. Lost where it does not listen.

        As ``ServerSession.prepare`` returns them, where ``listen`` was given a sealer.
        """

    def pause(self) -> None:
        """Take nothing more from the socket. What was handed over is the receiver's."""

    def resume(self) -> None:
        """Take from it again."""

    async def receive(self) -> bytes:
        """The next binary message. Cancel-safe: a cancelled call loses nothing; one receiver at a time.

        Raises:
            ConnectionClosed: the connection is over.
            ProtocolError: ``too_large`` (above the limit in force) or ``malformed`` (a text message).
        """

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, in one write. One sender at a time.

        Not cancel-safe: after a cancelled send the connection can only be closed, and without a close code.

        Raises:
            ConnectionClosed: the connection is over.
        """

    async def close(self, code: int, reason: str) -> None:
        """Tell the peer why and close. Bounded in time, never raises, works when cancelled, may be called again."""

    def authenticated(self) -> None:
        """From now on the limits of an authenticated device apply; before that, a stranger's."""
