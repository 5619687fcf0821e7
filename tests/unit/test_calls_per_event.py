"""How many Python functions it takes from a publish to what is written to every device: counted, not timed.

The count is the same on every machine and for every order in which tasks run. A change that makes it more has to say
why here; one that makes it less lowers the bound, so that what was won stays.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import trio
import trio.testing

from keepstep.memory.log import MemoryBackend
from keepstep.memory.store import MemoryStore
from keepstep.protocol.messages import CaughtUp, Events, Publish
from tests.support.events import wire_events
from tests.support.flying import CommittingServer, Flying
from tests.support.parts import Parts, limited

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from keepstep._keepstep import Ingested
    from keepstep.eventlog.store import KnownBatch

PUBLISHES: Final = 20
CALLS_MAX: Final = 68
"""Calls of one publish, its answer, and its page for the author and two other devices, however many events it has.

Each publish is a batch of its own here, so those of a batch are in it: about 20.
Seen with Python 3.11; later ones call no function for a comprehension.
"""


def is_counted(frame: FrameType) -> bool:
    """Whether a function is the server's own; the log in memory stands for PostgreSQL, which has its own measures."""
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith("keepstep.") and not module.startswith("keepstep.memory.")


@pytest.fixture
def _committed_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log in memory commits what it remembers as PostgreSQL's does, while everything else waits."""
    server = CommittingServer()
    flying = Flying(server)

    async def append_known(backend: MemoryBackend, batch: KnownBatch) -> Ingested | None:
        committed = flying.commit(batch)
        if committed is not None:
            with MemoryStore(backend._database, lambda _: None).begin() as transaction:
                transaction.write(committed, created=())
                transaction.commit()
        return committed

    monkeypatch.setattr(MemoryBackend, "append_known", append_known)
    yield
    server.close()


@pytest.mark.usefixtures("_committed_at_once")
@pytest.mark.parametrize("events", [1, 10])
async def test_a_publish_takes_few_calls_and_none_an_event(events: int) -> None:
    """From ``received`` of its record to ``write`` of the answer and of its events to all who follow."""
    parts = Parts(limits=limited(page_events_max=256, inflight_publishes_max=8))
    devices = await parts.register("alice", "phone", "laptop", "tablet")
    async with parts.running() as nursery:
        sessions = [await parts.connect(nursery, device) for device in devices]
        for session in sessions:
            await session.subscribe("notes")
        await sessions[0].publish(devices[0].event("notes"))
        for session in sessions:
            await session.expect(Events)
            await session.expect(CaughtUp)
        messages = [
            Publish(number, msgspec.Raw(wire_events(*devices[0].events("notes", events))))
            for number in range(PUBLISHES)
        ]
        records = [sessions[0].session.send([message], now_s=0)[0] for message in messages]
        counts: Counter[str] = Counter()

        def count(frame: FrameType, event: str, _argument: Any) -> None:
            if event == "call" and is_counted(frame):
                counts[f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"] += 1

        for record in records:
            sys.setprofile(count)
            try:
                await sessions[0].end.send_message(record)
                await trio.testing.wait_all_tasks_blocked()
            finally:
                sys.setprofile(None)
        assert parts.metrics.relayed_events.total == len(devices) * (1 + PUBLISHES * events)
    calls = counts.total() / PUBLISHES
    most = ", ".join(f"{name} {number / PUBLISHES:g}" for name, number in counts.most_common(60))
    assert calls <= CALLS_MAX, f"{calls:g} calls a publish: {most}"
