"""The log and the accounts in memory: what tests and simulations run on, and what PostgreSQL is compared with.

One ``MemoryDatabase`` is one database; several logs over it are several nodes. Nothing here survives the process.
"""

from keepstep.memory.accounts import MemoryAccounts
from keepstep.memory.admin import MemoryAdministration
from keepstep.memory.database import MemoryDatabase
from keepstep.memory.housekeeping import MemoryHousekeeping
from keepstep.memory.links import MemoryLinks
from keepstep.memory.log import MemoryLog
from keepstep.memory.maintenance import MemoryMaintenance
from keepstep.memory.restores import MemoryRestores
from keepstep.memory.retention import MemoryRetention
from keepstep.memory.tokens import MemoryTokens

__all__ = [
    "MemoryAccounts",
    "MemoryAdministration",
    "MemoryDatabase",
    "MemoryHousekeeping",
    "MemoryLinks",
    "MemoryLog",
    "MemoryMaintenance",
    "MemoryRestores",
    "MemoryRetention",
    "MemoryTokens",
]
