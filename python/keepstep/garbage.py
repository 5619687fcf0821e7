"""How often Python looks for cycles of garbage while the server runs, and at what.

What a message makes is freed by its reference counts, and so is a session that has ended. The collector finds nothing
of it, but is called for every 700 objects that are alive more than before, and a burst of submissions is many; each
time that all generations are due, it walks over the whole heap, the modules and all sessions too, in the thread that
serves everybody.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_OBJECTS: Final = 20_000
"""Objects alive more than before at which the new ones are looked at: some milliseconds' work."""
YOUNG_COLLECTIONS: Final = 20
"""Such looks until Python takes the next generation for due, and of that one until all are."""
ALL_AT_GROWTH: Final = 2
"""All objects are looked at again when so many times as many are alive as when that was done last."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """For a process that serves: leave out what is there by now, and look once at what is made from here on.

    What is alive when it was looked at is left out from then on, so that no look takes longer the more sessions there
    are. Garbage in cycles (exceptions, tasks that were cancelled) still goes, at the next look; what came to be garbage
    only after it was looked at goes when the number of objects has grown ``ALL_AT_GROWTH`` times.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    left_out = gc.get_freeze_count()

    def follow(phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        nonlocal left_out
        is_all = info["generation"] == len(before) - 1
        if phase == "start":
            if is_all and gc.get_freeze_count() > ALL_AT_GROWTH * left_out:
                gc.unfreeze()
                left_out = 0
            return
        gc.freeze()
        left_out = left_out or gc.get_freeze_count()

    gc.callbacks.append(follow)
    gc.set_threshold(NEW_OBJECTS, YOUNG_COLLECTIONS, YOUNG_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(follow)
        gc.unfreeze()
