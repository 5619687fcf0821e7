"""One session under schedules that nobody thought of: it sends every event once, in order, and is never forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from keepstep.errors import Unavailable
from keepstep.memory import MemoryLog
from keepstep.protocol.messages import (
    Accepted,
    Ack,
    CaughtUp,
    Events,
    Head,
    ResultAccepted,
    Resumed,
    Subscribe,
    Unsubscribe,
)
from keepstep.protocol.session import seal
from keepstep.subscriber import Subscriber
from tests.support.events import NOW_MS, submission
from tests.support.following import verified
from tests.support.parts import SERVER_KEY, Parts, limited
from tests.support.wire import MemoryConnection, WireDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep.interfaces import Records, RestingReceiver
    from keepstep.model import UserPk

STREAMS: Final = ("first", "second")
NEVER_S: Final = 1e9
CREDITS_MAX: Final = 40
"""How often a device acknowledges until it has everything."""
EXAMPLES: Final = 100
RETRY_S: Final = 2.0
"""A session asks an unavailable log again after one second."""

streams = st.sampled_from(STREAMS)
ACTIONS: Final = st.one_of(
    st.tuples(st.just("commit"), streams, st.integers(1, 6)),
    st.tuples(st.just("publish"), streams),
    st.tuples(st.just("commit_elsewhere"), streams),
    st.tuples(st.just("subscribe"), streams, st.booleans()),
    st.tuples(st.just("unsubscribe"), streams),
    st.tuples(st.just("acknowledge"), streams),
    st.tuples(st.just("set_slow"), st.booleans()),
    st.tuples(st.just("set_stuck"), st.booleans()),
    st.tuples(st.just("let_read"), st.booleans()),
    st.tuples(st.just("forget")),
    st.tuples(st.just("tick")),
    st.tuples(st.just("reread")),
    st.tuples(st.just("wait"), st.integers(1, 6)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("calm")),
)


class HeldConnection(MemoryConnection):
    """What is written while it is stuck goes when it is not."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery=nursery)
        self._kept: list[bytes] = []

    def rest(self, receiver: RestingReceiver, records: Records) -> None:
        """As ``Resting.rest``."""
        self.receiver = receiver
        super().rest(receiver, records)

    def write(self, messages: Sequence[bytes | None]) -> None:
        """As ``Connection.write``."""
        if not self.stuck or not self._listens:
            super().write(messages)
            return
        assert self._sealer is not None
        self._kept += seal(self._sealer, messages)
        self.backlog_bytes = sum(map(len, self._kept))

    def release(self) -> None:
        """The device takes what it is sent."""
        self.stuck, self.backlog_bytes = False, 0
        kept, self._kept = self._kept, []
        for record in kept:
            self._to_device.send_nowait(record)
        self.receiver.writable()


@dataclass
class Followed:
    """A stream as the device knows it."""

    at: int | None = None
    """Its position; ``None`` where it does not follow it."""
    asked_from: int | None = None
    """Where it asked to go on from; ``None`` where that is answered."""
    is_left: bool = False
    """It has left it, and may be sent what was on its way."""
    told: int = 0
    """Seq of the latest signed head."""
    accepted: int = 0
    """Events of its own that it knows to be stored."""


@dataclass
class Reading:
    """A question to the database that waits, before it is asked or before it is answered."""

    goes_on: trio.Event = field(default_factory=trio.Event)
    fails: bool = False


