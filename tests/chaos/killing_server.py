"""A server that kills itself: ``python tests/chaos/killing_server.py POINT COUNT``, settings from the environment.

It is ``keepstep serve`` with a probe that sends SIGKILL to its own process when POINT is reached for the COUNT-th time;
COUNT 0 never does. It prints where it listens as one line of JSON, ``[rest_url, device_url]``. SIGTERM drains it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from keepstep import config, server, telemetry

if TYPE_CHECKING:
    from collections.abc import Callable


def killing_probe(point: str, count: int) -> Callable[[str], None]:
    """A probe that ends this process at the ``count``-th time that ``point`` is reached."""
    reached = 0

    def probe(name: str) -> None:
        nonlocal reached
        reached += name == point
        if name == point and reached == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return probe


async def main(point: str, count: int) -> None:
    """Serve until SIGTERM or the probe's end of it."""
    settings = config.load()
    telemetry.configure_logging(settings.log_level, settings.log_format)
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            run = partial(server.run, settings, stop=stop, probe=killing_probe(point, count))
            started = await nursery.start(run)
            print(json.dumps([started.rest_url, started.device_url]), flush=True)
            async for _ in signals:
                stop.set()
                break


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
