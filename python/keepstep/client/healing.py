"""After a restore of the server: hand in what it lost, then go back where nobody could prove what was there.

protocol.md section 4, "After a restore". First what signed heads prove, which comes back to its place whoever hands it
in; then, when the other devices had their turn, the rest. What this device wrote and nobody has any more is published
again.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import trio

from keepstep.client import crypto
from keepstep.client.outbox import NO_HASH, Entry
from keepstep.client.rewinds import Restoration
from keepstep.client.transport import Disconnected
from keepstep.errors import ClientError, ProtocolError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Policy, Position
from keepstep.protocol.chain import decode_head, event_hash
from keepstep.protocol.event import decode_header
from keepstep.protocol.messages import (
    CHAINS_ASKED_MAX,
    HEAL_LINKS_MAX,
    HEAL_ROWS_MAX,
    ChainAt,
    ChainAtResult,
    Error,
    Heal,
    HealResult,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from keepstep.client.connection import Connection
    from keepstep.client.environment import Environment
    from keepstep.client.follower import Follower
    from keepstep.client.locallog import LocalLog
    from keepstep.client.outbox import Outbox
    from keepstep.client.safekeeping import Safety
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker
    from keepstep.protocol.messages import EventRow, SignedHead

HEAL_RID_FIRST: Final = 2**60
"""Requests of healing have numbers from here on; a publisher's begin at 1."""
HEAL_RID_END: Final = 2**61
PAGE_BYTES_MAX: Final = 512 * 1024
"""Events handed in with one message, bytes; one event above it still goes."""
PAUSE_S: Final = 2.0
"""Before asking again where the server names no time, seconds."""
PASSING: Final = frozenset({"rate_limited", "unavailable"})
"""Refusals that pass: after the time that the server names the same is asked again."""
WAIT_S_MAX: Final = 24 * 60 * 60.0
"""How long other devices are waited for at most, seconds: the longest window that a server can be set to."""
PROVEN: Final = 1
EVERYTHING: Final = 2


@dataclass(slots=True, eq=False)
class _Lost:
    """A stream that was set back, as far as it has been dealt with.

    Attributes:
        stream: its name.
        floor: how far back restores explain.
        held: what this device holds of it.
        common: the last position that the server is known to hold too.
        handed_in: events that are in their places again since.
    """

    stream: str
    floor: int
    held: Position
    common: int
    handed_in: int = 0


