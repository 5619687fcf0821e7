"""After a restore: devices are told how far streams were set back, and hand in what was lost (protocol.md section 4).

What a signed head proves is stored again in its place. Until every device that was seen lately has handed in what it
holds, or the time for it is over, nothing new is taken from the user, so that the places stay free.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.access import RatePolicy
from keepstep.errors import ProtocolError
from keepstep.eventlog.healing import LostEvents
from keepstep.journal import NO_JOURNAL, AccountJournal
from keepstep.model import DEVICES_STREAM, Capability, Kind, Position, has_expired, reading_refusal
from keepstep.protocol.account_payloads import FULL_CAPABILITIES
from keepstep.protocol.chain import chain_0, chain_next, event_hash
from keepstep.protocol.event import decode_header, encode_events
from keepstep.protocol.messages import (
    LINK_BYTES,
    REWINDS_MAX,
    ChainAtResult,
    HealResult,
    ResultAccepted,
    ResultDuplicate,
)
from keepstep.protocol.rewind import CLOCKS_APART_MS_MAX, Rewind, lifts_base
from keepstep.protocol.snapshot import ERASABLE
from keepstep.ratelimit import MemoryRateLimiter
from keepstep.replaying import AccountReplay
from keepstep.restores import PROVEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from keepstep.heads import HeadSigner
    from keepstep.interfaces import Accounts, Clock, EventLog, ListedDevice
    from keepstep.model import Principal, UserPk
    from keepstep.protocol.messages import ChainAt, EventRow, Heal, SignedRewind
    from keepstep.restores import HealWindow, Restores

RETRY_AFTER_MS: Final = 2_000
"""When a device asks again whether the others have handed in what they hold."""
HEAL_RATE: Final = RatePolicy("heal", calls=512, window_s=16)
"""How often one device may ``heal``: 512 at once and 32 a second, of at most 256 rows each.

