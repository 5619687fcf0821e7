"""How many Python functions it takes to connect and leave: counted, not timed.

From the accepted socket over upgrade, handshake and session to the closed socket, over the log in memory. A change that
makes it more has to say why here; one that makes it less lowers the bound, so that what was won stays.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import trio

from tests.support.blocking import BlockingDevice, serving_sockets
from tests.support.parts import Parts
from tests.unit.test_calls_per_event import is_counted

if TYPE_CHECKING:
    from types import FrameType

CONNECTIONS: Final = 20
CALLS_MAX: Final = 265
"""Calls of one connection, with those of tasks that go on.

Seen with Python 3.11 on Linux; later ones call no function for a comprehension.
"""


async def test_a_connection_takes_few_calls() -> None:
    """Each of them is a step of one handshake, one session, or one turn of a task for all."""
    parts = Parts()
    (device,) = await parts.register("alice")
    counts: Counter[str] = Counter()

    def count(called: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and is_counted(called):
            counts[f"{called.f_globals['__name__']}.{called.f_code.co_qualname}"] += 1

    async with serving_sockets(parts) as port:
        blocking = BlockingDevice(device, port)
        await trio.to_thread.run_sync(blocking.come_and_go, 0)
        sys.setprofile(count)
        try:
            for number in range(1, CONNECTIONS + 1):
                await trio.to_thread.run_sync(blocking.come_and_go, number)
        finally:
            sys.setprofile(None)
        assert parts.metrics.registry.get_sample_value("keepstep_session_ends_total", {"reason": "bye"})
    calls = counts.total() / CONNECTIONS
    most = ", ".join(f"{name} {number / CONNECTIONS:g}" for name, number in counts.most_common(150))
    assert calls <= CALLS_MAX, f"{calls:g} calls a connection: {most}"
