"""Two nodes on one database, exhaustively: every order in which their steps can come, on a small model.

The model is the product's own appending over the tables in memory, which have row locks and a compare and set as
PostgreSQL has them; the contract suite shows that the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import pytest

from keepstep.client import crypto
from keepstep.errors import Unavailable
from keepstep.eventlog.append import Appending
from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.genesis import create_account
from keepstep.eventlog.heads import HeadCache
from keepstep.eventlog.rooms import ByteRooms
from keepstep.eventlog.store import OutcomeUnknown
from keepstep.memory import MemoryDatabase
from keepstep.memory.database import UserRow
from keepstep.memory.store import MemoryStore
from keepstep.model import DevicePk, Principal, UserPk
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, UserFixture, submission
from tests.support.interleaving import Actor, Gate, explore

if TYPE_CHECKING:
    from keepstep.model import AccountChange

STEPS = frozenset({"load", "lock", "write", "before_commit", "wait", "find"})
"""The steps that other nodes can notice, or that notice them."""
WRITING_STEPS = frozenset({"write", "before_commit", "wait"})
"""Those of them that write; reads come right before the write that follows."""
ADA = UserFixture("ada")
NOTES_PK = 3
Run = Callable[[Sequence[Actor]], None]


class Killed(BaseException):
    """The node died at a gate."""


def pass_by(point: str) -> None:
    """The gate of what happens before a scenario."""
    del point


def only_steps(gate: Gate, steps: frozenset[str] = STEPS) -> Gate:
    """A gate that lets the other steps pass."""
    return lambda point: gate(point) if point in steps else None


def failing(gate: Gate, at: str, failure: type[BaseException]) -> Gate:
    """A gate at one point of which something fails."""

    def probe(point: str) -> None:
        if point == at:
            raise failure
        only_steps(gate)(point)

    return probe


@dataclass(eq=False)
class Node:
    """One node: what it remembers, and what it answered."""

    database: MemoryDatabase
    heads: HeadCache = field(default_factory=lambda: HeadCache(streams_max=100))
    devices: DeviceCache = field(default_factory=DeviceCache)
    answers: list[tuple[SignedEvent, Result]] = field(default_factory=list)

    def append(self, probe: Gate, device: Principal, *events: SignedEvent, change: AccountChange | None = None) -> None:
        """Append single events, each with an answer of its own."""
        outcome = Appending(
            generation=0,
            store=MemoryStore(self.database, probe),
            heads=self.heads,
            devices=self.devices,
            rooms=ByteRooms(),
            streams_per_user_max=100,
            bytes_per_user_max=None,
            batch=[submission(device, event) for event in events],
            now_ms=NOW_MS,
            change=change,
            is_short=True,
        ).run()
        self.answers += [(event, result) for event, (result,) in zip(events, outcome.results, strict=True)]

    def appends(self, device: Principal, *batches: Sequence[SignedEvent], steps: frozenset[str] = STEPS) -> Actor:
        """An actor that appends batch after batch."""

        def act(gate: Gate) -> None:
            for events in batches:
                self.append(only_steps(gate, steps), device, *events)

        return act

    @property
    def kinds(self) -> list[type]:
        """What kinds of answers it gave, in order."""
        return [type(result) for _, result in self.answers]


def principal(device: DeviceFixture, device_pk: int) -> Principal:
    """A device of the first account."""
    return Principal(
        UserPk(1), ADA.user_key, DevicePk(device_pk), device.device_id, device.device_key, device.capabilities, None
    )


PHONE, LAPTOP = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
ON_PHONE, ON_LAPTOP = principal(PHONE, 1), principal(LAPTOP, 2)


@cache
def prepared() -> MemoryDatabase:
    """An account of two devices; "notes" has one event of each."""
    database = MemoryDatabase()
    create_account(MemoryStore(database, pass_by), PHONE.genesis(), now_ms=NOW_MS)
    node = Node(database)
    event, change = PHONE.enrol(LAPTOP)
    node.append(pass_by, ON_PHONE, event, change=change)
    node.append(pass_by, ON_PHONE, PHONE.event("notes"))
    node.append(pass_by, ON_LAPTOP, LAPTOP.event("notes"))
    return database


def signed(device: DeviceFixture, stream: str, count: int) -> list[SignedEvent]:
    """A device's next events, the same in every run: the device stays where the prepared database has it."""
    prepared()
    return replace(device, authored=dict(device.authored)).events(stream, count)