class Healer:
    """Heals for one device; ``run`` is one session of it.

    Args:
        store: the device's file.
        log: its events.
        worker: where the file is used.
        environment: the clock.
        follower: what is read.
        outbox: takes what is published again.
        queued: told how many events entered the outbox.
        went_back: told to which seq a stream went back, and called when a restore has been dealt with.
    """

    def __init__(
        self,
        store: Store,
        log: LocalLog,
        worker: Worker,
        environment: Environment,
        *,
        follower: Follower,
        outbox: Outbox,
        queued: Callable[[int], None],
        went_back: Callable[[str, int], None],
    ) -> None:
        self._queued = queued
        self._again = 0
        self._store = store
        self._log = log
        self._worker = worker
        self._environment = environment
        self._follower = follower
        self._outbox = outbox
        self._went_back = went_back
        self._session: _Session | None = None

    async def restorations(self) -> list[Restoration]:
        """As ``HealCalls.restorations``."""
        return await self._worker.run(self._follower.rewinds.restorations)

    async def safety(self) -> Safety:
        """As ``HealCalls.safety``."""
        return await self._worker.run(self._follower.kept.safety)

    async def end_window(self) -> None:
        """As ``HealCalls.end_healing``."""
        if self._session is None:
            raise ClientError("there is no connection now")
        try:
            answer = await self._session.ask(lambda rid: Heal(rid, DEVICES_STREAM, None, [], None, 3))
        except (Disconnected, ProtocolError) as exc:
            raise ClientError("the connection ended; try again") from exc
        if isinstance(answer, Error) and answer.code == "forbidden":
            raise ClientError("this device does not manage: only one that does may end the time for handing in")

    def begin(
        self, connection: Connection, resubscribe: Callable[[Sequence[str]], Awaitable[None]], *, pending: bool
    ) -> None:
        """A session begins; ``pending``: in an epoch in which this device has not handed in what it holds."""
        self._session = _Session(connection, resubscribe, pending)

    @property
    def pending(self) -> bool:
        """Whether the session waits for what was lost: until then nothing is published to streams that are read."""
        return self._session is not None and self._session.pending

    def end(self) -> None:
        """The session is over: the next one begins anew with what is not done."""
        if self._session is not None:
            self._session.is_over = True
            self._session.answered.set()
        self._session = None

    def rewound(self, streams: Mapping[str, int]) -> None:
        """Subscriptions were answered: restores set these streams back, at most so far."""
        if self._session is not None and streams:
            self._session.rewound |= streams
            self._session.wake.set()

    def take(self, message: ChainAtResult | HealResult | Error) -> None:
        """The answer to a request."""
        if self._session is not None and message.rid == self._session.asked:
            self._session.answer = message
            self._session.answered.set()

    async def run(self) -> None:
        """Heal what comes, until cancelled.

        Raises:
            Disconnected: the connection is gone.
            StoreError: the disk is full.
            VerificationError: the server went back to another history than the one before.
        """
        session = self._session
        assert session is not None
        epoch = session.connection.epoch
        if not session.pending:
            await trio.sleep_forever()
        while not self._is_answered(session):
            session.wake = trio.Event()
            await session.wake.wait()
        streams = [_Lost(*each) for each in await self._worker.run(lambda: self._begin(session.rewound))]
        for lost in streams:
            await self._find_common(session, lost)
            await self._hand_in(session, lost, proven=True)
        await self._report(session, PROVEN)
        for lost in streams:
            await self._hand_in(session, lost, proven=False)
            await self._give_up(session, lost)
        await self._report(session, EVERYTHING)
        await self._worker.run(lambda: self._follower.set_healed(epoch))
        session.pending = False
        # What others handed in may be this device's own: only now is it clear which numbers it goes on from.
        await session.resubscribe([name for name, each in self._follower.followed.items() if each.failure is None])
        await trio.sleep_forever()

    def note(self, streams: Iterable[str]) -> None:
        """Subscriptions were answered: the server holds what this device holds of these streams."""
        if self._session is not None:
            self._session.held.update(streams)
            self._session.wake.set()

    def _is_answered(self, session: _Session) -> bool:
        """Whether it is known of every stream that is read whether it was set back."""
        followed = {name for name, each in self._follower.followed.items() if each.failure is None}
        return followed <= session.held | session.rewound.keys()

    def _begin(self, rewound: Mapping[str, int]) -> list[tuple[str, int, Position, int]]:
        """``$devices`` first, then ``$keys``, then by name."""
        order = {DEVICES_STREAM: 0, KEYS_STREAM: 1}
        streams = sorted(rewound, key=lambda stream: (order.get(stream, 2), stream))
        return [(stream, rewound[stream], self._follower.position(stream), rewound[stream]) for stream in streams]

    # -- the last position that both have -------------------------------------------------------------------------

    async def _find_common(self, session: _Session, lost: _Lost) -> None:
        """Raise ``common`` to the last position that the server holds too."""
        low, high = lost.common, lost.held.seq
        is_first = True
        while low < high or is_first:
            is_first = False
            step = max(1, -(-(high - low) // (CHAINS_ASKED_MAX - 1)))
            asked = sorted({*range(low, high, step), high})
            answer = await session.ask(lambda rid, asked=asked: ChainAt(rid, lost.stream, asked))  # type: ignore[misc]
            if not isinstance(answer, ChainAtResult):
                return
            held = await self._worker.run(
                lambda asked=asked: [self._follower.chain_of(lost.stream, seq) for seq in asked]  # type: ignore[misc]
            )
            same = [
                seq for seq, mine, theirs in zip(asked, held, answer.chains, strict=True) if mine and mine == theirs
            ]
            if not same:
                if held[0] is not None and answer.chains[0] is not None:
                    raise VerificationError(
                        "a restore does not explain where the log went back to", stream=lost.stream, seq=low
                    )
                return
            low = same[-1]
            following = [seq for seq in asked if seq > low]
            high = following[0] - 1 if following else low
        lost.common = low

    # -- what was lost ----------------------------------------------------------------------------------------------

    async def _hand_in(self, session: _Session, lost: _Lost, *, proven: bool) -> None:
        """Hand in what comes after ``common``: what a signed head proves, or everything."""
        give_up_s = trio.current_time() + WAIT_S_MAX
        looked_again = False
        while lost.common < lost.held.seq:
            page = await self._worker.run(lambda: self._page(lost, proven=proven))
            if page is None:
                return
            after, rows, proof = page
            answer = await session.ask(
                lambda rid, after=after, rows=rows, proof=proof: Heal(  # type: ignore[misc]
                    rid, lost.stream, (after.seq, after.chain), rows, proof, 0
                )
            )
            if isinstance(answer, HealResult) and answer.answer == "placed":
                lost.handed_in += len(rows)
                lost.common = rows[-1][0]
            elif isinstance(answer, HealResult) and answer.answer == "later" and trio.current_time() < give_up_s:
                await trio.sleep((answer.retry_after_ms or 0) / 1000 or PAUSE_S)
                await self._find_common(session, lost)
            elif isinstance(answer, HealResult) and answer.answer == "diverged" and not looked_again:
                looked_again = True
                await self._find_common(session, lost)
            else:
                return

    def _page(
        self, lost: _Lost, *, proven: bool
    ) -> tuple[Position, list[EventRow], tuple[bytes, SignedHead] | None] | None:
        """What comes next, and what proves it; ``None`` where nothing does or the events are not kept."""
        chain = self._follower.chain_of(lost.stream, lost.common)
        rows = _fitting(self._log.exact_rows(lost.stream, after=lost.common, events_max=HEAL_ROWS_MAX))
        if chain is None or not rows or rows[0][0] != lost.common + 1:
            return None
        after = Position(lost.common, chain)
        if not proven:
            return after, rows, None
        heads = {decode_head(signed[0]).seq: signed for signed in self._follower.state_of(lost.stream).heads}
        reachable = [seq for seq in heads if lost.common < seq <= min(lost.held.seq, rows[-1][0] + HEAL_LINKS_MAX)]
        if not reachable:
            return None
        to = max(reachable)
        rows = [row for row in rows if row[0] <= to]
        links = self._log.exact_rows(lost.stream, after=rows[-1][0], events_max=to - rows[-1][0]) if to else []
        return after, rows, (b"".join(map(_link, links)), heads[to])

    async def _give_up(self, session: _Session, lost: _Lost) -> None:
        """Go back to what both have; what is beyond it is appended anew, published again, or lost."""
        rows = await self._worker.run(lambda: self._rest(lost))
        is_mine = self._republishes(lost.stream)
        mine = [row for row in rows if is_mine(row)]
        others = [row for row in rows if not is_mine(row)]
        gone = lost.held.seq - lost.common - len(rows)
        for page in _pages(others):
            answer = await self._append_anew(session, lost.stream, page)
            gone += len(answer.lost) if isinstance(answer, HealResult) and answer.answer == "placed" else len(page)
        at_ms = self._environment.now_ms()
        restoration = Restoration(
            lost.stream, at_ms, lost.common, lost.held.seq, lost.handed_in, lost.held.seq - lost.common - gone, gone
        )
        await self._worker.run(lambda: self._set_back(lost, restoration, mine))
        if lost.common < lost.held.seq:
            self._went_back(lost.stream, lost.common)
        self._queued(self._again)
        self._again = 0

    def _republishes(self, stream: str) -> Callable[[EventRow], bool]:
        """Which events this device publishes again itself: its own.

        Where the policy is ``expect``, none: what it would send again conflicts, what is handed in need not build on
        the head (protocol.md section 4, "appended anew as signed, by author order, `base` ignored").
        """
        policy = self._follower.state_of(stream).rules.policy
        if policy is not None and policy.policy == Policy.EXPECT:
            return lambda _row: False
        return lambda row: row[1] == self._store.identity.device_id

    async def _append_anew(
        self, session: _Session, stream: str, page: list[EventRow]
    ) -> ChainAtResult | HealResult | Error:
        """Hand in what has no place, after the others: a device that the account log brought back has its turn too."""
        give_up_s = trio.current_time() + WAIT_S_MAX
        while True:
            answer = await session.ask(lambda rid: Heal(rid, stream, None, page, None, 0))
            if not isinstance(answer, HealResult) or answer.answer != "later" or trio.current_time() >= give_up_s:
                return answer
            await trio.sleep((answer.retry_after_ms or 0) / 1000 or PAUSE_S)

    def _rest(self, lost: _Lost) -> list[EventRow]:
        """The kept events beyond what both have."""
        rows: list[EventRow] = []
        while page := self._log.exact_rows(
            lost.stream, after=rows[-1][0] if rows else lost.common, events_max=HEAL_ROWS_MAX
        ):
            rows += page
        return rows

    def _set_back(self, lost: _Lost, restoration: Restoration, mine: Sequence[EventRow]) -> None:
        if lost.common == lost.held.seq:
            self._follower.remember(restoration)
            return
        again = [_entry(lost.stream, row) for row in mine if row[5] is not None]
        if again:
            last = self._log.last_of(lost.stream, self._store.identity.device_id, up_to=lost.common)
            before = (0, NO_HASH) if last is None else (decode_header(last[0]).n, event_hash(crypto, *last))
            self._again += self._outbox.publish_again(lost.stream, before, again)
        self._follower.set_back(restoration)

    async def _report(self, session: _Session, step: Literal[1, 2]) -> None:
        """Say that this device is done with a step, and wait for the others where they have to be waited for."""
        give_up_s = trio.current_time() + WAIT_S_MAX
        while trio.current_time() < give_up_s:
            answer = await session.ask(lambda rid: Heal(rid, DEVICES_STREAM, None, [], None, step))
            if not isinstance(answer, HealResult) or answer.answer == "closed":
                return
            await trio.sleep((answer.retry_after_ms or 0) / 1000 or PAUSE_S)


class HealCalls(abc.ABC):
    """What an application calls on its ``Device``."""

    _healer: Healer

    async def restorations(self) -> list[Restoration]:
        """What restores of the server took away, stream by stream, and what came of it, the earliest first."""
        return await self._healer.restorations()

    @property
    def is_healing(self) -> bool:
        """Whether the server was restored and waits for what the user's devices hold; it takes nothing new then."""
        return self._healer.pending

    async def safety(self) -> Safety:
        """What a restore of the server could cost this device: what is in no verified backup, and what it let go."""
        return await self._healer.safety()

    async def end_healing(self) -> None:
        """After a restore of the server: wait no longer for the user's other devices to hand in what was lost.

        What they hold is then appended anew, where it joins on, when they come.

        Raises:
            ClientError: there is no connection now, or this device does not manage.
        """
        await self._healer.end_window()


@dataclass(slots=True, eq=False)
class _Session:
    """One connection's requests, one at a time."""

    connection: Connection
    resubscribe: Callable[[Sequence[str]], Awaitable[None]]
    pending: bool
    rewound: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    wake: trio.Event = field(default_factory=trio.Event)
    next_rid: int = HEAL_RID_FIRST
    asked: int = 0
    answered: trio.Event = field(default_factory=trio.Event)
    answer: ChainAtResult | HealResult | Error | None = None
    is_over: bool = False
    one_at_a_time: trio.Lock = field(default_factory=trio.Lock)

    async def ask(self, request: Callable[[int], ChainAt | Heal]) -> ChainAtResult | HealResult | Error:
        """Ask, and wait for the answer; a refusal that passes is waited out. Raises Disconnected."""
        while True:
            async with self.one_at_a_time:
                self.asked, self.next_rid = self.next_rid, self.next_rid + 1
                self.answered = trio.Event()
                await self.connection.send(request(self.asked))
                if not self.is_over:
                    await self.answered.wait()
                if self.is_over:  # whoever asks need not be one of the session's own tasks, which end with it
                    raise Disconnected("the connection ended before the answer came")
                answer = self.answer
            assert answer is not None
            if not isinstance(answer, Error) or answer.code not in PASSING:
                return answer
            await trio.sleep((answer.retry_after_ms or 0) / 1000 or PAUSE_S)


def _fitting(rows: list[EventRow]) -> list[EventRow]:
    """The first rows that fit into one message, at least one."""
    size = 0
    for index, row in enumerate(rows):
        size += len(row[3]) + len(row[5] or b"")
        if size > PAGE_BYTES_MAX and index:
            return rows[:index]
    return rows


def _pages(rows: list[EventRow]) -> list[list[EventRow]]:
    pages = []
    while rows:
        page = _fitting(rows[:HEAL_ROWS_MAX])
        pages.append(page)
        rows = rows[len(page) :]
    return pages


def _link(row: EventRow) -> bytes:
    return row[2].to_bytes(8, "big") + event_hash(crypto, row[3], row[4])


def _entry(stream: str, row: EventRow) -> Entry:
    """An event of this device as its outbox had it."""
    header, sig, payload = row[3], row[4], row[5]
    assert payload is not None
    return Entry(0, stream, decode_header(header).n, event_hash(crypto, header, sig), header, sig, payload, sent=True)
