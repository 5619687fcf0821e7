"""What a connection leaves behind: nothing that only the garbage collector finds."""

from __future__ import annotations

import gc

import trio

from tests.support.blocking import BlockingDevice, serving_sockets
from tests.support.parts import Parts

CONNECTIONS = 10


async def test_a_connection_that_has_left_leaves_no_cycle() -> None:
    """The collector would go through all sessions to find them, while it does nobody is answered."""
    parts = Parts()
    (device,) = await parts.register("alice")
    async with serving_sockets(parts) as port:
        blocking = BlockingDevice(device, port)
        await trio.to_thread.run_sync(blocking.come_and_go, 0)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(1, CONNECTIONS + 1):
                await trio.to_thread.run_sync(blocking.come_and_go, number)
            gc.collect()
            left = sorted({f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage})
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left == []
