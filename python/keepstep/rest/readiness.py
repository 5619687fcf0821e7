"""Whether the database answers, asked once for everybody who wants to know at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import Unavailable

if TYPE_CHECKING:
    from keepstep.interfaces import Maintenance

READY_TIMEOUT_S: Final = 2.0
"""For the database to answer the readiness check."""


@dataclass(slots=True, eq=False)
class _Round:
    """One question that is under way.

    Attributes:
        is_there: the answer; ``None`` where whoever asked was cancelled.
        answered: set at its end.
    """

    is_there: bool | None = None
    answered: trio.Event = field(default_factory=trio.Event)


class Readiness:
    """Looks whether the database is there; strangers may ask as often as they like and cost one connection at most.

    Args:
        maintenance: what is asked.
    """

    def __init__(self, maintenance: Maintenance) -> None:
        self._maintenance = maintenance
        self._round: _Round | None = None

    async def is_database_there(self) -> bool:
        """Whether it answers now; who asks while somebody does already gets the same answer. Cancel-safe."""
        while True:
            shared = self._round
            if shared is None:
                return await self._ask()
            await shared.answered.wait()
            if shared.is_there is not None:
                return shared.is_there

    async def _ask(self) -> bool:
        self._round = shared = _Round()
        try:
            is_there = False
            with trio.move_on_after(READY_TIMEOUT_S):
                try:
                    await self._maintenance.ping()
                    is_there = True
                except Unavailable:
                    pass
            shared.is_there = is_there
            return is_there
        finally:
            self._round = None
            shared.answered.set()
