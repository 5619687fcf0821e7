"""What the operating system lets this process have: file descriptors, one for each socket and database connection."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keepstep.telemetry import Log

SPARE_DESCRIPTORS: Final = 64
"""For the log, key files, listening sockets, the embedded database's pipes, and what libraries open."""


def claim_descriptors(needed: int, logger: Log) -> int:
    """Raise the soft limit of open files to the hard one; log a warning where that is not enough.

    Args:
        needed: connections of every kind that the settings allow at the same time.
        logger: where the warning goes.

    Returns:
        The limit that is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # some systems do not grant the limit that they name
            pass
    if soft != resource.RLIM_INFINITY and soft < needed + SPARE_DESCRIPTORS:
        logger.warning(
            "file_descriptors_short",
            count=soft,
            needed=needed + SPARE_DESCRIPTORS,
            detail="connections beyond this limit fail: raise it (ulimit -n, LimitNOFILE=), or lower the settings",
        )
    return soft
