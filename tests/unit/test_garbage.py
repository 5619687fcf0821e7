"""How often Python looks for cycles of garbage while the server runs."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

from keepstep.garbage import ALL_AT_GROWTH, COUNTED_AFTER, NEW_OBJECTS, rare_collections

if TYPE_CHECKING:
    from collections.abc import Callable


class Ring:
    """An object in a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


def never(_call: Callable[[], None]) -> None:
    """There are not twice as many objects in these tests."""
    raise AssertionError


def test_what_was_there_is_left_out_and_everything_is_as_before_afterwards() -> None:
    """Modules and settings live as long as the process."""
    before = gc.get_threshold()
    with rare_collections(never):
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == NEW_OBJECTS
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_cycles_made_meanwhile_are_still_found() -> None:
    """After so many objects more."""
    with rare_collections(never):
        ring = weakref.ref(Ring())
        kept = [[] for _ in range(NEW_OBJECTS + 1)]  # type: list[list[object]]
        assert ring() is None
        assert len(kept) > NEW_OBJECTS


def test_what_was_looked_at_is_left_out() -> None:
    """No look takes longer the more there is."""
    with rare_collections(never):
        left_out = gc.get_freeze_count()
        kept = [[] for _ in range(2 * NEW_OBJECTS)]  # type: list[list[object]]
        assert gc.get_freeze_count() - left_out >= NEW_OBJECTS
        assert gc.get_objects(generation=1) == gc.get_objects(generation=2) == []
        assert len(kept) > NEW_OBJECTS


def test_everything_is_looked_at_again_once_there_is_twice_as_much() -> None:
    """A cycle that was alive at the first look, and nobody holds any more."""
    soon: list[Callable[[], None]] = []
    with rare_collections(soon.append):
        held = Ring()
        ring = weakref.ref(held)
        gc.collect()
        del held
        kept = [[] for _ in range(ALL_AT_GROWTH * gc.get_freeze_count())]  # type: list[list[object]]
        for _ in range(COUNTED_AFTER):
            gc.collect()
        assert ring() is not None
        (look_at_all,) = soon
        look_at_all()
        assert ring() is None
        assert gc.get_freeze_count() > len(kept)
        for _ in range(COUNTED_AFTER):
            gc.collect()
        assert soon == [look_at_all]


def test_what_was_to_be_done_soon_is_not_when_the_server_has_ended() -> None:
    """Its objects are not left out any more."""
    soon: list[Callable[[], None]] = []
    with rare_collections(soon.append):
        kept = [[] for _ in range(ALL_AT_GROWTH * gc.get_freeze_count())]  # type: list[list[object]]
        for _ in range(COUNTED_AFTER):
            gc.collect()
    soon[0]()
    assert gc.get_freeze_count() == 0
    assert kept
