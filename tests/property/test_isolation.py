"""Nothing of one user reaches another: what a user is shown is the same whether the others are there or not.

Random users with several devices each do random things over both surfaces, also things that name each other's streams
and devices. Then each user does its own things again on a server where nobody else ever was. Every message and every
answer must be the same, byte for byte but for what is random: so no byte, no name and no count of another is in it,
nor whether another exists.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from keepstep.memory.reader import MemoryReader
from keepstep.model import UserPk
from keepstep.presence import Presences
from keepstep.protocol.messages import Presence, Read, Signal, Subscribe
from tests.support.events import DeviceFixture, SignedEvent, UserFixture, wire_events
from tests.support.parts import Parts
from tests.support.rest import Site, site
from tests.support.wire import Closed, MemoryConnection, WireDevice

USERS: Final = 3
DEVICES: Final = ("phone", "laptop")
SHARED_STREAM: Final = "notes"
"""Everybody has one of that name."""
RANDOM_HEADERS: Final = {"x-request-id"}
RANDOM_FIELDS: Final = re.compile(rb'"request_id":"[^"]*"')
STEPS_MAX: Final = 30

users = st.integers(0, USERS - 1)
devices = st.sampled_from(DEVICES)
whose = st.sampled_from(["ours", "shared", "theirs"])
steps = st.lists(
    st.one_of(
        st.tuples(users, devices, st.sampled_from(["publish", "post"]), st.sampled_from(["ours", "shared"])),
        st.tuples(users, devices, st.sampled_from(["read", "get_events", "get_stream", "get_snapshots"]), whose),
        st.tuples(
            users,
            devices,
            st.sampled_from(["follow", "leave", "present", "signal", "get_device"]),
            st.sampled_from(["ours", "theirs"]),
        ),
        st.tuples(
            users,
            devices,
            st.sampled_from(["get_streams", "get_devices", "get_account", "get_presence"]),
            st.just("ours"),
        ),
        st.tuples(st.none(), st.just(""), st.just("wait"), st.just("")),
    ),
    min_size=8,
    max_size=STEPS_MAX,
)
Step = tuple[int | None, str, str, str]


def user_name(user: int) -> str:
    """Found in whatever is theirs."""
    return f"user-number-{user}"


def private_stream(user: int) -> str:
    """A stream that only one user has."""
    return f"{user_name(user)}/diary"


@dataclass
class Person:
    """One user of a world.

    Attributes:
        number: which one.
        devices: by name.
        sessions: of the devices that are connected.
        seen: everything it was sent or answered, in order.
    """

    number: int
    devices: dict[str, DeviceFixture]
    sessions: dict[str, WireDevice] = field(default_factory=dict)
    seen: list[tuple[str, object]] = field(default_factory=list)

    @property
    def other(self) -> int:
        """Whose things it names when it names another's."""
        return (self.number + 1) % USERS

    def stream(self, whose: str) -> str:
        """A name."""
        return {
            "ours": private_stream(self.number),
            "shared": SHARED_STREAM,
            "theirs": private_stream(self.other),
        }[whose]


def fixtures(user: int) -> dict[str, DeviceFixture]:
    """The devices of a user, the same in every world."""
    return {name: DeviceFixture(UserFixture(user_name(user)), name) for name in DEVICES}


