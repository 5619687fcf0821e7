"""One user whose phone is connected to the parts of a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from keepstep.errors import ERRORS
from tests.support.parts import Parts, limited
from tests.support.wire import Closed, MemoryConnection, WireDevice


async def closes(session: WireDevice) -> str:
    """Receive until the server closes; the reason it gives, whose code must be the table's."""
    with pytest.raises(Closed) as caught:
        await forever(session.receive)
    if caught.value.reason:
        assert caught.value.code == ERRORS[caught.value.reason].close_code
    return caught.value.reason


async def forever(step: Callable[[], Awaitable[Any]]) -> None:
    """Until it raises."""
    while True:
        await step()


class Alice:
    """A server with one user, her phone connected."""

    def __init__(self, **changes: Any) -> None:
        self.parts = Parts(limits=limited(**changes))

    async def connect(self, nursery: trio.Nursery) -> WireDevice:
        """Her phone's session."""
        (self.phone,) = await self.parts.register("alice")
        self.session = await self.parts.connect(nursery, self.phone)
        return self.session

    @property
    def end(self) -> MemoryConnection:
        """The session's connection."""
        assert isinstance(self.session.end, MemoryConnection)
        return self.session.end
