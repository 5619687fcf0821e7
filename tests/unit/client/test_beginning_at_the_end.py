"""Where a device begins that has read nothing of a stream, and knows from its enroller that there is something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep.client import VerificationError, open_device
from keepstep.protocol.chain import decode_head
from keepstep.protocol.messages import Resumed
from tests.unit.client.test_reading import STREAM, publish, take

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msgspec import Struct
    from trio.testing import MockClock

    from tests.support.device_server import DeviceServer


async def test_a_new_device_reads_from_the_end_of_what_its_enroller_holds(
    autojump_clock: MockClock, server: DeviceServer, tmp_path: Path
) -> None:
    """It was handed the enroller's heads, and has read nothing: it begins after now, and no server ends before them."""
    answered: list[Resumed] = []

    def keep(message: Any) -> Sequence[Struct]:
        if isinstance(message, Resumed) and message.stream == STREAM:
            answered.append(message)
        return [message]

    server.rewrite = keep
    laptop = server.new_user(tmp_path)
    await publish(server, laptop, b"1")
    async with open_device(laptop, environment=server.environment) as device:
        await device.wait_until_caught_up(STREAM)
    await publish(server, laptop, b"2")
    async with open_device(laptop, environment=server.environment) as device:
        await device.wait_until_caught_up(STREAM)
        for name in ("tablet", "watch"):
            await device.enrol(tmp_path / name, name)
    async with open_device(tmp_path / "tablet", environment=server.environment) as tablet:
        subscribed = await tablet.subscribe(STREAM, start="end")
        await tablet.wait_until_caught_up(STREAM)
        await publish(server, laptop, b"3")
        assert await take(subscribed, 1) == [b"3"]
    (early,) = {each.head: each for each in answered if each.head and decode_head(each.head[0]).seq == 1}.values()
    server.rewrite = lambda each: (
        [msgspec.structs.replace(each, head=early.head)]
        if isinstance(each, Resumed) and each.stream == STREAM
        else [each]
    )
    async with open_device(tmp_path / "watch", environment=server.environment) as watch:
        with pytest.raises(VerificationError, match="went back behind a signed head"):
            await anext(await watch.subscribe(STREAM, start="end"))
