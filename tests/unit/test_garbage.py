"""How often Python looks for cycles of garbage while the server runs."""

from __future__ import annotations

import gc
import weakref

from keepstep.garbage import ALL_AT_GROWTH, NEW_OBJECTS, rare_collections


class Ring:
    """An object in a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_is_left_out_and_everything_is_as_before_afterwards() -> None:
    """Modules and settings live as long as the process."""
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == NEW_OBJECTS
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_cycles_made_meanwhile_are_still_found() -> None:
    """After so many objects more."""
    with rare_collections():
        ring = weakref.ref(Ring())
        kept = [[] for _ in range(NEW_OBJECTS + 1)]  # type: list[list[object]]
        assert ring() is None
        assert len(kept) > NEW_OBJECTS


def test_what_was_looked_at_is_left_out() -> None:
    """No look takes longer the more there is."""
    with rare_collections():
        left_out = gc.get_freeze_count()
        kept = [[] for _ in range(2 * NEW_OBJECTS)]  # type: list[list[object]]
        assert gc.get_freeze_count() - left_out >= NEW_OBJECTS
        assert gc.get_objects(generation=1) == gc.get_objects(generation=2) == []
        assert len(kept) > NEW_OBJECTS


def test_everything_is_looked_at_again_once_there_is_twice_as_much() -> None:
    """A cycle that was alive at the first look, and nobody holds any more."""
    with rare_collections():
        held = Ring()
        ring = weakref.ref(held)
        gc.collect(0)
        del held
        gc.collect()
        assert ring() is not None
        kept = [[] for _ in range(ALL_AT_GROWTH * gc.get_freeze_count())]  # type: list[list[object]]
        gc.collect()
        assert ring() is None
        assert kept
        assert gc.get_freeze_count() > len(kept)