class World:
    """A server and those who use it."""

    def __init__(self, here: Site, nursery: trio.Nursery, people: dict[int, Person]) -> None:
        self.here = here
        self.nursery = nursery
        self.people = people

    async def perform(self, step: Step) -> None:
        """One step of one user; then everybody takes what came."""
        user, device, action, whose = step
        if action == "wait":
            await trio.sleep(1)
        elif user in self.people:
            await self._act(self.people[user], device, action, whose)
        await trio.testing.wait_all_tasks_blocked()
        for person in self.people.values():
            await self._take(person)

    async def _act(self, person: Person, device: str, action: str, whose: str) -> None:
        fixture = person.devices[device]
        if action.startswith("get_"):
            await self._get(person, device, action, whose)
        elif action == "post":
            await self._post(person, device, fixture.event(person.stream(whose), self._payload(person)))
        elif action == "follow":
            session = await self._session(person, device)
            await session.send(Subscribe("all"))
        elif action == "leave":
            if device in person.sessions:
                end = person.sessions.pop(device).end
                assert isinstance(end, MemoryConnection)
                end.vanish()
        else:
            session = await self._session(person, device)
            await self._send(session, person, fixture, action, whose)

    async def _send(self, session: WireDevice, person: Person, fixture: DeviceFixture, action: str, whose: str) -> None:
        if action == "publish":
            await session.start_publish(fixture.event(person.stream(whose), self._payload(person)))
        elif action == "read":
            await session.send(Read(rid=7, stream=person.stream(whose), after=0, limit=100))
        elif action == "present":
            await session.send(Presence(self._payload(person)))
        else:
            user = person.number if whose == "ours" else person.other
            await session.send(Signal(8, fixtures(user)["laptop"].device_id, self._payload(person)))

    def _payload(self, person: Person) -> bytes:
        return f"the secret of {user_name(person.number)}".encode()

    async def _session(self, person: Person, device: str) -> WireDevice:
        if device not in person.sessions:
            session = await self.here.parts.connect(self.nursery, person.devices[device])
            person.seen.append((device, ("ready", session.ready.session_no)))
            person.sessions[device] = session
        return person.sessions[device]

    async def _get(self, person: Person, device: str, action: str, whose: str) -> None:
        user = person.number if whose == "ours" else person.other
        stream = person.stream(whose)
        path = {
            "get_events": f"/events?stream={stream}&after=0",
            "get_stream": f"/streams/{stream}",
            "get_device": f"/devices/{UUID(bytes=fixtures(user)['laptop'].device_id)}",
            "get_snapshots": f"/snapshots?stream={stream}",
        }.get(action, f"/{action.removeprefix('get_')}")
        headers = await self._token(person, device)
        self._answered(person, device, await self.here.http.get(f"/api/v1{path}", headers=headers))

    async def _post(self, person: Person, device: str, event: SignedEvent) -> None:
        headers = await self._token(person, device) | {"content-type": "application/msgpack"}
        answer = await self.here.http.post("/api/v1/events", content=wire_events(event), headers=headers)
        self._answered(person, device, answer)

    async def _token(self, person: Person, device: str) -> dict[str, str]:
        return await self.here.token(person.devices[device], f"{person.number} {device}")

    def _answered(self, person: Person, device: str, answer: Any) -> None:
        headers = sorted((name, value) for name, value in answer.headers.items() if name not in RANDOM_HEADERS)
        person.seen.append((device, (answer.status_code, headers, RANDOM_FIELDS.sub(b"", answer.content))))

    async def _take(self, person: Person) -> None:
        """What the connected devices were sent since the last step."""
        for name, session in list(person.sessions.items()):
            end = session.end
            assert isinstance(end, MemoryConnection)
            try:
                while (data := end.arrived()) is not None:
                    person.seen.append((name, session.session.receive(data)))
            except Closed as closed:
                person.seen.append((name, closed.reason))
                del person.sessions[name]


async def live(script: Sequence[Step], present: Sequence[int]) -> dict[int, list[tuple[str, object]]]:
    """What each of those users is shown on a server that only they use."""
    async with site(parts=Parts()) as here, here.parts.running() as nursery:
        people: dict[int, Person] = {}
        for number in present:
            first, *others = people.setdefault(number, Person(number, fixtures(number))).devices.values()
            await here.parts.log.create_account(first.genesis(), now_ms=here.parts.clock.now_ms())
            for other in others:
                await here.parts.enrol(first, other)
        world = World(here, nursery, people)
        for step in script:
            await world.perform(step)
        return {number: person.seen for number, person in people.items()}


def run(script: Sequence[Step], present: Sequence[int]) -> dict[int, list[tuple[str, object]]]:
    """The same, with time that passes only where nothing else can happen."""
    autojump_clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(live, script, present, clock=autojump_clock)


def marks(user: int) -> list[bytes]:
    """What would give a user away, in every form in which an answer could hold it."""
    entries = [device.entry for device in fixtures(user).values()]
    raw = [each for entry in entries for each in (entry.device_id, entry.device_key, entry.box_key)]
    raw += [UserFixture(user_name(user)).user_key, user_name(user).encode()]
    return [
        *raw,
        *(each.hex().encode() for each in raw),
        *(base64.urlsafe_b64encode(each).rstrip(b"=") for each in raw),
        *(str(UUID(bytes=entry.device_id)).encode() for entry in entries),
    ]


@pytest.mark.slow
@settings(max_examples=12)
@given(steps)
def test_a_user_is_shown_the_same_whether_others_are_there_or_not(script: list[Step]) -> None:
    """Over both surfaces, whatever they all do, and whatever names of each other they use."""
    together = run(script, range(USERS))

    for user in range(USERS):
        assert together[user] == run(script, [user])[user]
        shown = msgspec.msgpack.encode(together[user])
        for other in set(range(USERS)) - {user}:
            assert not [mark for mark in marks(other) if mark in shown]


def test_a_leak_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has eyes: a server that tells of everybody's devices, or counts everybody's streams, fails it."""
    script: list[Step] = [(1, "phone", "publish", "ours"), (1, "phone", "present", "ours")]
    looks: list[Step] = [(0, "phone", action, "ours") for action in ("get_presence", "get_streams", "get_events")]
    sound = run(script + looks, [0, 1])
    assert sound[0] == run(script + looks, [0])[0]
    assert [message for _, message in sound[1]][1:]

    present, streams = Presences.present, MemoryReader.streams
    monkeypatch.setattr(
        Presences, "present", lambda self, _: [each for key in list(self._users) for each in present(self, key)]
    )
    assert run(script + looks, [0, 1])[0] != sound[0]
    monkeypatch.setattr(Presences, "present", present)
    monkeypatch.setattr(MemoryReader, "streams", lambda self, _: streams(self, UserPk(2)))
    assert run(script + looks, [0, 1])[0] != sound[0]
