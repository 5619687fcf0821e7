"""One user whose phone is connected to the parts of a server."""

from __future__ import annotations

from typing import Any

import trio

from tests.support.parts import Parts, limited
from tests.support.wire import MemoryConnection, WireDevice


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
