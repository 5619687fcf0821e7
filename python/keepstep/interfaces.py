"""What the services need from the edges: each is implemented over PostgreSQL or memory and handed in by ``server``.

Implementations of one interface pass one contract suite (``tests/contract``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from keepstep.errors import KeepstepError

if TYPE_CHECKING:
    import trio

    from keepstep._keepstep import Run, Submission
    from keepstep.accesstokens import SigningKey
    from keepstep.model import (
        AccountChange,
        ClonedDevice,
        DeviceEntry,
        DevicePk,
        KnownDevice,
        Policy,
        Position,
        Principal,
        RetentionClass,
        RevokedDevice,
        Rotation,
        StreamPk,
        UserPk,
    )
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
    """A stream as a session needs it.

    Attributes:
        user_pk: whose it is.
        stream_pk: its row number.
        name: unique within the user.
        head: its last event, and the chain there.
        policy: what becomes of concurrent events.
        retention_class: which event table its rows live in.
        ttl_max_s: the longest life of an application event, seconds; ``None`` where it may live for ever.
    """

    user_pk: UserPk
    stream_pk: StreamPk
    name: str
    head: Position
    policy: Policy
    retention_class: RetentionClass
    ttl_max_s: int | None


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

    async def snapshots(self, user_pk: UserPk, stream: str) -> list[SnapshotInfo]:
        """The newest snapshots of a stream, newest first. Raises as ``read``."""

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


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device of an account, live or ended.

    Attributes:
        device_pk: its row number.
        entry: as ``$devices`` lists it.
        manage_from_ms: unix milliseconds from which on it manages, 0 for at once.
        revoked: unix milliseconds and the seq in ``$devices`` at which it ended, ``None`` while it is live.
    """

    device_pk: DevicePk
    entry: DeviceEntry
    manage_from_ms: int
    revoked: tuple[int, int] | None


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

    async def open_session(self, principal: Principal, session_id: bytes, *, now_ms: int) -> int:
        """Record a session; returns the device's next ``session_no``, which fences its older sessions.

        Raises:
            Unavailable: the database is away.
        """

    async def close_session(self, session_id: bytes, *, now_ms: int, reason: str) -> None:
        """Record the end. Raises Unavailable."""

    async def save_acks(self, principal: Principal, positions: dict[str, tuple[int, bytes]]) -> None:
        """Move ack positions up, never down nor above a stream's head. Raises Unavailable."""

    async def acks(self, principal: Principal) -> dict[str, int]:
        """The device's ack positions by stream name. Raises Unavailable."""


class TokenAuthentication(Protocol):
    """Who a REST request comes from, by its access token."""

    async def authenticate(self, authorization: str | None) -> Principal:
        """The device whose token an ``Authorization`` header carries, live and not revoked as of half a second ago.

        Args:
            authorization: the header's value, ``None`` where the request has none.

        Raises:
            ProtocolError: ``invalid_token``, the same for every reason.
            Unavailable: it cannot be looked up now.
        """


class AdminAccess(Protocol):
    """Who may administer, by the administration key."""

    async def authenticate(self, authorization: str | None, *, address: str) -> None:
        """Let a request pass that carries the key.

        Args:
            authorization: the ``Authorization`` header's value, ``None`` where the request has none.
            address: the peer's, by which failures are counted.

        Raises:
            ProtocolError: ``invalid_token``; ``rate_limited`` after too many failures; ``not_found`` where no key is
                configured.
        """

    async def audit(
        self, operation: str, target: Mapping[str, str], *, status: int, address: str, request_id: str
    ) -> None:
        """Record a call that was answered, also one that failed.

        Args:
            operation: the endpoint's name (``Endpoint.operation``).
            target: its path parameters.
            status: HTTP status of the answer.
            address: the peer's.
            request_id: of the request.

        Raises:
            Unavailable: it could not be recorded.
        """


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """How often one caller may call.

    Attributes:
        name: of the policy, as its callers are told.
        calls: in one window; a caller may spend them at once.
        window_s: in which they come back, evenly.
    """

    name: str
    calls: int
    window_s: int


@dataclass(frozen=True, slots=True)
class RateState:
    """What a caller has left.

    Attributes:
        policy: that counts it.
        remaining: calls it may make at once.
        reset_s: seconds until it may make all of them again.
    """

    policy: RatePolicy
    remaining: int
    reset_s: int


