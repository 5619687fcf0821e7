"""What a REST connection has to come through before Hypercorn sees it."""

from __future__ import annotations

from typing import Any

import trio

from keepstep.admission import Admission
from keepstep.entrance import Entrance
from keepstep.rest.serving import RestServer


class GoneStream(trio.abc.AsyncResource):
    """A socket stream whose peer has gone before it could be asked for its name."""

    def __init__(self) -> None:
        self.socket = self
        self.is_closed = False

    def getpeername(self) -> tuple[str, int]:
        """As a socket's."""
        raise OSError

    async def aclose(self) -> None:
        """As a stream's."""
        await trio.lowlevel.checkpoint()
        self.is_closed = True


async def test_a_peer_that_is_gone_already_takes_no_place() -> None:
    """It is closed, and nothing is asked of anybody."""

    async def application(*_arguments: object) -> None:
        raise AssertionError("called")

    admission = Admission(
        connections_max=1,
        unauthenticated_max=1,
        unauthenticated_per_address_max=1,
        on_refused=lambda: None,
    )
    server = RestServer(application, admission=admission, entrance=Entrance(), entrance_timeout_s=10)
    stream: Any = GoneStream()
    nothing: Any = None
    await server._connection(nothing, {}, stream)
    assert stream.is_closed
    assert admission.connections == 0
