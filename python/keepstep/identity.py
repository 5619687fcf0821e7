"""Users and devices: who registers, who a connection is, and what may enter the account log (protocol.md section 1)."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from keepstep import _keepstep
from keepstep.admission import address_prefix
from keepstep.errors import ProtocolError
from keepstep.interfaces import AccountChange, Genesis
from keepstep.model import DEVICES_STREAM, PREV_BYTES, Position, UserPk
from keepstep.protocol.account import (
    ACCOUNT_PAYLOAD_BYTES_MAX,
    AccountEvent,
    AccountLog,
    GenesisPayload,
    decode_account,
)
from keepstep.protocol.codec import decode_strict
from keepstep.protocol.event import HEADER_BYTES_MAX, NO_PREV
from keepstep.protocol.messages import Bytes64, EventRow, ResultAccepted, ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep._keepstep import ParsedEvent, Run
    from keepstep.interfaces import Accounts, Clock, EventLog, Page
    from keepstep.model import Principal, StreamPk
    from keepstep.protocol.messages import ClientAuthCore

GENESIS_BYTES_MAX: Final = 4 * 1024
"""Largest body of a registration, bytes: a header, a signature, a payload and their framing."""
ACCOUNT_LOGS_MAX: Final = 1_000
"""Account logs kept in memory, those used last."""
LOAD_EVENTS_MAX: Final = 1_000
LOAD_BYTES_MAX: Final = 1024 * 1024
"""What one page of ``$devices`` may hold when an account log is loaded."""
HOUR_S: Final = 3600.0
ADDRESSES_MAX: Final = 10_000
"""Address prefixes whose registrations are remembered; beyond it the oldest are forgotten."""

_GENESIS: Final = msgspec.msgpack.Decoder(
    tuple[
        Annotated[bytes, Meta(max_length=HEADER_BYTES_MAX)],
        Bytes64,
        Annotated[bytes, Meta(max_length=ACCOUNT_PAYLOAD_BYTES_MAX)],
    ]
)
_ROWS: Final = msgspec.msgpack.Decoder(list[EventRow])


def decode_registration(body: bytes) -> tuple[bytes, bytes, bytes]:
    """``[header, sig, payload]`` of a registration.

    Raises:
        ProtocolError: ``malformed`` or ``too_large``.
    """
    return decode_strict(_GENESIS, body, "a registration", bytes_max=GENESIS_BYTES_MAX)


def check_genesis(header: bytes, sig: bytes, payload: bytes, *, now_ms: int) -> Genesis:
    """A genesis event that is right in itself: signed by the root key and by the device it lists.

    Args:
        header: as signed.
        sig: the first device's.
        payload: as the header names it.
        now_ms: unix milliseconds, the clock ``received_at`` follows.

    Raises:
        ProtocolError: as ``AccountLog.check``; ``malformed`` also where it is another account event.
    """
    genesis = decode_account(payload)
    if not isinstance(genesis, GenesisPayload):
        raise ProtocolError("malformed", "an account begins with its genesis")
    event = AccountEvent(
        device_id=genesis.device.device_id, header=header, sig=sig, payload=payload, received_at_ms=now_ms
    )
    device = AccountLog(_keepstep, genesis.user_key).check(event)
    return Genesis(
        user_key=genesis.user_key,
        next_root_hash=genesis.next_root_hash,
        device=device,
        header=header,
        sig=sig,
        payload=payload,
    )


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered account.

    Attributes:
        user_key: the user id.
        seq: of the genesis event.
        received_at_ms: of the genesis event, unix milliseconds.
        chain: at ``seq``.
        head: of ``$devices`` now.
        is_new: whether this registration made it.
    """

    user_key: bytes
    seq: int
    received_at_ms: int
    chain: bytes
    head: Position
    is_new: bool