class RateLimiter(Protocol):
    """Counts calls by caller; each policy counts on its own."""

    async def take(self, caller: str, policy: RatePolicy) -> RateState:
        """Count one call of a caller.

        Args:
            caller: who calls, as a name of the server's own making (``user:17``, ``address:192.0.2.0/24``).
            policy: how often it may.

        Raises:
            RateLimited: ``rate_limited`` with the time to wait, and what the caller is told of its calls.
        """


class Maintenance(Protocol):
    """Housekeeping of the log: one short unit of work each, which the server's jobs repeat. All raise Unavailable."""

    async def ping(self) -> None:
        """One round trip to the store, for readiness."""

    async def now_ms(self) -> int:
        """The store's own clock, unix milliseconds, which ``received_at`` follows."""

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


@dataclass(frozen=True, slots=True)
class Challenge:
    """A nonce that waits for a device's signature (protocol.md section 2, Over REST).

    Attributes:
        nonce_hash: BLAKE3 of the nonce; the nonce itself is not kept.
        user_key: for whom it was asked, known or not.
        device_id: likewise.
        purpose: what the signature will be good for.
        expires_at_ms: unix milliseconds.
    """

    nonce_hash: bytes
    user_key: bytes
    device_id: bytes
    purpose: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of a refresh token that was presented.

    Attributes:
        user_pk: whose it is.
        family_id: 16 bytes.
        device_id: whose family it is.
        epoch: the log's.
        ended: the token had been used before, or its family is used up: the family has ended, with all its tokens.
    """

    user_pk: UserPk
    family_id: bytes
    device_id: bytes
    epoch: int
    ended: bool


@dataclass(frozen=True, slots=True)
class TokenState:
    """What decides whether an access token is still good.

    Attributes:
        epoch: the log's: a restore takes back revocations, and so ends every token from before it.
        is_alive: its family is there, and it has not been revoked by itself.
    """

    epoch: int
    is_alive: bool


class TokenStore(Protocol):
    """Challenges, families of refresh tokens, revoked access tokens. All methods raise Unavailable.

    A family has ended when it is not there any more; the refresh tokens of it go with it.
    """

    async def add_challenge(self, challenge: Challenge) -> None:
        """Keep a challenge until it is taken or runs out."""

    async def take_challenge(self, nonce_hash: bytes) -> Challenge | None:
        """The challenge, which nobody else is given; ``None`` where it is not there. It may have run out."""

    async def begin_family(
        self,
        user_pk: UserPk,
        device_pk: DevicePk,
        *,
        family_id: bytes,
        token_hash: bytes,
        now_ms: int,
        expires_at_ms: int,
        families_max: int,
    ) -> int:
        """Begin a family with its first refresh token; the device's oldest ones above ``families_max`` end.

        Returns:
            the log's epoch.
        """

    async def refresh(
        self,
        user_key: bytes,
        token_hash: bytes,
        *,
        next_hash: bytes,
        now_ms: int,
        expires_at_ms: int,
        refreshes_max: int,
    ) -> Refreshed | None:
        """Use a refresh token once: ``next_hash`` takes its place, and the family's end moves to ``expires_at_ms``.

        A token that was used before ends its family, and so does one more than ``refreshes_max`` refreshes.

        Returns:
            what became of it; ``None`` where there is no such token of that user, or it has run out.
        """

    async def end_family(self, user_pk: UserPk, family_id: bytes) -> None:
        """End a family; one that has ended stays so."""

    async def end_families(self, user_pk: UserPk, device_pk: DevicePk) -> None:
        """End all families of a device."""

    async def revoke_token(self, user_pk: UserPk, token_id: bytes, *, expires_at_ms: int) -> None:
        """Remember an access token as revoked until it runs out."""

    async def token_state(self, user_pk: UserPk, *, family_id: bytes, token_id: bytes) -> TokenState:
        """Whether an access token of a user is still good."""

    async def clean_up_tokens(self, *, now_ms: int, rows_max: int) -> int:
        """Drop at most ``rows_max`` of each kind that ran out; returns how many went (0: done)."""


class TokenKeys(Protocol):
    """The keys that sign access tokens. ``reload`` and ``rotate`` block and raise StartupError where they fail."""

    @property
    def current(self) -> SigningKey:
        """The key that signs."""

    def valid(self, now_ms: int) -> list[SigningKey]:
        """The keys whose signatures count now, the one that signs first."""

    def reload(self) -> None:
        """Look for keys that another process made."""

    def rotate(self, now_ms: int, *, overlap_ms: int) -> None:
        """Let a new key sign; the one before it verifies for ``overlap_ms`` more, at 0 neither it nor older ones do.

        Raises:
            ProtocolError: ``limit_exceeded``: too many keys verify still.
        """


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