Room for thousands of events a second of a device that hands in a long history; one that hands in the same rows again
and again costs no more than that.
"""
CLOSE_REPORT: Final = 3
"""``Heal.report``: a device that manages ends the time for handing in."""
SEQ_MAX: Final = 2**63 - 1
"""Above every place: what is appended anew comes behind every rewind."""
SETTLED_USERS_MAX: Final = 100_000
"""Users remembered as having nothing to wait for; beyond it they are looked up again."""


class Healing:
    """Rewinds, chains, and what devices hand in.

    Args:
        log: what is healed.
        accounts: where authors are looked up.
        restores: rewinds and windows.
        signer: of rewinds; knows the heads that prove.
        clock: the one ``received_at`` follows.
        payload_bytes_max: of one event's payload.
        window_ms: how long a user's devices may take.
        journal: takes the events of ``$devices`` that are handed in.
    """

    def __init__(
        self,
        log: EventLog,
        accounts: Accounts,
        restores: Restores,
        signer: HeadSigner,
        clock: Clock,
        *,
        payload_bytes_max: int,
        window_ms: int,
        journal: AccountJournal = NO_JOURNAL,
    ) -> None:
        self._log = log
        self._accounts = accounts
        self._restores = restores
        self._signer = signer
        self._clock = clock
        self._payload_bytes_max = payload_bytes_max
        self._window_ms = window_ms
        self._replay = AccountReplay(log, accounts, journal=journal)
        self._rates = MemoryRateLimiter(clock)
        self._settled: set[UserPk] = set()
        self._settled_epoch = 0
        self._locks: WeakValueDictionary[UserPk, trio.Lock] = WeakValueDictionary()

    # -- what restores did ------------------------------------------------------------------------------------------

    async def rewinds(self, user_pk: UserPk, user_key: bytes, stream: str) -> list[SignedRewind]:
        """The restores that set a stream back, signed, the latest ``REWINDS_MAX``. Raises Unavailable."""
        if not self._signer.epoch:
            return []
        return [
            self._signer.sign_rewind(Rewind(user_key, stream, each.epoch, each.at.seq, each.at.chain))
            for each in (await self._restores.rewinds(user_pk, stream))[-REWINDS_MAX:]
        ]

    async def chains(self, principal: Principal, message: ChainAt) -> ChainAtResult:
        """The chains that a device asks for. Raises ProtocolError: it may not read the stream; Unavailable."""
        self._check_readable(principal, message.stream)
        head = await self._head(principal, message.stream)
        chains = [await self._chain(principal, message.stream, seq, head) for seq in message.seqs]
        return ChainAtResult(message.rid, message.stream, chains, head.seq)

    async def _head(self, principal: Principal, stream: str) -> Position:
        try:
            return (await self._log.stream(principal.user_pk, stream)).head
        except ProtocolError as error:
            if error.code != "unknown_stream":
                raise
            return Position(0, chain_0(_keepstep, principal.user_key, stream))

    async def _chain(self, principal: Principal, stream: str, seq: int, head: Position) -> bytes | None:
        if seq > head.seq:
            return None
        if seq == head.seq:
            return head.chain
        if seq == 0:
            return chain_0(_keepstep, principal.user_key, stream)
        try:
            return await self._log.chain_at(principal.user_pk, stream, seq)
        except ProtocolError as error:
            if error.code == "unavailable":
                raise
            return None

    def _check_readable(self, principal: Principal, stream: str) -> None:
        if not principal.capabilities & Capability.SUBSCRIBE:
            raise ProtocolError("forbidden")
        refusal = reading_refusal(stream, principal.device_id)
        if refusal is not None:
            raise ProtocolError(refusal)

    # -- the time for handing in --------------------------------------------------------------------------------------

    async def arrived(self, principal: Principal) -> None:
        """A device connected: the user's time begins, where a restore set it back. Raises Unavailable."""
        await self.wait_ms(principal.user_pk)

    def is_open(self, user_pk: UserPk) -> bool:
        """Whether a user's devices are known to have nothing to wait for before they publish."""
        epoch = self._log.epoch()
        return not epoch or (epoch == self._settled_epoch and user_pk in self._settled)

    async def wait_ms(self, user_pk: UserPk) -> int | None:
        """How long a user's devices should wait before they publish; ``None``: not at all. Raises Unavailable."""
        if self.is_open(user_pk):
            return None
        epoch = self._signer.epoch
        window = await self._restores.window(user_pk, now_ms=self._clock.now_ms())
        if window is not None and self._is_open(window) and window.unfinished:
            return RETRY_AFTER_MS
        if epoch != self._settled_epoch or len(self._settled) >= SETTLED_USERS_MAX:
            self._settled.clear()
            self._settled_epoch = epoch
        self._settled.add(user_pk)
        return None

    def _is_open(self, window: HealWindow) -> bool:
        return window.closed_at_ms is None and self._clock.now_ms() < window.opened_at_ms + self._window_ms

    async def _is_waited_for(self, principal: Principal) -> bool:
        """Whether another device of the user may still hand in something that is proven."""
        window = await self._restores.window(principal.user_pk, now_ms=self._clock.now_ms())
        return window is not None and self._is_open(window) and window.waiting > 0

    async def _report(self, principal: Principal, message: Heal) -> HealResult:
        if message.report == CLOSE_REPORT:
            if not principal.capabilities_at(self._clock.now_ms()) & Capability.MANAGE:
                raise ProtocolError("forbidden")
            await self._restores.window(principal.user_pk, now_ms=self._clock.now_ms())
            await self._restores.close_window(principal.user_pk, now_ms=self._clock.now_ms())
        else:
            await self._restores.report(principal.user_pk, principal.device_pk, message.report)
        wait_ms = await self.wait_ms(principal.user_pk)
        if wait_ms is None:
            return HealResult(message.rid, message.stream, "closed", 0, [], None)
        window = await self._restores.window(principal.user_pk, now_ms=self._clock.now_ms())
        is_next = message.report == PROVEN and (window is None or not window.waiting)
        return HealResult(message.rid, message.stream, "closed" if is_next else "open", 0, [], wait_ms)

    # -- what was lost ------------------------------------------------------------------------------------------------

    async def heal(self, principal: Principal, message: Heal) -> HealResult:
        """Take what a device hands in, or its report.

        Raises:
            ProtocolError: ``unsupported`` where there was no restore; ``forbidden``, ``unknown_stream``: it may not
                read the stream.
            RateLimited: the device asked more often than ``HEAL_RATE``; nothing was looked at.
            Unavailable: the database is away.
        """
        if not self._signer.epoch:
            raise ProtocolError("unsupported", "there is nothing to heal")
        await self._rates.take(f"{principal.user_pk}/{principal.device_pk}", HEAL_RATE)
        if message.report:
            return await self._report(principal, message)
        self._check_readable(principal, message.stream)
        lock = self._locks.setdefault(principal.user_pk, trio.Lock())
        async with lock:
            if message.after is None:
                return await self._append_anew(principal, message)
            return await self._place(principal, message, Position(*message.after))

    async def _place(self, principal: Principal, message: Heal, after: Position) -> HealResult:
        """Store rows in their places, where they continue what is there and are proven or nobody can prove others."""
        head = await self._head(principal, message.stream)
        held = await self._chain(principal, message.stream, after.seq, head)
        places = _places(message.rows, after)
        if places is None:
            return _answer(message, "refused", head)
        end = places[-1] if places else after
        overlapping = places[head.seq - after.seq - 1] if after.seq < head.seq <= end.seq else None
        if held != after.chain or (overlapping is not None and overlapping != head):
            return _answer(message, "diverged", head)
        if end.seq <= head.seq:
            stored = await self._chain(principal, message.stream, end.seq, head)
            return _answer(message, "placed" if stored == end.chain else "diverged", head)
        is_proven = self._proves(principal, message, end)
        if message.proof is not None and not is_proven:
            return _answer(message, "refused", head)
        if not is_proven and await self._is_waited_for(principal):
            return _answer(message, "later", head, retry_after_ms=RETRY_AFTER_MS)
        skip = head.seq - after.seq
        try:
            await self._store(principal, message.stream, head, message.rows[skip:], places[skip:], is_proven=is_proven)
        except ProtocolError as error:
            if error.code == "unavailable":
                raise
            return _answer(message, "diverged" if error.code == "conflict" else "refused", head)
        return _answer(message, "placed", end)

    def _proves(self, principal: Principal, message: Heal, end: Position) -> bool:
        """Whether the rows and the links behind them come to a head that this server signed."""
        if message.proof is None:
            return False
        links, signed = message.proof
        try:
            head = self._signer.verify(signed)
        except ProtocolError:
            return False
        if len(links) % LINK_BYTES or (head.user_key, head.stream) != (principal.user_key, message.stream):
            return False
        chain, seq = end.chain, end.seq
        for at in range(0, len(links), LINK_BYTES):
            seq += 1
            received_at_ms = int.from_bytes(links[at : at + 8], "big")
            chain = chain_next(_keepstep, chain, seq, received_at_ms, links[at + 8 : at + LINK_BYTES])
        return (head.seq, head.chain) == (seq, chain)

    async def _store(
        self,
        principal: Principal,
        stream: str,
        head: Position,
        rows: Sequence[EventRow],
        places: Sequence[Position],
        *,
        is_proven: bool,
    ) -> None:
        if not is_proven:
            await self._check_unproven(principal, rows)
        if stream == DEVICES_STREAM:
            for row in rows:
                await self._replay.place(principal.user_key, row)
            return
        authors = await self._authors(principal)
        lost = []
        at = 0
        for group in _groups(rows):
            at += len(group)
            author = authors.get(group[0][1])
            if author is None:
                raise ProtocolError("unprocessable", "the author of an event that was lost is no device of the account")
            capabilities = int(FULL_CAPABILITIES) if is_proven else _capabilities(author, group[0][2])
            submission = self._submission(principal, author, group, capabilities)
            lost.append(LostEvents(submission, group[0][2], places[at - 1]))
        await self._log.heal((int(principal.user_pk), stream), head, lost, is_proven=is_proven)

    async def _check_unproven(self, principal: Principal, rows: Sequence[EventRow]) -> None:
        """What nothing proves was received before the restore, and names only what there is of ``$devices``.

        So nobody dates back what is new, and a stolen device says nothing that would make readers take the server for
        a liar. Raises ``unprocessable``, Unavailable.
        """
        if rows[-1][2] > min(self._clock.now_ms(), self._signer.epoch + CLOCKS_APART_MS_MAX):
            raise ProtocolError("unprocessable", "an event that nothing proves was received after the restore")
        head = await self._head(principal, DEVICES_STREAM)
        for seq, chain in {decode_header(row[3]).devices_seen for row in rows}:
            if await self._chain(principal, DEVICES_STREAM, seq, head) != chain:
                raise ProtocolError("unprocessable", "an event that nothing proves names what never was")

    async def _append_anew(self, principal: Principal, message: Heal) -> HealResult:
        """Append rows as signed, where they join on to their author's last event; those that do not are lost."""
        head = await self._head(principal, message.stream)
        if await self._is_waited_for(principal):
            return _answer(message, "later", head, retry_after_ms=RETRY_AFTER_MS)
        if message.stream == DEVICES_STREAM:
            return _answer(message, "placed", head, lost=[row[0] for row in message.rows])
        authors = await self._authors(principal)
        now_ms = self._clock.now_ms()
        rewinds = await self._rewinds_of(principal, message.stream)
        lost = []
        for row in message.rows:
            author = authors.get(row[1])
            if author is None or author.revoked is not None or row[5] is None:
                lost.append(row[0])
                continue
            anew = await self._may_stand_anew(principal, message.stream, rewinds, row)
            submission = self._submission(principal, author, [row], _capabilities(author, now_ms), anew=anew)
            appended = await self._log.append([submission], now_ms=now_ms)
            if not isinstance(appended.results[0][0], ResultAccepted | ResultDuplicate):
                lost.append(row[0])
        return _answer(message, "placed", await self._head(principal, message.stream), lost=lost)

    async def _may_stand_anew(
        self, principal: Principal, stream: str, rewinds: Sequence[Rewind], row: EventRow
    ) -> bool:
        """Whether readers take an event wherever it comes to stand, with what it builds on and its author had seen.

        A restore explains both (protocol.md section 4). Else it is held to what holds for every new event.
        """
        try:
            header = decode_header(row[3])
        except ProtocolError:
            return False
        if not lifts_base(rewinds, header, SEQ_MAX):
            return False
        seen_seq, seen_chain = header.seen
        if any(each.seq < seen_seq for each in rewinds):
            return True
        held = await self._chain(principal, stream, seen_seq, await self._head(principal, stream))
        return held is None or held == seen_chain

    async def _rewinds_of(self, principal: Principal, stream: str) -> list[Rewind]:
        """The restores that set a stream back, as readers know them."""
        return [
            Rewind(principal.user_key, stream, each.epoch, each.at.seq, each.at.chain)
            for each in await self._restores.rewinds(principal.user_pk, stream)
        ]

    async def _authors(self, principal: Principal) -> dict[bytes, ListedDevice]:
        return {each.entry.device_id: each for each in await self._accounts.devices(principal.user_pk)}

    def _submission(
        self,
        principal: Principal,
        author: ListedDevice,
        rows: Sequence[EventRow],
        capabilities: int,
        *,
        anew: bool = False,
    ) -> Submission:
        raw = encode_events((header, sig, payload) for _, _, _, header, sig, payload, _ in rows)
        return Submission(
            user_pk=principal.user_pk,
            user_key=principal.user_key,
            device_pk=author.device_pk,
            device_id=author.entry.device_id,
            device_key=DeviceKey(author.entry.device_key),
            capabilities=capabilities,
            events=Events.parse(
                raw,
                events_max=len(rows),
                payload_bytes_max=self._payload_bytes_max,
                payloads_may_be_missing=True,  # they have run out, were erased or compacted: the signature is checked
            ),
            anew=anew,
        )


