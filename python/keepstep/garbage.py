"""How often Python looks for cycles of garbage while the server runs, and at what.

What a message makes is freed by its reference counts, and so is a session that has ended. The collector finds nothing
of it, but is called for every 700 objects that are alive more than before, and a burst of submissions is many; each
time that all generations are due, it walks over the whole heap, the modules and all sessions too, in the thread that
serves everybody.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW_OBJECTS: Final = 20_000
"""Objects alive more than before at which the new ones are looked at: some milliseconds' work."""
YOUNG_COLLECTIONS: Final = 20
"""Such looks until Python takes the next generation for due, and of that one until all are; both are empty."""
COUNTED_AFTER: Final = 100
"""Looks until it is counted how many objects there are."""
ALL_AT_GROWTH: Final = 2
"""All objects are looked at again when so many times as many are alive as when that was done last."""


@contextmanager
def rare_collections(soon: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """For a process that serves: leave out what is there by now, and look once at what is made from here on.

    What is alive when it was looked at is left out from then on, so that no look takes longer the more sessions there
    are. Garbage in cycles (exceptions, tasks that were cancelled) still goes, at the next look; what came to be garbage
    only after it was looked at goes when the number of objects has grown ``ALL_AT_GROWTH`` times.

    Args:
        soon: has something called soon, but not at once; from any thread and while it is called itself.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    left_out, looks = gc.get_freeze_count(), 0

    def follow(phase: Literal["start", "stop"], _info: dict[str, int]) -> None:
        nonlocal looks
        if phase == "stop":
            gc.freeze()
            looks += 1
            if looks % COUNTED_AFTER == 0 and gc.get_freeze_count() > ALL_AT_GROWTH * left_out:
                soon(look_at_all)

    def look_at_all() -> None:
        nonlocal left_out
        if follow in gc.callbacks:
            gc.unfreeze()
            gc.collect()
            left_out = gc.get_freeze_count()

    gc.callbacks.append(follow)
    gc.set_threshold(NEW_OBJECTS, YOUNG_COLLECTIONS, YOUNG_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(follow)
        gc.unfreeze()
