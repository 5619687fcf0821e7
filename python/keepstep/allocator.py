"""How many pools of memory the C library's malloc has for this process.

glibc gives each new thread a pool of its own, up to eight for each core, and memory is freed into the pool that it is
from. Worker threads come and go, what one allocates another frees, and so each pool keeps what it once needed: a server
that is done growing goes on to. What the extension allocates is not in them (docs/adr/0380). The interpreter's lock
leaves little to gain from more pools than this.
"""

from __future__ import annotations

import ctypes
from typing import Final

POOLS_MAX: Final = 2
"""One for the thread of the event loop, one for all others."""
_M_ARENA_MAX: Final = -8
"""malloc.h of glibc."""


def bound_pools() -> bool:
    """For a process that serves, before it has threads; whether the C library knows of such a bound."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, POOLS_MAX) == 1
