"""A session is told up to when everything is in a verified backup of the server."""

from __future__ import annotations

from keepstep.protocol.messages import CaughtUp
from tests.support.events import NOW_MS
from tests.support.following import Following


async def test_a_device_is_told_up_to_when_everything_is_in_a_verified_backup() -> None:
    """With the heads that it is sent; where a backup was verified meanwhile, with the next minute's of ``$devices``."""
    bench = await Following.start()
    await bench.publish("notes")
    bench.subscribe({"$devices": "start", "notes": "start"})
    told = [each.safe_at_ms for each in await bench.pull_all() if isinstance(each, CaughtUp)]
    assert told == [None, None]
    await bench.head_tick()
    assert all(each.stream != "$devices" or each.safe_at_ms is None for each in await bench.pull_all())
    bench.parts.database.safe_at_ms = NOW_MS
    await bench.parts.safety.read()
    await bench.head_tick()
    (head,) = await bench.pull_all()
    assert (head.stream, head.safe_at_ms) == ("$devices", NOW_MS)
    await bench.head_tick()
    assert await bench.pull_all() == []
