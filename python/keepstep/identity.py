"""Users and devices: who registers, who a connection is, and what may enter the account log (protocol.md section 1)."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import trio
from msgspec import Meta

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.administration import Quota
from keepstep.admission import address_prefix
from keepstep.diskspace import EnoughRoom, require_room
from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import Genesis
from keepstep.journal import NO_JOURNAL, AccountJournal, AccountRecord
from keepstep.model import DEVICES_STREAM, PREV_BYTES, AccountChange, Position, Rotation, UserPk
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.account_payloads import (
    ACCOUNT_PAYLOAD_BYTES_MAX,
    GenesisPayload,
    RotatePayload,
    decode_account,
    verify_rotate,
)
from keepstep.protocol.codec import decode_strict
from keepstep.protocol.event import HEADER_BYTES_MAX, NO_PREV, decode_header, encode_events
from keepstep.protocol.messages import Bytes64, EventRow, ResultAccepted, ResultDuplicate, ResultError
from keepstep.validation import parse_base64url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from keepstep._keepstep import ParsedEvent, Run
    from keepstep.diskspace import Room
    from keepstep.interfaces import Accounts, Clock, EventLog, Page
    from keepstep.model import Principal, StreamPk
    from keepstep.protocol.account import AccountEffect

GENESIS_BYTES_MAX: Final = 4 * 1024
"""Largest body of a registration, bytes: a header, a signature, a payload and their framing."""
ROTATION_BYTES_MAX: Final = 64 * 1024
"""Largest body of a rotation, bytes: a header, a signature, a payload that lists every device that stays, framing."""
ROTATION_ATTEMPTS_MAX: Final = 16
"""How often a rotation is checked anew because ``$devices`` moved meanwhile, before it is answered ``unavailable``."""
ACCOUNT_EVENTS_MAX: Final = 100_000
"""Events of ``$devices`` after which only revocations and rotations are taken: it is kept for ever."""
ROTATIONS_PER_ADDRESS_HOUR: Final = 60
ROTATIONS_PER_HOUR: Final = 10_000
"""Posted rotations, right or wrong; each costs a signature and a look at the database."""
INVITE_BYTES: Final = 16
NO_INVITE_HASH: Final = bytes(32)
"""No code has this hash: nobody can find what BLAKE3 makes of it."""
ACCOUNT_LOGS_MAX: Final = 1_000
"""Account logs kept in memory, those used last."""
LOAD_EVENTS_MAX: Final = 1_000
LOAD_BYTES_MAX: Final = 1024 * 1024
"""What one page of ``$devices`` may hold when an account log is loaded."""
HOUR_S: Final = 3600.0
ADDRESSES_MAX: Final = 10_000
"""Address prefixes whose registrations are remembered; beyond it the oldest are forgotten."""

_POSTED: Final = msgspec.msgpack.Decoder(
    tuple[
        Annotated[bytes, Meta(max_length=HEADER_BYTES_MAX)],
        Bytes64,
        Annotated[bytes, Meta(max_length=ACCOUNT_PAYLOAD_BYTES_MAX)],
    ]
)
_ROWS: Final = msgspec.msgpack.Decoder(list[EventRow])


def decode_posted(body: bytes, *, bytes_max: int) -> tuple[bytes, bytes, bytes]:
    """``[header, sig, payload]`` of a registration or a rotation.

    Raises:
        ProtocolError: ``malformed`` or ``too_large``.
    """
    return decode_strict(_POSTED, body, "a posted account event", bytes_max=bytes_max)


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
    AccountLog(_keepstep, genesis.user_key).check(event)
    return Genesis(
        user_key=genesis.user_key,
        next_root_hash=genesis.next_root_hash,
        device=genesis.device,
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
        policy: ``open``, ``invite`` or ``closed``.
        per_address_hour: from one address prefix.
        per_hour: in all.
        clock: its monotonic seconds count.
    """

    def __init__(
        self, policy: Literal["open", "invite", "closed"], *, per_address_hour: int, per_hour: int, clock: Clock
    ) -> None:
        self._policy = policy
        self._per_address_hour = per_address_hour
        self._per_hour = per_hour
        self._clock = clock
        self._all: deque[float] = deque()
        self._by_prefix: OrderedDict[str, deque[float]] = OrderedDict()

    def allow(self, policy: Literal["open", "invite", "closed"], *, per_address_hour: int, per_hour: int) -> None:
        """Change what is allowed; what was counted stays counted."""
        self._policy = policy
        self._per_address_hour = per_address_hour
        self._per_hour = per_hour

    @property
    def needs_invite(self) -> bool:
        """Whether only who was invited registers."""
        return self._policy == "invite"

    def enter(self, address: str) -> None:
        """Count an attempt from an address; what is wrong in itself counts for that address only.

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
        mine.append(now_s)

    def count(self) -> None:
        """Count an attempt that entered and is right in itself: whoever sends anything else takes nobody's room."""
        self._all.append(self._clock.monotonic_s())


