"""What a device keeps until the server has it in a verified backup, so that a restore loses nothing (protocol.md 4).

Of streams that it reads, its log has every event anyway. What it only writes is kept here when the server has
acknowledged it, until it is safe, at most ``KEPT_DAYS`` and ``KEPT_BYTES_MAX``. What goes before that, here or from the
log, is counted: after a restore this device could not bring it back. Calls block on the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.client.locallog import DAY_MS, KEPT_BYTES_MAX, KEPT_DAYS, PRUNE_EVENTS, ROW_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client.store import Store

ASKED_STREAMS_MAX: Final = 64
"""Streams of which a device asks in one session what a restore left of its events; the others have their turn later."""
_EVER_MS: Final = 2**62
_SIZE: Final = f"length(header) + length(payload) + {ROW_OVERHEAD_BYTES}"


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of this device that the server has acknowledged, as it was signed."""

    n: int
    header: bytes
    sig: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fallen:
    """Events that a device had to let go before they were in a verified backup.

    Attributes:
        stream: theirs.
        events: how many.
        last_at_ms: when the last of them went, unix milliseconds by this device's clock.
    """

    stream: str
    events: int
    last_at_ms: int


@dataclass(frozen=True, slots=True)
class Safety:
    """What a restore of the server could cost this device, as far as it knows.

    Attributes:
        safe_at_ms: what the server received by then is in a verified backup of it, unix milliseconds; ``None`` where it
            has said nothing of one.
        unsafe: by stream, how many events this device holds that were received later.
        fallen: what it had to let go before it was safe.
    """

    safe_at_ms: int | None
    unsafe: dict[str, int]
    fallen: Sequence[Fallen]


class Safekeeping:
    """What one device wrote and does not read.

    Args:
        store: the device's file.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def learn(self, at_ms: int | None, *, now_ms: int) -> None:
        """The server said up to when everything is safe: that need not be kept. Part of a transaction.

        Args:
            at_ms: as ``messages.Head`` has it; it goes back with the server, when that is restored.
            now_ms: by this device's clock.
        """
        if at_ms != self._store.safe_at_ms():
            self._store.execute("UPDATE device SET safe_at_ms = ?", at_ms)
        self._drop_old(now_ms)

    def keep(self, stream: str, up_to_n: int, *, received_at_ms: int, now_ms: int) -> None:
        """Keep what leaves the outbox of a stream, up to an author number. Part of a transaction."""
        added = self._store.row(
            f"SELECT coalesce(sum({_SIZE}), 0) FROM outbox WHERE stream = ? AND n <= ?",  # noqa: S608 - of this file
            stream, up_to_n,
        )[0]  # fmt: skip
        if not added:
            return
        self._store.execute(
            "INSERT OR REPLACE INTO kept SELECT stream, n, ?, header, sig, payload FROM outbox"
            " WHERE stream = ? AND n <= ?",
            received_at_ms, stream, up_to_n,
        )  # fmt: skip
        self._store.execute("UPDATE device SET kept_bytes = kept_bytes + ?", added)
        self._drop_old(now_ms)
        while self._bytes() > KEPT_BYTES_MAX and self._drop(_EVER_MS, now_ms=now_ms):
            pass

    def forget(self, stream: str, up_to_n: int) -> None:
        """The log has these, or the server took them for lost: they are kept here no more. Part of a transaction."""
        self._delete("stream = ? AND n <= ?", stream, up_to_n)

    def take_after(self, stream: str, n: int) -> list[KeptEvent]:
        """What is kept above an author number, in order, and is kept no more. Part of a transaction."""
        rows = self._store.rows(
            "SELECT n, header, sig, payload FROM kept WHERE stream = ? AND n > ? ORDER BY n", stream, n
        )
        self._delete("stream = ? AND n > ?", stream, n)
        return [KeptEvent(*row) for row in rows]

    def unasked(self) -> list[str]:
        """Streams with events kept of which it is not known what the latest restore left: the first of them."""
        return [
            str(stream)
            for (stream,) in self._store.rows(
                "SELECT stream FROM own WHERE epoch < (SELECT epoch FROM device)"
                " AND EXISTS (SELECT 1 FROM kept WHERE kept.stream = own.stream) LIMIT ?",
                ASKED_STREAMS_MAX,
            )
        ]

    def safety(self) -> Safety:
        """What is known, and what has fallen."""
        at_ms = self._store.safe_at_ms()
        unsafe: dict[str, int] = {}
        for table in ("events", "kept"):
            for stream, count in self._store.rows(
                f"SELECT stream, count(*) FROM {table} WHERE received_at_ms > ? GROUP BY stream",  # noqa: S608 - of this file
                at_ms or 0,
            ):
                unsafe[stream] = unsafe.get(stream, 0) + count
        return Safety(at_ms, unsafe, self.fallen())

    def fallen(self) -> list[Fallen]:
        """What this device had to let go before it was safe, by stream."""
        rows = self._store.rows("SELECT stream, events, last_at_ms FROM fallen ORDER BY stream")
        return [Fallen(*row) for row in rows]

    def _bytes(self) -> int:
        return int(self._store.row("SELECT kept_bytes FROM device")[0])

    def _drop_old(self, now_ms: int) -> None:
        """Let go of what is safe, and of what is older than anything may be."""
        self._drop(max(self._store.safe_at_ms() or 0, now_ms - KEPT_DAYS * DAY_MS), now_ms=now_ms)

    def _drop(self, up_to_ms: int, *, now_ms: int) -> bool:
        """Remove the oldest of those received by then, at most ``PRUNE_EVENTS``, and count what is not safe."""
        rows = self._store.rows(
            f"SELECT stream, n, received_at_ms, {_SIZE} FROM kept WHERE received_at_ms <= ?"  # noqa: S608 - of this file
            " ORDER BY received_at_ms LIMIT ?",
            up_to_ms, PRUNE_EVENTS,
        )  # fmt: skip
        if not rows:
            return False
        self._store.execute_many("DELETE FROM kept WHERE stream = ? AND n = ?", (row[:2] for row in rows))
        self._store.execute("UPDATE device SET kept_bytes = kept_bytes - ?", sum(row[3] for row in rows))
        safe_ms = self._store.safe_at_ms() or 0
        for stream, count in Counter(row[0] for row in rows if row[2] > safe_ms).items():
            self._store.count_fallen(stream, count, now_ms=now_ms)
        return True

    def _delete(self, which: str, *parameters: object) -> None:
        freed = self._store.row(f"SELECT coalesce(sum({_SIZE}), 0) FROM kept WHERE {which}", *parameters)[0]  # noqa: S608 - of this file
        if freed:
            self._store.execute(f"DELETE FROM kept WHERE {which}", *parameters)  # noqa: S608 - of this file
            self._store.execute("UPDATE device SET kept_bytes = kept_bytes - ?", freed)