class World:
    """A copy of the prepared database, and two nodes that remember "notes" as it is."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        for user_pk, user in prepared().users.items():
            devices = {device_pk: replace(row) for device_pk, row in user.devices.items()}
            self.database.users[user_pk] = UserRow(user.user_key, user.next_root_hash, devices, dict(user.heads))
        for place, rows in prepared().events.items():
            self.database.events[place] = list(rows)
        self.here, self.there = Node(self.database), Node(self.database)
        for node in (self.here, self.there):
            node.heads.put([self.database.users[1].heads[NOTES_PK]], generation=0)

    def check(self, *nodes: Node) -> None:
        """What must hold at any time.

        No stream has a gap, each has one chain, every author's numbers are in order; an accepted event and a
        duplicate are where the answer says, and what was refused is not there.
        """
        user = self.database.users[1]
        stored = {}
        for stream_pk, head in user.heads.items():
            chain, numbers = ADA.chain_0(head.name), dict.fromkeys(user.devices, 0)
            rows = self.database.events[1, stream_pk]
            for number, row in enumerate(rows, 1):
                hash_ = event_hash(crypto, row.header, row.sig)
                chain = chain_next(crypto, chain, number, row.received_at_ms, hash_)
                numbers[row.device_pk] += 1
                assert (row.seq, row.n, row.chain) == (number, numbers[row.device_pk], chain)
                stored[hash_] = row
            assert (head.seq, head.chain) == (len(rows), chain)
        for event, result in (answer for node in nodes for answer in node.answers):
            if isinstance(result, ResultError):
                assert event.hash not in stored, result
            else:
                row = stored[event.hash]
                seq = result.first_seq if isinstance(result, ResultAccepted) else result.seq
                assert (seq, result.chain) == (row.seq, row.chain)


def test_two_devices_write_one_stream_over_two_nodes() -> None:
    """Whatever the order, everything is accepted once, without a gap, and told truly."""
    first, second = signed(PHONE, "notes", 2)
    others = signed(LAPTOP, "notes", 1)

    def scenario(run: Run) -> None:
        world = World()
        run([world.here.appends(ON_PHONE, [first], [second]), world.there.appends(ON_LAPTOP, others)])
        world.check(world.here, world.there)
        assert world.here.kinds + world.there.kinds == [ResultAccepted] * 3

    assert explore(scenario) > 20


def test_an_event_sent_again_to_another_node_is_stored_once() -> None:
    """A device that changed nodes sends what it got no answer for, and goes on; the first node is still at it."""
    first, second = signed(PHONE, "notes", 2)

    def scenario(run: Run) -> None:
        world = World()
        run([world.here.appends(ON_PHONE, [first]), world.there.appends(ON_PHONE, [first, second])])
        world.check(world.here, world.there)
        assert {*world.here.kinds, world.there.kinds[0]} == {ResultAccepted, ResultDuplicate}
        assert world.there.kinds[1] is ResultAccepted

    assert explore(scenario) > 10


def test_three_nodes_at_one_event() -> None:
    """One of them stores it; the others find it."""
    (event,) = signed(PHONE, "notes", 1)

    def scenario(run: Run) -> None:
        world = World()
        nodes = [world.here, world.there, Node(world.database)]
        run([node.appends(ON_PHONE, [event], steps=WRITING_STEPS) for node in nodes])
        world.check(*nodes)
        kinds = [kind for node in nodes for kind in node.kinds]
        assert (kinds.count(ResultAccepted), kinds.count(ResultDuplicate)) == (1, 2)

    assert explore(scenario) > 100


def test_two_nodes_create_streams() -> None:
    """The same stream, and another one each: names and numbers are given out once."""
    mine = [*signed(PHONE, "new", 1), *signed(PHONE, "phone", 1)]
    theirs = [*signed(LAPTOP, "laptop", 1), *signed(LAPTOP, "new", 1)]

    def scenario(run: Run) -> None:
        world = World()
        run([world.here.appends(ON_PHONE, mine), world.there.appends(ON_LAPTOP, theirs)])
        world.check(world.here, world.there)
        created = {head.name: head.seq for pk, head in world.database.users[1].heads.items() if pk > NOTES_PK}
        assert created == {"new": 2, "phone": 1, "laptop": 1}

    assert explore(scenario) > 10


@pytest.mark.parametrize("remembers", [True, False], ids=["remembering", "new"])
def test_nothing_of_a_revoked_device_is_stored_after_its_revocation(remembers: bool) -> None:
    """Another node, which knows heads and devices from before or learns of them now, is at its events meanwhile."""
    prepared()
    event, change = replace(PHONE, authored=dict(PHONE.authored)).revoke(LAPTOP)
    laptops = [*signed(LAPTOP, "notes", 1), *signed(LAPTOP, "new", 1)]

    def scenario(run: Run) -> None:
        world = World()
        if remembers:
            world.there.append(pass_by, ON_LAPTOP, *signed(LAPTOP, "others", 1))
        stored_before: list[int] = []

        def stored() -> int:
            rows = [row for rows in world.database.events.values() for row in rows]
            return sum(row.device_pk == ON_LAPTOP.device_pk for row in rows)

        def revoke(gate: Gate) -> None:
            def probe(point: str) -> None:
                if point == "after_commit":
                    stored_before.append(stored())
                only_steps(gate, STEPS | {"devices"})(point)

            world.here.append(probe, ON_PHONE, event, change=change)

        others = world.there.appends(ON_LAPTOP, *([each] for each in laptops), steps=STEPS | {"devices"})
        run([revoke, others])
        world.check(world.here, world.there)
        assert stored_before == [stored()]
        assert world.here.kinds == [ResultAccepted]
        answers = [result for _, result in world.there.answers[-2:]]
        assert all(isinstance(each, ResultAccepted) or each == ResultError("forbidden", []) for each in answers)

    assert explore(scenario) > 20


def test_two_enrolments_checked_against_the_same_head() -> None:
    """One is stored; the other one is not, and is checked again."""
    prepared()
    mine = replace(PHONE, authored=dict(PHONE.authored)).enrol(DeviceFixture(ADA, "tablet"), checked_seq=2)
    theirs = replace(LAPTOP, authored=dict(LAPTOP.authored)).enrol(DeviceFixture(ADA, "watch"), checked_seq=2)

    def scenario(run: Run) -> None:
        world = World()
        refused: list[str] = []

        def enrol(node: Node, device: Principal, event: SignedEvent, change: AccountChange) -> Actor:
            def act(gate: Gate) -> None:
                try:
                    node.append(only_steps(gate), device, event, change=change)
                except Unavailable as error:
                    refused.append(error.detail)

            return act

        run([enrol(world.here, ON_PHONE, *mine), enrol(world.there, ON_LAPTOP, *theirs)])
        world.check(world.here, world.there)
        assert refused == ["$devices has moved since the change was checked"]
        assert len(world.database.users[1].devices) == 3

    assert explore(scenario) > 1


@pytest.mark.parametrize(
    ("at", "failure", "first_is"),
    [
        ("before_commit", Killed, ResultAccepted),
        ("after_commit", Killed, ResultDuplicate),
        ("before_commit", OutcomeUnknown, ResultAccepted),
        ("after_commit", OutcomeUnknown, ResultDuplicate),
    ],
)
def test_the_answer_to_a_commit_is_lost(at: str, failure: type[BaseException], first_is: type) -> None:
    """A node dies in it, or never learns of it: the retry, elsewhere or there, is decided by what is stored."""
    first, second = signed(PHONE, "notes", 2)
    others = signed(LAPTOP, "notes", 1)

    def scenario(run: Run) -> None:
        world = World()
        rival = Node(world.database)
        next_node = world.there if failure is Killed else world.here

        def lose(gate: Gate) -> None:
            with pytest.raises(failure):
                world.here.append(failing(gate, at, failure), ON_PHONE, first)
            next_node.append(only_steps(gate), ON_PHONE, first, second)

        run([lose, rival.appends(ON_LAPTOP, others)])
        world.check(next_node, rival)
        assert next_node.kinds == [first_is, ResultAccepted]

    assert explore(scenario) > 10


def test_what_follows_an_event_never_overtakes_it() -> None:
    """A batch whose stream another node moved is decided again in its own order."""
    mine = signed(PHONE, "notes", 3)
    theirs = signed(LAPTOP, "notes", 1)

    def scenario(run: Run) -> None:
        world = World()
        run([world.here.appends(ON_PHONE, mine), world.there.appends(ON_LAPTOP, theirs)])
        world.check(world.here, world.there)
        seqs = [result.first_seq for _, result in world.here.answers if isinstance(result, ResultAccepted)]
        assert len(seqs) == 3
        assert seqs == sorted(seqs)

    assert explore(scenario) > 5


def test_no_refusal_comes_from_a_stale_memory() -> None:
    """A node that missed event n never says that n + 1 is out of order, whoever else writes meanwhile."""
    first, second = signed(PHONE, "notes", 2)
    others = signed(LAPTOP, "notes", 1)

    def scenario(run: Run) -> None:
        world = World()
        rival = Node(world.database)

        def change_nodes(gate: Gate) -> None:
            world.there.append(only_steps(gate), ON_PHONE, first)
            world.here.append(only_steps(gate), ON_PHONE, second)

        run([change_nodes, rival.appends(ON_LAPTOP, others)])
        world.check(world.here, world.there, rival)
        assert world.here.kinds == world.there.kinds == [ResultAccepted]

    assert explore(scenario) > 10
