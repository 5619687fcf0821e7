"""The disk's own fsync, measured beside a load: what no acknowledgement that waits for one can be faster than."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bench.statistics import percentile

if TYPE_CHECKING:
    from types import TracebackType

INTERVAL_S: Final = 0.05
"""So seldom that what is measured does not notice it."""
PAGE_BYTES: Final = 8192
"""What PostgreSQL writes its log in."""
FILE_PAGES: Final = 256
SAMPLES_MAX: Final = 1_000_000
MILLISECONDS: Final = 1e3


class DiskProbe:
    """Writes a page and syncs it, again and again, on a thread of its own, into a file that it makes and removes.

    The file is filled first and its pages written anew, as PostgreSQL does with its log: a sync then changes no
    metadata.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "disk-probe"
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="disk probe")

    def __enter__(self) -> Self:
        with self._path.open("wb") as file:
            file.write(os.urandom(PAGE_BYTES * FILE_PAGES))
            os.fsync(file.fileno())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink()

    def _work(self) -> None:
        page = os.urandom(PAGE_BYTES)
        with self._path.open("r+b", buffering=0) as file:
            for number in range(SAMPLES_MAX):
                file.seek(number % FILE_PAGES * PAGE_BYTES)
                file.write(page)
                begin_s = time.perf_counter()
                os.fdatasync(file.fileno())
                self._samples.append((time.perf_counter() - begin_s) * MILLISECONDS)
                if self._stop.wait(INTERVAL_S):
                    return

    def latencies_ms(self) -> dict[str, float]:
        """Its distribution so far, at least one sample: milliseconds by percentile."""
        samples = list(self._samples)
        return {name: percentile(samples, share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))} | {
            "count": len(samples)
        }