class Registrations:
    """Whether one more account may be made now: the policy, and rates per address prefix and in all, in memory.

    Args:
        policy: ``open`` or ``closed``.
        per_address_hour: from one address prefix.
        per_hour: in all.
        clock: its monotonic seconds count.
    """

    def __init__(
        self, policy: Literal["open", "closed"], *, per_address_hour: int, per_hour: int, clock: Clock
    ) -> None:
        self._policy = policy
        self._per_address_hour = per_address_hour
        self._per_hour = per_hour
        self._clock = clock
        self._all: deque[float] = deque()
        self._by_prefix: OrderedDict[str, deque[float]] = OrderedDict()

    def enter(self, address: str) -> None:
        """Count an attempt from an address.

        Raises:
            ProtocolError: ``registration_closed``; ``rate_limited`` with the time to wait.
        """
        if self._policy == "closed":
            raise ProtocolError("registration_closed")
        now_s = self._clock.monotonic_s()
        prefix = address_prefix(address)
        mine = self._by_prefix.setdefault(prefix, deque())
        self._by_prefix.move_to_end(prefix)
        if len(self._by_prefix) > ADDRESSES_MAX:
            self._by_prefix.popitem(last=False)
        for attempts, attempts_max in ((self._all, self._per_hour), (mine, self._per_address_hour)):
            while attempts and attempts[0] <= now_s - HOUR_S:
                attempts.popleft()
            if len(attempts) >= attempts_max:
                wait_s = attempts[0] + HOUR_S - now_s
                raise ProtocolError("rate_limited", retry_after_ms=max(1, int(wait_s * 1000)))
        self._all.append(now_s)
        mine.append(now_s)


class OutOfOrder(ProtocolError):
    """An account event does not follow its author's last one.

    Attributes:
        last_n: the author's last number.
        last_hash: the hash of that event.
    """

    def __init__(self, last_n: int, last_hash: bytes) -> None:
        super().__init__("out_of_order")
        self.last_n = last_n
        self.last_hash = last_hash


