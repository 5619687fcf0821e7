"""What the services need from the edges: each is implemented over PostgreSQL or memory and handed in by ``server``.

Implementations of one interface pass one contract suite (``tests/contract``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from keepstep.errors import KeepstepError

if TYPE_CHECKING:
    import trio

    from keepstep._keepstep import Run, Submission
    from keepstep.model import DeviceEntry, DevicePk, Position, Principal, StreamPk, UserPk
    from keepstep.protocol.messages import Result

T = TypeVar("T")


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
    """A stream as a session needs it."""

    user_pk: UserPk
    stream_pk: StreamPk
    name: str
    head: Position


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What an accepted event of ``$devices`` does to the device table, applied in the event's own transaction.

    Attributes:
        enrolled: the device that becomes live; its author is the submission's device.
        checked_seq: the head of ``$devices`` the event was checked against. Where another event came in between,
            ``append`` raises Unavailable and the caller checks it against the new head; ``None`` asks for no such test.
    """

    enrolled: DeviceEntry
    checked_seq: int | None = None


class EventLog(Protocol):
    """The append-only log per stream (docs/explanation/log.md); ``append`` is called by one pipeline per user."""

    async def create_account(self, genesis: Genesis, *, now_ms: int) -> Result:
        """Create user, first device, ``$devices``, ``$keys`` and append the genesis event, in one transaction.

        Idempotent: the same genesis again answers the duplicate; another one for the same user ``id_reused``.

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

    async def read(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page:
        """Events after a position, from the in-memory tail when that reaches, from the database when not.

        Raises:
            ProtocolError: ``unknown_stream``; ``unknown_position`` where ``after`` is above the head.
            Unavailable: the database is needed and away.
        """

    async def chain_at(self, user_pk: UserPk, stream: str, seq: int) -> bytes:
        """The chain at ``seq`` (chain_0 at 0). Raises as ``read``."""

    async def author(self, user_pk: UserPk, stream: str, device_pk: DevicePk) -> tuple[int, bytes]:
        """(last_n, last_hash) of a device in a stream; (0, 32 zero bytes) where it never wrote. Raises as ``read``."""

    async def stream(self, user_pk: UserPk, name: str) -> StreamInfo:
        """Head of one stream. Raises as ``read``."""

    async def streams(self, user_pk: UserPk) -> list[StreamInfo]:
        """All streams of a user: ``$devices``, ``$keys``, then by name."""

    def subscribe_commits(self, listener: Callable[[Sequence[Run]], None]) -> None:
        """Call ``listener`` in the Trio thread after each commit with what it added; it must not block or raise."""


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
        results: per submission, the answers for ``messages.Accepted``, in order of its events, runs joined.
        suspects: indices of submissions that held a bad signature.
    """

    results: list[list[Result]]
    suspects: frozenset[int]


class Accounts(Protocol):
    """Users, devices and sessions."""

    async def principal(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """The live device, or ``None`` for an unknown user or device. Raises Unavailable."""

    async def devices(self, user_pk: UserPk) -> list[tuple[DevicePk, DeviceEntry]]:
        """All devices of a user, in order of enrolment. Raises Unavailable."""

    async def open_session(self, principal: Principal, session_id: bytes, *, now_ms: int) -> int:
        """Record a session; returns the device's next ``session_no``, which fences its older sessions.

        Raises:
            Unavailable: the database is away.
        """

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """Record the end. Raises Unavailable."""

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """Move ack positions up, never down. Raises Unavailable."""

    async def acks(self, principal: Principal) -> dict[str, int]:
        """The device's ack positions by stream name. Raises Unavailable."""


class Maintenance(Protocol):
    """Housekeeping of the log: one short unit of work each, which the server's jobs repeat. All raise Unavailable."""

    async def ping(self) -> None:
        """One round trip to the store, for readiness."""

    async def epoch(self) -> int:
        """The log's epoch: unix milliseconds of the latest restore, 0 where there was none (protocol.md section 4)."""

    async def now_ms(self) -> int:
        """The store's own clock, unix milliseconds, which ``received_at`` follows."""

    async def make_partitions(self, *, now_ms: int, ahead: int) -> int:
        """Make the event partitions of the running period and ``ahead`` more; returns how many were missing."""

    async def expire_payloads(self, *, now_ms: int, rows_max: int) -> int:
        """Drop the payloads of at most ``rows_max`` events whose TTL ran out; returns how many (0: done)."""


class ConnectionClosed(KeepstepError):
    """The peer or the network ended a device's connection; nothing more can be sent or received."""


class Connection(Protocol):
    """One device's message transport, as ``websocket`` implements it; a faster one fits behind the same four methods.

    Attributes:
        address: the peer's IP address.
        accepted_at_s: Trio time when the socket was accepted: deadlines up to ``active`` run from here.
    """

    address: str
    accepted_at_s: float

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
