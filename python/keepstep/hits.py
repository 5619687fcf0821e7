"""How often a cache had what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Hits:
    """Counts of one cache, written by whoever uses it and read when somebody scrapes.

    Attributes:
        found: what it had.
        missing: what had to be fetched.
    """

    found: int = 0
    missing: int = 0