def _capabilities(author: ListedDevice, at_ms: int) -> int:
    """What a device might do at a moment, as ``Principal.capabilities_at``; nothing for one that had ended."""
    if author.revoked is not None or has_expired(author.entry.expires_at_ms, at_ms):
        return 0
    capabilities = Capability(author.entry.capabilities)
    return int(capabilities & ~Capability.MANAGE if at_ms < author.manage_from_ms else capabilities)


def _places(rows: Sequence[EventRow], after: Position) -> list[Position] | None:
    """Where rows come to behind ``after``; ``None`` where they are no events that follow each other."""
    places = []
    at, received_at_ms = after, 0
    for row in rows:
        if row[0] != at.seq + 1 or row[2] < received_at_ms or (row[5] is None and not _may_be_gone(row[3])):
            return None
        received_at_ms = row[2]
        hash_ = event_hash(_keepstep, row[3], row[4])
        at = Position(row[0], chain_next(_keepstep, at.chain, row[0], received_at_ms, hash_))
        places.append(at)
    return places


def _may_be_gone(header: bytes) -> bool:
    """Whether the payload of such an event may have been dropped before."""
    try:
        return decode_header(header).kind in ERASABLE
    except ProtocolError:
        return False


def _groups(rows: Sequence[EventRow]) -> Iterator[list[EventRow]]:
    """Events of one author and one moment together; snapshots, confirmations and erasures alone."""

    def is_apart(row: EventRow) -> bool:
        return decode_header(row[3]).kind in (Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE)

    for (_, _, apart), members in groupby(rows, key=lambda row: (row[1], row[2], is_apart(row))):
        group = list(members)
        if apart:
            yield from ([row] for row in group)
        else:
            yield group


def _answer(
    message: Heal,
    answer: Literal["placed", "diverged", "later", "refused"],
    head: Position,
    *,
    lost: Sequence[int] = (),
    retry_after_ms: int | None = None,
) -> HealResult:
    return HealResult(message.rid, message.stream, answer, head.seq, list(lost), retry_after_ms)
