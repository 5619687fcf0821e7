"""How often Python looks for cycles of garbage while the server runs.

What a message makes is freed by its reference counts. The collector finds nothing of it, but is called for every 700
objects that are alive more than before, and a burst of submissions is many; each time that all generations are due, it
walks over the whole heap, the modules too, in the thread that serves everybody.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_OBJECTS: Final = 20_000
"""Objects alive more than before at which the youngest are looked at: one or two milliseconds' work."""
YOUNG_COLLECTIONS: Final = 20
"""Such looks until the next generation is looked at, and of that one until all are."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """For a process that serves: leave out what is there by now, and look seldom at what is made from here on.

    Garbage in cycles (exceptions, tasks that were cancelled) still goes, later: about 20,000 objects of it may wait.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, YOUNG_COLLECTIONS, YOUNG_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
