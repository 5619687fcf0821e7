"""The heads this node remembers, so that a batch needs no read before its compare and set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Final

from keepstep._keepstep import RememberedHeads
from keepstep.hits import Hits

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.eventlog.store import StreamKey

LANE_BATCHES: Final = 16
"""Batches for which a stream that another node wrote keeps to the locking lane: who writes once writes again."""
LANE_STREAMS_MAX: Final = 4096
"""Streams in the lane at a time; the one that came first leaves it."""


class HeadCache:
    """Heads of the streams used last, and which streams other nodes are writing too. For use in any thread.

    A remembered head may be stale: it is only ever an offer to the store's compare and set, or confirmed by a read.

    Args:
        streams_max: how many heads; the one used longest ago goes first.

    Attributes:
        memory: the heads, as the extension decides upon them.
    """

    def __init__(self, *, streams_max: int) -> None:
        self.memory = RememberedHeads(streams_max=streams_max)
        self._lane: OrderedDict[StreamKey, int] = OrderedDict()
        self._lock = Lock()

    @property
    def hits(self) -> Hits:
        """Heads that batches asked for."""
        return Hits(*self.memory.hits)

    def get(self, keys: Collection[StreamKey], *, generation: int) -> dict[StreamKey, StreamHead]:
        """The heads remembered of ``keys``; none from before the store's ``generation``."""
        return self.memory.get(list(keys), generation=generation)

    def put(self, heads: Iterable[StreamHead], *, generation: int) -> None:
        """Remember committed heads; not those of a generation that is over, nor of streams in the lane.

        So a batch finds out that it goes to the lane by what is not remembered, whatever else is in there.
        """
        with self._lock:
            if self._lane:
                heads = [head for head in heads if (head.user_pk, head.name) not in self._lane]
            self.memory.put(list(heads), generation=generation)

    def drop(self, keys: Iterable[StreamKey]) -> None:
        """Forget heads that are in doubt."""
        self.memory.drop(list(keys))

    def contend(self, keys: Iterable[StreamKey]) -> None:
        """Another node wrote these streams: forget their heads, and keep them in the lane for a while."""
        keys = list(keys)
        with self._lock:
            self.memory.drop(keys)
            for key in keys:
                self._lane[key] = LANE_BATCHES
                self._lane.move_to_end(key)
            while len(self._lane) > LANE_STREAMS_MAX:
                self._lane.popitem(last=False)

    def takes_the_lane(self, keys: Collection[StreamKey]) -> bool:
        """Whether a batch of these streams goes to the locking lane; counts as one of their batches in it."""
        with self._lock:
            if not self._lane:
                return False
            contended = [key for key in keys if key in self._lane]
            for key in contended:
                self._lane[key] -= 1
                if self._lane[key] == 0:
                    del self._lane[key]
        return bool(contended)
