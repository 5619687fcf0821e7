"""Where the objects of the archive are: a directory, or a bucket of an S3-compatible store."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
import trio
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from keepstep.archive.segment import BYTES_MAX, MANIFEST_BYTES_MAX
from keepstep.errors import ArchiveError, ArchiveUnavailable, Unavailable
from keepstep.postgres.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keepstep.interfaces import Clock, Threads

T = TypeVar("T")

THREADS: Final = 4
"""Calls at a time; who reads waits for one, and no thread of anything else is taken."""
RETRIES_MAX: Final = 3
BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 2.0
"""Before a retry, doubled each time, with jitter."""
AWAY_S: Final = 10.0
"""How long a store that did not answer is left alone."""
OBJECT_BYTES_MAX: Final = BYTES_MAX + MANIFEST_BYTES_MAX + 4096
"""Largest object that is read."""
PROBE_FOLDER: Final = "check/"
"""Where ``probe`` writes; no segment is there."""
PROBE_BYTES: Final = 16
DELETE_PAGE: Final = 500
"""Objects listed and removed at a time."""


@dataclass(frozen=True, slots=True)
class S3Access:
    """How an S3-compatible store is reached; ``None`` where the machine's surroundings say it.

    Attributes:
        endpoint: URL of a store that is not Amazon's.
        region: its region.
        access_key_id: of the credentials.
        secret_access_key: of the credentials.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None


class ArchiveStore:
    """Objects by name. Every method raises ArchiveUnavailable while the store does not answer.

    Calls run in threads of their own; a cancellation waits for the end of one, which its timeout bounds.

    Args:
        objects: the store behind it.
        directory: where the objects are files, to make them durable; ``None`` in a bucket.
        threads: the hop to worker threads.
        clock: for the breaker.
    """

    def __init__(
        self, objects: LocalStore | S3Store, *, directory: Path | None, threads: Threads, clock: Clock
    ) -> None:
        self._objects = objects
        self._directory = directory
        self._threads = threads
        self._limiter = trio.CapacityLimiter(THREADS)
        self._breaker = Breaker(clock, what="the archive", open_s=AWAY_S)

    async def put(self, name: str, data: bytes) -> None:
        """Store an object, durably; one of that name is replaced."""

        def put() -> None:
            obstore.put(self._objects, name, data)
            if self._directory is not None:
                _sync(self._directory, name)

        await self._run(put)

    async def get(self, name: str) -> bytes:
        """An object. Raises ArchiveError ``segment_missing``, or ``segment_damaged`` for what is far too large."""

        def get() -> bytes | None:
            try:
                found = obstore.get(self._objects, name)
            except FileNotFoundError:
                return None
            return b"" if found.meta["size"] > OBJECT_BYTES_MAX else bytes(found.bytes())

        data = await self._run(get)
        if data is None:
            raise ArchiveError("segment_missing", f"the object {name} is not there")
        if not data:
            raise ArchiveError("segment_damaged", f"the object {name} has not the size of a segment")
        return data

    async def written_anew(self, name: str) -> list[str]:
        """Other objects that hold the segment of that name: there is one where a payload was erased."""
        folder, _, file = name.rpartition("/")
        stem = f"{folder}/{file.rpartition('-')[0]}-"

        def find() -> list[str]:
            names = (each["path"] for page in self._pages(f"{folder}/") for each in page)
            return [each for each in names if each.startswith(stem) and each != name]

        return await self._run(find)

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there is none."""
        await self._run(lambda: self._delete([name]))

    async def probe(self) -> None:
        """Write, list, read and remove an object, as archiving does; nothing of it stays.

        Raises:
            ArchiveError: what is read or listed is not what was written.
        """
        name = f"{PROBE_FOLDER}{secrets.token_hex(PROBE_BYTES)}"
        await self.put(name, name.encode())
        try:
            read = await self.get(name)

            def list_names() -> list[str]:
                return [each["path"] for page in self._pages(PROBE_FOLDER) for each in page]

            if read != name.encode() or name not in await self._run(list_names):
                raise ArchiveError("segment_damaged", "the archive does not give back what was stored in it")
        finally:
            with trio.CancelScope(shield=True):
                await self.delete(name)

    async def delete_below(self, folder: str) -> int:
        """Remove all objects whose names begin with ``folder``, which ends in a slash; how many."""
        assert folder.endswith("/")

        def delete() -> int:
            names = [each["path"] for page in self._pages(folder) for each in page]
            for first in range(0, len(names), DELETE_PAGE):
                self._delete(names[first : first + DELETE_PAGE])
            return len(names)

        return await self._run(delete)

    def _pages(self, folder: str) -> Iterator[list[obstore.ObjectMeta]]:
        yield from obstore.list(self._objects, prefix=folder, chunk_size=DELETE_PAGE)

    def _delete(self, names: list[str]) -> None:
        for name in names:
            try:
                obstore.delete(self._objects, name)
            except FileNotFoundError:
                continue

    async def _run(self, call: Callable[[], T]) -> T:
        """Call the store in a thread, if it answers at all."""
        try:
            self._breaker.enter()
        except Unavailable as exc:
            raise ArchiveUnavailable("the archive does not answer", retry_after_ms=int(AWAY_S * 1000)) from exc
        failed: bool | None = None
        try:
            result = await self._threads.run(call, limiter=self._limiter)
            failed = False
        except (BaseError, OSError) as exc:
            failed = True
            raise ArchiveUnavailable(
                f"the archive does not answer: {type(exc).__name__}", retry_after_ms=int(AWAY_S * 1000)
            ) from exc
        finally:
            self._breaker.leave(failed=failed)
        return result


def open_store(url: str, access: S3Access, *, timeout_s: float, threads: Threads, clock: Clock) -> ArchiveStore:
    """The store of the settings. Asks nothing of it yet.

    Args:
        url: a directory (an absolute path or ``file://``), or ``s3://bucket/prefix``.
        access: to S3.
        timeout_s: for one request; with its retries at most ``timeout_s`` times ``1 + RETRIES_MAX`` and pauses.
        threads: the hop to worker threads.
        clock: for the breaker.
    """
    from pathlib import Path

    parts = urlsplit(url)
    if parts.scheme != "s3":
        directory = Path(unquote(parts.path) if parts.scheme == "file" else url)
        objects: LocalStore | S3Store = LocalStore(directory, mkdir=True)
        return ArchiveStore(objects, directory=directory, threads=threads, clock=clock)
    given = {
        "endpoint": access.endpoint,
        "region": access.region,
        "access_key_id": access.access_key_id,
        "secret_access_key": access.secret_access_key,
    }
    objects = S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        client_options={
            "timeout": timedelta(seconds=timeout_s),
            "connect_timeout": timedelta(seconds=min(timeout_s, 5.0)),
            "allow_http": (access.endpoint or "").startswith("http://"),
        },
        retry_config={
            "max_retries": RETRIES_MAX,
            "retry_timeout": timedelta(seconds=timeout_s),
            "backoff": {
                "init_backoff": timedelta(seconds=BACKOFF_S),
                "max_backoff": timedelta(seconds=BACKOFF_MAX_S),
                "base": 2,
            },
        },
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    return ArchiveStore(objects, directory=None, threads=threads, clock=clock)


def _sync(directory: Path, name: str) -> None:
    """Have a file and the names that lead to it on the disk: pruning follows."""
    path = directory / name
    for each in (path, *path.parents):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == directory:
            return
