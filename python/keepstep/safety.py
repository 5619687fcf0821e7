"""Up to when everything received is in a verified backup, which devices are told (protocol.md section 4).

What was received by then no device has to keep for the server. ``received_at`` never steps back within a stream, so one
moment says for every stream which events these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepstep.interfaces import Maintenance


class Safety:
    """What this node knows of verified backups.

    Args:
        maintenance: where a verified backup was noted.
    """

    def __init__(self, maintenance: Maintenance) -> None:
        self._maintenance = maintenance
        self._at_ms: int | None = None

    def at_ms(self) -> int | None:
        """Unix milliseconds as last read; ``None`` where no backup of this database was ever verified."""
        return self._at_ms

    async def read(self) -> None:
        """Ask the database. Raises Unavailable: what was known stays. Cancel-safe."""
        self._at_ms = await self._maintenance.safe_at_ms() or None