class Identity:
    """Registration, authentication, and the check of account events before they are stored.

    Args:
        log: where ``$devices`` is.
        accounts: where devices are looked up.
        registrations: whether new accounts may be made.
        clock: the one ``received_at`` follows.
        devices_per_user_max: live devices of one user.
    """

    def __init__(
        self,
        log: EventLog,
        accounts: Accounts,
        registrations: Registrations,
        clock: Clock,
        *,
        devices_per_user_max: int,
    ) -> None:
        self._log = log
        self._accounts = accounts
        self._registrations = registrations
        self._clock = clock
        self._devices_per_user_max = devices_per_user_max
        self._account_logs: OrderedDict[UserPk, tuple[StreamPk, AccountLog]] = OrderedDict()
        log.subscribe_commits(self._committed)

    async def register(self, body: bytes, *, address: str) -> Registered:
        """Make an account of a posted genesis; posting it again answers where the event is, and today's head.

        Raises:
            ProtocolError: the policy or a rate refuses, or the genesis is wrong.
            Unavailable: not stored, or not known whether it was.
        """
        self._registrations.enter(address)
        header, sig, payload = decode_registration(body)
        now_ms = self._clock.now_ms()
        genesis = check_genesis(header, sig, payload, now_ms=now_ms)
        result = await self._log.create_account(genesis, now_ms=now_ms)
        if isinstance(result, ResultError):
            raise ProtocolError(result.code)
        if isinstance(result, ResultAccepted):
            head = Position(result.first_seq, result.chain)
            return Registered(genesis.user_key, head.seq, result.received_at_ms, head.chain, head, is_new=True)
        principal = await self._accounts.principal(genesis.user_key, genesis.device.device_id)
        if principal is None or result.seq is None or result.received_at_ms is None or result.chain is None:
            raise ProtocolError("internal", "a stored genesis has no place or no device")
        # Not the head at its seq: to sign that as the head of now would be a lie once the account has moved on.
        head = (await self._log.stream(principal.user_pk, DEVICES_STREAM)).head
        return Registered(genesis.user_key, result.seq, result.received_at_ms, result.chain, head, is_new=False)

    async def authenticate(self, core: ClientAuthCore) -> Principal:
        """Who a device is, after it proved that it holds ``core.device_key``.

        Raises:
            ProtocolError: ``auth_failed``, the same for an unknown user, an unknown device, another key than the
                enrolled one, and a device that has expired.
            Unavailable: it cannot be looked up now.
        """
        principal = await self._accounts.principal(core.user_key, core.device_id)
        if principal is None or not _keepstep.constant_time_equal(principal.device_key, core.device_key):
            raise ProtocolError("auth_failed")
        if principal.expires_at_ms is not None and principal.expires_at_ms <= self._clock.now_ms():
            raise ProtocolError("auth_failed", "the device has expired")
        return principal

    async def check_account_event(self, principal: Principal, event: ParsedEvent) -> AccountChange | None:
        """What an event of ``$devices`` does if it comes next; ``None`` where it was stored before.

        Author numbers come first, as for every event (protocol.md section 3): what is stored is a duplicate, also
        when the account has moved on so that the event could not be accepted today.

        Raises:
            OutOfOrder: it does not follow the author's last event.
            ProtocolError: why it may not come next.
            Unavailable: the account log cannot be read now.
        """
        last_n, last_hash = await self._log.author(principal.user_pk, DEVICES_STREAM, principal.device_pk)
        if event.n <= last_n:
            return None
        if event.n != last_n + 1 or event.prev != (last_hash[:PREV_BYTES] if last_n else NO_PREV):
            raise OutOfOrder(last_n, last_hash)
        account_log = await self._account_log(principal)
        enrolled = account_log.check(
            AccountEvent(
                device_id=principal.device_id,
                header=event.header,
                sig=event.sig,
                payload=event.payload,
                received_at_ms=self._clock.now_ms(),
            )
        )
        if len(account_log.devices) >= self._devices_per_user_max:
            raise ProtocolError("limit_exceeded", "the account has as many devices as it may have")
        return AccountChange(enrolled=enrolled, checked_seq=account_log.position.seq)

    def forget(self, user_pk: UserPk) -> None:
        """Load the account log anew next time: another node may have moved it."""
        self._account_logs.pop(user_pk, None)

    async def _account_log(self, principal: Principal) -> AccountLog:
        """The account log up to its head; loaded where it is not cached."""
        user_pk = principal.user_pk
        cached = self._account_logs.get(user_pk)
        if cached is not None:
            self._account_logs.move_to_end(user_pk)
            return cached[1]
        info = await self._log.stream(user_pk, DEVICES_STREAM)
        account_log = AccountLog(_keepstep, principal.user_key)
        # In the cache first, so that a commit during the loading throws it out again.
        self._account_logs[user_pk] = info.stream_pk, account_log
        try:
            while await self._load_page(user_pk, account_log):
                pass
        except BaseException:
            self._account_logs.pop(user_pk, None)
            raise
        if len(self._account_logs) > ACCOUNT_LOGS_MAX:
            self._account_logs.popitem(last=False)
        return account_log

    async def _load_page(self, user_pk: UserPk, account_log: AccountLog) -> bool:
        """Follow one page; whether there is more."""
        page = await self._log.read(
            user_pk,
            DEVICES_STREAM,
            after=account_log.position.seq,
            events_max=LOAD_EVENTS_MAX,
            bytes_max=LOAD_BYTES_MAX,
            now_ms=self._clock.now_ms(),
        )
        try:
            for _, device_id, received_at_ms, header, sig, payload, _ in _decode_rows(page):
                # $devices keeps its payloads; one that is missing is as broken as one that does not verify
                account_log.apply(AccountEvent(device_id, header, sig, payload or b"", received_at_ms))
        except ProtocolError as exc:
            raise ProtocolError("internal", "the stored account log does not verify") from exc
        return page.last_seq < page.head_seq

    def _committed(self, runs: Sequence[Run]) -> None:
        """A commit moved ``$devices``: the cached log is no longer at its head."""
        for run in runs:
            user_pk = UserPk(run.user_pk)
            cached = self._account_logs.get(user_pk)
            if cached is not None and cached[0] == run.stream_pk:
                del self._account_logs[user_pk]


def _decode_rows(page: Page) -> list[EventRow]:
    """The rows of a page of our own log."""
    assert page.count <= LOAD_EVENTS_MAX
    return _ROWS.decode(b"\xdc" + page.count.to_bytes(2, "big") + page.rows)