async def no_quota(user_pk: UserPk) -> Quota:
    """Every account may have what the server allows."""
    del user_pk
    return Quota()


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


@dataclass(slots=True, eq=False)
class _CachedLog:
    """An account log in memory.

    Attributes:
        stream_pk: of ``$devices``.
        generation: of the log that it was read from.
        log: as far as it was followed.
        is_current: nothing was committed to it since it was followed to its head.
        lock: who holds it follows the log.
    """

    stream_pk: StreamPk
    generation: int
    log: AccountLog
    is_current: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)


class Identity:
    """Registration, authentication, and the check of account events before they are stored.

    Args:
        log: where ``$devices`` is.
        accounts: where devices are looked up.
        registrations: whether new accounts may be made.
        clock: the one ``received_at`` follows.
        devices_per_user_max: live devices of one user.
        quota: what an account of its own may have; raises Unavailable.
        journal: takes genesis and rotations before they are acknowledged.
        room: whether the disks take new accounts; rotations go on without.
    """

    def __init__(
        self,
        log: EventLog,
        accounts: Accounts,
        registrations: Registrations,
        clock: Clock,
        *,
        devices_per_user_max: int,
        quota: Callable[[UserPk], Awaitable[Quota]] = no_quota,
        journal: AccountJournal = NO_JOURNAL,
        room: Room | None = None,
    ) -> None:
        self._room = room or EnoughRoom()
        self._journal = journal
        self._quota = quota
        self._log = log
        self._accounts = accounts
        self._registrations = registrations
        self._rotations = Registrations(
            "open", per_address_hour=ROTATIONS_PER_ADDRESS_HOUR, per_hour=ROTATIONS_PER_HOUR, clock=clock
        )
        self._clock = clock
        self.devices_per_user_max = devices_per_user_max
        self._account_logs: OrderedDict[UserPk, _CachedLog] = OrderedDict()
        log.subscribe_device_commits(self._committed)

    async def register(self, body: bytes, *, address: str, invite: str | None = None) -> Registered:
        """Make an account of a posted genesis; posting it again answers where the event is, and today's head.

        Args:
            body: as posted.
            address: the peer's.
            invite: the code it was invited with, base64url of 16 bytes.

        Raises:
            ProtocolError: the policy or a rate refuses, ``invite_invalid``, or the genesis is wrong.
            Unavailable: not stored, or not known whether it was.
        """
        require_room(self._room)
        self._registrations.enter(address)
        header, sig, payload = decode_posted(body, bytes_max=GENESIS_BYTES_MAX)
        now_ms = self._clock.now_ms()
        genesis = check_genesis(header, sig, payload, now_ms=now_ms)
        self._registrations.count()
        invite_hash = _hash_invite(invite) if self._registrations.needs_invite else None
        result = await self._log.create_account(genesis, now_ms=now_ms, invite_hash=invite_hash)
        if isinstance(result, ResultError):
            raise ProtocolError(result.code)
        registered = await self._registered(genesis, result)
        await self._keep(registered, genesis)
        return registered

    async def _registered(self, genesis: Genesis, result: ResultAccepted | ResultDuplicate) -> Registered:
        if isinstance(result, ResultAccepted):
            head = Position(result.first_seq, result.chain)
            return Registered(genesis.user_key, head.seq, result.received_at_ms, head.chain, head, is_new=True)
        user_pk = await self._accounts.user(genesis.user_key)
        if user_pk is None:
            raise ProtocolError("account_disabled", "the account is there, and nothing of it is let in")
        return await self._stored_before(user_pk, genesis.user_key, result)

    async def _keep(self, registered: Registered, event: Genesis | Rotation) -> None:
        """Write a posted event into the journal. Raises Unavailable."""
        await self._journal.keep(
            AccountRecord(
                registered.user_key,
                registered.seq,
                registered.received_at_ms,
                event.device.device_id,
                event.header,
                event.sig,
                event.payload,
            )
        )

    async def _stored_before(self, user_pk: UserPk, user_key: bytes, stored: ResultDuplicate) -> Registered:
        if stored.seq is None or stored.received_at_ms is None or stored.chain is None:
            raise ProtocolError("internal", "a stored account event has no place")
        # Not the head at its seq: to sign that as the head of now would be a lie once the account has moved on.
        head = (await self._log.stream(user_pk, DEVICES_STREAM)).head
        return Registered(user_key, stored.seq, stored.received_at_ms, stored.chain, head, is_new=False)

    async def rotate(self, user_key: bytes, body: bytes, *, address: str) -> Registered:
        """Take a posted rotation; posting it again answers where the event is, and today's head.

        Args:
            user_key: the user id.
            body: as posted.
            address: the peer's.

        Raises:
            ProtocolError: ``rate_limited``, or the rotation is wrong; ``forbidden`` for an unknown user too.
            Unavailable: not stored, or not known whether it was.
        """
        self._rotations.enter(address)
        header, sig, payload = decode_posted(body, bytes_max=ROTATION_BYTES_MAX)
        rotate = decode_account(payload)
        if not isinstance(rotate, RotatePayload):
            raise ProtocolError("malformed", "only a rotation is posted here")
        verify_rotate(_keepstep, rotate, user_key=user_key, built_on=decode_header(header).seen[1])
        self._rotations.count()
        user_pk = await self._accounts.user(user_key)
        if user_pk is None:
            raise ProtocolError("forbidden", "there is no such user")
        rotation = Rotation(user_pk, user_key, rotate.device, header, sig, payload)
        refused: ProtocolError | None = None
        for _ in range(ROTATION_ATTEMPTS_MAX):
            # In every attempt: what got in the way may have been this very rotation, posted twice.
            known = await self._accounts.device(user_key, rotate.device.device_id)
            if known is not None:
                registered = await self._rotate_again(rotation, rotate.root_key, known.principal)
                await self._keep(registered, rotation)
                return registered
            if refused is not None and not isinstance(refused, Unavailable):
                raise refused
            try:
                registered = await self._rotate(rotation)
            except ProtocolError as error:
                if isinstance(error, Unavailable) and error.retry_after_ms != 0:
                    raise
                # somebody else wrote into $devices first: whoever holds a stolen device may do so all the time
                self.forget(user_pk)
                refused = error
            else:
                await self._keep(registered, rotation)
                return registered
        assert refused is not None
        raise refused

    async def _rotate(self, rotation: Rotation) -> Registered:
        now_ms = self._clock.now_ms()
        account_log = await self._account_log(rotation.user_pk, rotation.user_key)
        effect = account_log.check(
            AccountEvent(
                device_id=rotation.device.device_id,
                header=rotation.header,
                sig=rotation.sig,
                payload=rotation.payload,
                received_at_ms=max(now_ms, account_log.received_at_ms),
            )
        )
        if len(effect.staying) >= self.devices_per_user_max:
            raise ProtocolError("limit_exceeded", "the rotation lists more devices than an account may have")
        change = _change(account_log, effect)
        result = await self._log.rotate(rotation, change, now_ms=now_ms)
        if not isinstance(result, ResultAccepted):
            raise ProtocolError(result.code if isinstance(result, ResultError) else "internal")
        head = Position(result.first_seq, result.chain)
        return Registered(rotation.user_key, head.seq, result.received_at_ms, head.chain, head, is_new=True)

    async def _rotate_again(self, rotation: Rotation, root_key: bytes, principal: Principal) -> Registered:
        """A rotation whose device is known already: it was stored before, or the id is another's.

        Which of the two is told only to who signed with the account's root key; to others it is one of many refusals.
        """
        raw = encode_events([(rotation.header, rotation.sig, rotation.payload)])
        submission = Submission(
            user_pk=principal.user_pk,
            user_key=rotation.user_key,
            device_pk=principal.device_pk,
            device_id=principal.device_id,
            device_key=DeviceKey(rotation.device.device_key),
            capabilities=0,  # nothing new is taken this way
            events=Events.parse(raw, events_max=1, payload_bytes_max=len(rotation.payload)),
        )
        appended = await self._log.append([submission], now_ms=self._clock.now_ms())
        (result,) = appended.results[0]
        if not isinstance(result, ResultDuplicate):
            account_log = await self._account_log(rotation.user_pk, rotation.user_key)
            if root_key != account_log.root_key:
                raise ProtocolError("forbidden", "that is not the account's root key")
            raise ProtocolError(result.code if isinstance(result, ResultError) else "internal")
        return await self._stored_before(rotation.user_pk, rotation.user_key, result)

    async def check_account_event(
        self, principal: Principal, event: ParsedEvent, *, now_ms: int
    ) -> AccountChange | None:
        """What an event of ``$devices`` does if it comes next; ``None`` where it was stored before.

        It is appended with the same ``now_ms``: what the rules say of time they say of its ``received_at``.

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
        account_log = await self._account_log(principal.user_pk, principal.user_key)
        received_at_ms = max(now_ms, account_log.received_at_ms)
        try:
            effect = account_log.check(
                AccountEvent(
                    device_id=principal.device_id,
                    header=event.header,
                    sig=event.sig,
                    payload=event.payload,
                    received_at_ms=received_at_ms,
                )
            )
        except ProtocolError as error:
            if error.code == "revoked":  # which closes sessions; an event is forbidden
                raise ProtocolError("forbidden", error.detail) from error
            raise
        if effect.enrolled is not None:
            live = sum(
                each.ended is None and not each.is_expired(received_at_ms) for each in account_log.devices.values()
            )
            if live >= self.devices_per_user_max:
                raise ProtocolError("limit_exceeded", "the account has as many devices as it may have")
            devices_max = (await self._quota(principal.user_pk)).devices_max
            if devices_max is not None and live >= devices_max:
                raise ProtocolError("quota_exceeded", "the account has as many devices as its quota allows")
        if account_log.position.seq >= ACCOUNT_EVENTS_MAX and not effect.ended:
            raise ProtocolError("limit_exceeded", "the account log is as long as it may be")
        return _change(account_log, effect)

    def forget(self, user_pk: UserPk) -> None:
        """Follow the account log to its head next time: another node may have moved it."""
        cached = self._account_logs.get(user_pk)
        if cached is not None:
            cached.is_current = False

    async def _account_log(self, user_pk: UserPk, user_key: bytes) -> AccountLog:
        """The account log up to its head; only what is not in memory is read."""
        cached = self._account_logs.get(user_pk)
        if cached is None or cached.generation != self._log.generation():
            generation = self._log.generation()  # before it is asked: the answer may be of the log that was
            info = await self._log.stream(user_pk, DEVICES_STREAM)
            cached = _CachedLog(info.stream_pk, generation, AccountLog(_keepstep, user_key))
            self._account_logs[user_pk] = cached
            if len(self._account_logs) > ACCOUNT_LOGS_MAX:
                self._account_logs.popitem(last=False)
        self._account_logs.move_to_end(user_pk)
        async with cached.lock:
            # Current from here on, so that a commit during the reading makes it follow again next time.
            is_behind, cached.is_current = not cached.is_current, True
            try:
                while is_behind:
                    is_behind = await self._follow_page(user_pk, cached.log)
            except BaseException:
                self._account_logs.pop(user_pk, None)
                raise
        return cached.log

    async def _follow_page(self, user_pk: UserPk, account_log: AccountLog) -> bool:
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
        if account_log.position != Position(page.last_seq, page.chain):
            raise Unavailable("$devices is another one than was followed", retry_after_ms=0)
        return page.last_seq < page.head_seq

    def _committed(self, runs: Sequence[Run]) -> None:
        """A commit moved ``$devices``: the log in memory is no longer at its head."""
        for run in runs:
            cached = self._account_logs.get(UserPk(run.user_pk))
            if cached is not None and cached.stream_pk == run.stream_pk:
                cached.is_current = False


def _change(account_log: AccountLog, effect: AccountEffect) -> AccountChange:
    """What an event that was checked against an account log does to the device table."""
    known = account_log.devices
    restored = [each.entry.device_id for each in effect.staying]
    return AccountChange(
        enrolled=None if effect.enrolled is None else effect.enrolled.entry,
        checked_seq=account_log.position.seq,
        checked_chain=account_log.position.chain,
        manage_from_ms=0 if effect.enrolled is None else effect.enrolled.manage_from_ms,
        revoked=tuple(each.entry.device_id for each in effect.ended),
        restored=tuple(each for each in restored if known[each].ended is not None),
        next_root_hash=effect.next_root_hash,
    )


def _hash_invite(invite: str | None) -> bytes:
    """What the database knows of an invite's code; for none, or what cannot be one, what it knows of no code.

    The log says what it is worth: a genesis that is stored already is a duplicate without an invite too.
    """
    try:
        code = parse_base64url(invite or "", bytes_max=INVITE_BYTES, what="an invite")
    except ProtocolError:
        return NO_INVITE_HASH
    return _keepstep.blake3(code) if len(code) == INVITE_BYTES else NO_INVITE_HASH


def _decode_rows(page: Page) -> list[EventRow]:
    """The rows of a page of our own log."""
    assert page.count <= LOAD_EVENTS_MAX
    return _ROWS.decode(b"\xdc" + page.count.to_bytes(2, "big") + page.rows)