@dataclass
class Schedule:
    """A phone's session, and what becomes of it."""

    parts: Parts
    clock: trio.testing.MockClock
    nursery: trio.Nursery
    is_slow: bool = False
    is_behind: bool = False
    """Another node has committed what this one was not told of."""
    reads: list[Reading] = field(default_factory=list)
    known: dict[str, Followed] = field(default_factory=lambda: {name: Followed() for name in STREAMS})
    published: dict[int, str] = field(default_factory=dict)

    async def begin(self) -> None:
        """Have the phone connect, and the database wait where a schedule says so."""
        parts = self.parts
        phone, self.author = await parts.register("alice", "phone", "laptop")
        parts.relay._head_interval_s = parts.relay._reread_interval_s = NEVER_S
        self.user_pk: UserPk = (await parts.principal(phone)).user_pk
        self.elsewhere = MemoryLog(parts.database)
        self.connection = HeldConnection(self.nursery)
        self.nursery.start_soon(parts.gateway.handle, self.connection)
        self.session = await WireDevice.connect(phone, self.connection, SERVER_KEY)
        await self.settle()
        backend, read = parts.log._backend, parts.log._backend.read

        async def gated(user_pk: UserPk, work: Callable[[Any], Any]) -> Any:
            await self._pass()
            found = await read(user_pk, work)
            await self._pass()
            return found

        backend.read = gated  # type: ignore[method-assign]

    async def _pass(self) -> None:
        if self.is_slow:
            reading = Reading()
            self.reads.append(reading)
            await reading.goes_on.wait()
            if reading.fails:
                raise Unavailable

    async def act(self, name: str, *arguments: Any) -> None:
        """One action."""
        await getattr(self, name)(*arguments)
        await self.hear()

    # -- what happens -------------------------------------------------------------------------------------------

    async def commit(self, stream: str, count: int) -> None:
        """Another device writes."""
        await self._append(self.parts.log, stream, count)

    async def commit_elsewhere(self, stream: str) -> None:
        """The same on another node."""
        self.is_behind = True
        await self._append(self.elsewhere, stream, 1)

    async def _append(self, log: MemoryLog, stream: str, count: int) -> None:
        principal = await self.parts.principal(self.author)
        submitted = submission(principal, *self.author.events(stream, count))
        appended = await log.append([submitted], now_ms=NOW_MS)
        assert all(isinstance(each, ResultAccepted) for each in appended.results[0])

    async def publish(self, stream: str) -> None:
        """The device itself writes."""
        if len(self.published) < 4:  # as many as a session may have in flight
            rid = await self.session.start_publish(self.session.device.event(stream))
            self.published[rid] = stream

    async def subscribe(self, stream: str, from_start: bool) -> None:
        """From its position, or anew."""
        known = self.known[stream]
        if known.is_left or known.asked_from is not None:
            return
        known.asked_from = 0 if from_start else known.at or 0
        start: Any = "start"
        if known.asked_from:
            start = known.asked_from, await self.elsewhere.chain_at(self.user_pk, stream, known.asked_from)
        await self.session.send(Subscribe({stream: start}))

    async def unsubscribe(self, stream: str) -> None:
        """Whether or not it was answered."""
        known = self.known[stream]
        if known.at is not None or known.asked_from is not None:
            known.is_left = True
            await self.session.send(Unsubscribe([stream]))

    async def acknowledge(self, stream: str) -> None:
        """All that it has."""
        known = self.known[stream]
        if known.at and not known.is_left and known.asked_from is None:
            chain = await self.elsewhere.chain_at(self.user_pk, stream, known.at)
            await self.session.send(Ack({stream: (known.at, chain[:16])}))

    async def set_slow(self, is_slow: bool) -> None:
        """What the database is asked waits for ``let_read``."""
        self.is_slow = is_slow
        if not is_slow:
            while self.reads:
                await self.let_read(fails=False)

    async def let_read(self, fails: bool) -> None:
        """What was asked first goes on, or the database is away."""
        if self.reads:
            reading = self.reads.pop(0)
            reading.fails = fails
            reading.goes_on.set()

    async def set_stuck(self, is_stuck: bool) -> None:
        """The device takes nothing."""
        if is_stuck:
            self.connection.stuck = True
        elif self.connection.stuck:
            self.connection.release()

    async def forget(self) -> None:
        """The log's memory was of use for others."""
        self.parts.log.tail.clear()

    async def tick(self) -> None:
        """Signed heads are due."""
        self.nursery.start_soon(self.parts.relay._look_at_user, self.user_pk, Subscriber.head_tick)

    async def reread(self) -> None:
        """The timer for lost hints."""
        self.nursery.start_soon(self.parts.relay._look_at_user, self.user_pk, Subscriber.reread)

    async def wait(self, count: int) -> None:
        """Some passes of the scheduler."""
        for _ in range(count):
            await trio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Until nobody has anything to do."""
        await trio.testing.wait_all_tasks_blocked()

    async def calm(self) -> None:
        """Nothing is in the way any more, and all that was on its way has come."""
        await self.set_slow(False)
        await self.set_stuck(False)
        await self.settle()
        self.clock.jump(RETRY_S)
        await self.settle()
        await self.hear()
        assert not self.published
        for known in self.known.values():
            if known.is_left:
                known.at, known.asked_from, known.is_left = None, None, False
            assert known.asked_from is None

    # -- what the device hears ----------------------------------------------------------------------------------

    async def hear(self) -> None:
        """All that has arrived."""
        while (record := self.connection.arrived()) is not None:
            message = self.session.session.receive(record)
            match message:
                case Resumed():
                    self._resumed(message)
                case Events():
                    await self._page(message)
                case CaughtUp() | Head():
                    await self._head(message)
                case Accepted():
                    stream = self.published.pop(message.rid)
                    self.known[stream].accepted += 1
                    assert all(isinstance(each, ResultAccepted) for each in message.results)
                case _:
                    raise AssertionError(message)

    def _resumed(self, message: Resumed) -> None:
        known = self.known[message.stream]
        assert message.answer == "contiguous"
        assert known.asked_from is not None
        assert message.author[0] >= known.accepted
        known.at, known.asked_from = known.asked_from, None

    async def _page(self, message: Events) -> None:
        known = self.known[message.stream]
        assert known.at is not None
        assert [row[0] for row in message.rows] == [*range(known.at + 1, known.at + 1 + len(message.rows))]
        known.at = message.rows[-1][0]
        assert message.chain == await self.elsewhere.chain_at(self.user_pk, message.stream, known.at)

    async def _head(self, message: CaughtUp | Head) -> None:
        known, head = self.known[message.stream], verified(message.head)
        assert head.seq == known.at
        assert head.chain == await self.elsewhere.chain_at(self.user_pk, message.stream, head.seq)
        known.told = head.seq

    # -- what is true in the end --------------------------------------------------------------------------------

    async def check(self) -> None:
        """Whatever it follows it has, as far as it may be sent that, and nothing had to go wrong for it."""
        await self.calm()
        if self.is_behind:
            await self.reread()
            await self.calm()
        await self._check_all_sent()
        for _ in range(CREDITS_MAX):
            for stream in STREAMS:
                await self.act("acknowledge", stream)
            await self.calm()
        await self._check_all_sent()
        await self.tick()
        await self.calm()
        heads = {info.name: info.head.seq for info in await self.elsewhere.streams(self.user_pk)}
        for stream, known in self.known.items():
            assert known.at is None or known.at == known.told == heads.get(stream, 0)
        assert self.connection.closed is None
        assert self.parts.metrics.faults._value.get() == 0

    async def _check_all_sent(self) -> None:
        (session,) = self.parts.gateway._sessions
        if session.subscriber._credit.left_bytes <= 0:
            return
        heads = {info.name: info.head.seq for info in await self.elsewhere.streams(self.user_pk)}
        for stream, known in self.known.items():
            assert known.at is None or known.at == heads.get(stream, 0)


async def run(actions: list[tuple[Any, ...]], unacked_bytes_max: int, clock: trio.testing.MockClock) -> None:
    """One schedule."""
    parts = Parts(limits=limited(unacked_bytes_max=unacked_bytes_max, page_events_max=2))
    async with parts.running() as nursery:
        schedule = Schedule(parts, clock, nursery)
        await schedule.begin()
        for stream in STREAMS:
            await schedule.act("commit", stream, 4)
            await schedule.act("subscribe", stream, True)
        await schedule.set_slow(True)
        for action in actions:
            await schedule.act(*action)
        await schedule.check()


@settings(max_examples=EXAMPLES)
@given(st.lists(ACTIONS, min_size=4, max_size=40), st.sampled_from([1_000, 1_000_000]))
def test_a_session_sends_every_event_once_and_in_order(actions: list[tuple[Any, ...]], unacked_bytes_max: int) -> None:
    """Whatever commits, asks, fails and waits in between."""
    clock = trio.testing.MockClock()
    trio.run(run, actions, unacked_bytes_max, clock, clock=clock)
