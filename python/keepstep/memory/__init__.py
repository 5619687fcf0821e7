"""The log and the accounts in memory: what tests and simulations run on, and what PostgreSQL is compared with.

One ``MemoryDatabase`` is one database; several logs over it are several nodes. Nothing here survives the process.
"""

from keepstep.memory.accounts import MemoryAccounts
from keepstep.memory.database import MemoryDatabase
from keepstep.memory.log import MemoryLog
from keepstep.memory.maintenance import MemoryMaintenance

__all__ = ["MemoryAccounts", "MemoryDatabase", "MemoryLog", "MemoryMaintenance"]
