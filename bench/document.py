"""One long real document: ``python -m bench.document`` (``make bench-document``).

A paper as it was written, keystroke by keystroke: every edit is one small event of one stream, encrypted and signed by
the client library, fsynced before it is acknowledged. Then a second device of the same user downloads, verifies and
decrypts all of it, and has to end with exactly the text that the writer ended with. ``TRACE=file`` takes another one.
"""

from __future__ import annotations

import collections
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import psycopg

from bench.clients import make_account, run
from bench.machine import cost
from bench.server import REPOSITORY, BenchError, Server, database_url
from examples.collaborative_editing.trace import Patch, Trace, load_trace
from keepstep.client import open_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client import Device
    from keepstep.client.publication import Publication

DEFAULT_TRACE: Final = REPOSITORY / "tests/data/editing-traces/automerge-paper.json.gz"
STREAM: Final = "document"
GROUP_EVENTS: Final = 256
"""Edits handed to the device at once."""
GROUPS_IN_FLIGHT: Final = 8
EDITS_MAX: Final = 10_000_000
MICROSECONDS: Final = 1e6
SIZE: Final = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True)
class Figures:
    """One way of the document.

    Attributes:
        events: edits, one event each.
        events_per_s: of them.
        server_us: processor microseconds of the server for each.
        database_us: the same of PostgreSQL.
        device_us: the same of the device, which is Python and works on the same cores.
        data_bytes_per_event: what the application gave, or was given.
        stored_bytes_per_event: by which the database grew, indexes and all.
    """

    events: int
    events_per_s: float
    server_us: float
    database_us: float
    device_us: float
    data_bytes_per_event: float
    stored_bytes_per_event: float


class Stopwatch:
    """What one way of the document took, from its making on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stored_bytes = self._size()
        self._cost = cost(server.process.pid)
        self._device_s = time.process_time()
        self._begin_s = time.monotonic()

    def figures(self, events: int, data_bytes: int) -> Figures:
        """For so many events, just done."""
        elapsed_s = time.monotonic() - self._begin_s
        used = cost(self._server.process.pid).since(self._cost)
        per_event = MICROSECONDS / events
        device_s = time.process_time() - self._device_s
        return Figures(
            events=events,
            events_per_s=events / elapsed_s,
            server_us=used.server_s * per_event,
            database_us=used.database_s * per_event,
            device_us=device_s * per_event,
            data_bytes_per_event=data_bytes / events,
            stored_bytes_per_event=(self._size() - self._stored_bytes) / events,
        )

    def _size(self) -> int:
        with psycopg.connect(database_url(self._server)) as connection:
            row = connection.execute(SIZE).fetchone()
        assert row is not None
        return int(row[0])


async def measure(server: Server, directory: Path, count: int) -> dict[str, Figures]:
    """Write and read up to ``count`` edits. Raises BenchError where the reader's text is not the writer's."""
    trace = load_trace(Path(os.environ.get("TRACE") or DEFAULT_TRACE))
    edits = edits_of(trace, count)
    author_path, reader_path = await make_account(server, directory), directory / "laptop.device"
    async with open_device(author_path) as author:
        await author.wait_until_ready()
        await author.enrol(reader_path, "laptop")
        written = await write(author, edits, Stopwatch(server))
    stopwatch = Stopwatch(server)
    async with open_device(reader_path) as reader:
        text, data_bytes = await read(reader, len(edits))
    found = stopwatch.figures(len(edits), data_bytes)
    expected = apply([msgspec.msgpack.decode(edit, type=list[Patch]) for edit in edits])
    if text != expected or (len(edits) == len(trace.steps) and text != trace.end_content):
        raise BenchError("the reader's text is not the one that was written")
    return {"written": written, "read": found}


def edits_of(trace: Trace, count: int) -> list[bytes]:
    """The first ``count`` edits, as an application would encode them. Raises BenchError for more than one author."""
    if trace.authors != 1:
        raise BenchError(f"{trace.name} has {trace.authors} authors: its edits do not simply follow each other")
    return [msgspec.msgpack.encode(step.patches) for step in trace.steps[: min(count, EDITS_MAX)]]


async def write(author: Device, edits: Sequence[bytes], stopwatch: Stopwatch) -> Figures:
    """Publish all edits and wait for every acknowledgement. Cancel-safe: what was published stays in the outbox."""
    waiting: collections.deque[Sequence[Publication]] = collections.deque()
    for start in range(0, len(edits), GROUP_EVENTS):
        waiting.append(await author.publish_many(STREAM, edits[start : start + GROUP_EVENTS]))
        if len(waiting) == GROUPS_IN_FLIGHT:
            await _accepted(waiting.popleft())
    while waiting:
        await _accepted(waiting.popleft())
    return stopwatch.figures(len(edits), sum(map(len, edits)))


async def _accepted(publications: Sequence[Publication]) -> None:
    for publication in publications:
        await publication.accepted()


async def read(reader: Device, count: int) -> tuple[str, int]:
    """The text after ``count`` edits, and the bytes that they are. Cancel-safe."""
    edits: list[list[Patch]] = []
    size = 0
    subscription = await reader.subscribe(STREAM)
    async for event in subscription:
        data = event.data or b""
        size += len(data)
        edits.append(msgspec.msgpack.decode(data, type=list[Patch]))
        if len(edits) == count:
            break
    return apply(edits), size


def apply(edits: Sequence[Sequence[Patch]]) -> str:
    """The text that edits of one author, one after the other, come to."""
    text = ""
    for patches in edits:
        for position, deleted, inserted in patches:
            text = text[:position] + inserted + text[position + deleted :]
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    description = "one long real document, written and read by the client library"
    return run("document", description, measure, arguments, count=EDITS_MAX, what="of its edits, all by default")


if __name__ == "__main__":
    sys.exit(main())
