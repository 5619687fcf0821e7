"""The whole session: a server, a user, its devices, what happens to them, and what is found in the end."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from examples.collaborative_editing.cable import Cable
from examples.collaborative_editing.leaks import Needles
from examples.collaborative_editing.measures import Latency, Measures, latency
from examples.collaborative_editing.people import STREAM, Author, Reader
from examples.collaborative_editing.server_process import ServerProcess
from keepstep.client import create_user, open_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from examples.collaborative_editing.leaks import Searched
    from examples.collaborative_editing.trace import Trace
    from keepstep.client import Device, Position, Server

MARKER_STREAM: Final = "marker"
MARKER_BYTES: Final = 64
DEVICES_MIN: Final = 3
CUT_AT: Final = 1 / 3
LATE_AT: Final = 1 / 2
"""When the cable is pulled, and when the last device comes, as parts of the trace."""
OFFLINE_EVENTS: Final = 20
"""So many edits are written without a connection before the cable is mended, unless the author has to wait earlier."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What one person has in the end.

    Attributes:
        text: as the replica has it.
        position: up to where the device has verified the stream.
        alarms: lies that the device found.
    """

    text: str
    position: Position
    alarms: int


async def copy_of(person: Reader) -> Copy:
    """What a person has now."""
    return Copy(str(person.replica), person.device.position(STREAM), len(await person.device.alarms()))


@dataclass(frozen=True, slots=True)
class Found:
    """What the session came to.

    Attributes:
        events: edits published, acknowledged, and delivered to every device.
        seconds: from the first edit until every device had the last one.
        ack: from publishing to the author's knowing that it is on the server's disk.
        delivery: from publishing to the other author's having it verified and decrypted.
        caught_up_events: how many edits the late device found waiting.
        caught_up_seconds: how long it took to have them verified.
        offline_events: how many edits were written with the cable pulled.
        copies: what each person has in the end.
        leaked: runs of plaintext found on the server, each with its spelling undone.
        innocent_runs: runs that were there before the text was, and are left out.
        runs: runs looked for.
        searched_bytes: of data directory, WAL, dump and logs.
    """

    events: int
    seconds: float
    ack: Latency
    delivery: Latency
    caught_up_events: int
    caught_up_seconds: float
    offline_events: int
    copies: list[Copy]
    leaked: frozenset[bytes]
    innocent_runs: int
    runs: int
    searched_bytes: int


class Session:
    """One run of a trace.

    Args:
        trace: what is written.
        directory: empty; server and devices keep their files there.
        tell: called with how many more edits are acknowledged.
        say: called with a sentence when something happens.
    """

    def __init__(
        self, trace: Trace, directory: Path, *, tell: Callable[[int], None], say: Callable[[str], None]
    ) -> None:
        self._trace = trace
        self._directory = directory
        self._tell_more = tell
        self._say = say
        self._server = ServerProcess(directory)
        self._acknowledged = 0
        self._news = trio.Event()
        self._measures = Measures()
        self._late = (0, 0.0)
        self._offline_events = 0

    async def run(self) -> Found:
        """Play it, and look at what is left."""
        marker = secrets.token_hex(MARKER_BYTES // 2)
        needles = Needles([self._trace.end_content, marker])
        async with self._server.running() as server:
            before = await self._search(needles)
            started_s = time.monotonic()
            copies, seconds = await self._play(server, marker)
        await self._server.dump(self._directory / "dump.sql")
        after = await self._search(needles)
        self._say(f"the whole run took {time.monotonic() - started_s:.1f} s")
        caught_up_events, caught_up_seconds = self._late
        return Found(
            events=len(self._trace.steps),
            seconds=seconds,
            ack=latency(self._measures.ack_s),
            delivery=latency(self._measures.delivery_s),
            caught_up_events=caught_up_events,
            caught_up_seconds=caught_up_seconds,
            offline_events=self._offline_events,
            copies=copies,
            leaked=after.runs - before.runs,
            innocent_runs=len(before.runs),
            runs=needles.runs,
            searched_bytes=after.size_bytes,
        )

    async def _search(self, needles: Needles) -> Searched:
        places = [self._server.data_dir, self._server.log, self._directory / "dump.sql"]
        return await trio.to_thread.run_sync(lambda: needles.search(path for path in places if path.exists()))

    async def _play(self, server: Server, marker: str) -> tuple[list[Copy], float]:
        """The session itself; what everybody has in the end, and how many seconds it took."""
        copies: list[Copy] = []
        async with contextlib.AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            cable = Cable(server.device_url)
            await nursery.start(cable.plug)
            devices = await self._make_devices(server, cable, stack)
            await (await devices[0].publish(MARKER_STREAM, marker.encode())).accepted()
            writers = devices[: self._trace.authors]
            ids = [device.identity.device_id for device in writers]
            authors = [
                Author(self._trace, device, ids, number, self._measures) for number, device in enumerate(writers)
            ]
            readers = [Reader(self._trace, device, ids) for device in devices[len(authors) :]]
            started_s = time.monotonic()
            async with trio.open_nursery() as writing:
                for author in authors:
                    writing.start_soon(author.write)
                    writing.start_soon(author.wait_for_acks, self._tell)
                for person in (*authors, *readers):
                    writing.start_soon(person.read)
                writing.start_soon(self._cut, cable, authors[-1])
                writing.start_soon(self._come_late, ids, copies)
            seconds = time.monotonic() - started_s
            for author in authors:
                author.finish()
            copies += [await copy_of(person) for person in (*authors, *readers)]
            nursery.cancel_scope.cancel()
        return copies, seconds

    async def _make_devices(self, server: Server, cable: Cable, stack: contextlib.AsyncExitStack) -> list[Device]:
        """A device for each author, the last one's by cable, and readers where these are fewer than two."""
        paths = [self._directory / f"device-{number}" for number in range(max(self._trace.authors, DEVICES_MIN - 1))]
        await create_user(
            server,
            path=paths[0],
            name="first device",
            recovery_path=self._directory / "recovery.txt",
            passphrase=secrets.token_hex(16),
        )
        devices: list[Device] = []
        for number, path in enumerate(paths):
            by_cable = number == self._trace.authors - 1
            if number:
                await devices[0].enrol(path, f"device {number + 1}")
            opened = open_device(path, device_url=cable.url if by_cable else None)
            devices.append(await stack.enter_async_context(opened))
            await devices[-1].wait_until_ready()
        await devices[0].enrol(self._directory / "device-late", "late device")
        return devices

    def _tell(self, more: int) -> None:
        self._acknowledged += more
        self._news.set()
        self._news = trio.Event()
        self._tell_more(more)

    async def _until(self, part: float) -> None:
        """Wait until that part of the trace is acknowledged."""
        while self._acknowledged < part * len(self._trace.steps):
            await self._news.wait()

    async def _cut(self, cable: Cable, author: Author) -> None:
        await self._until(CUT_AT)
        await author.wait_until_writing()
        cable.cut()
        written = author.written
        self._say(f"cable of author {self._trace.authors} pulled after {written} edits of that author")
        await author.device.wait_until_disconnected()
        await author.write_on(OFFLINE_EVENTS)
        self._offline_events = author.written - written
        cable.mend()
        await author.device.wait_until_connected()
        self._say(f"cable mended; {self._offline_events} edits were written without it")

    async def _come_late(self, ids: list[bytes], copies: list[Copy]) -> None:
        await self._until(LATE_AT)
        began_s = time.monotonic()
        async with open_device(self._directory / "device-late") as device:
            reader = Reader(self._trace, device, ids)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.read)
                await device.wait_until_caught_up(STREAM)
                self._late = (device.position(STREAM).seq, time.monotonic() - began_s)
                self._say(f"a late device came, and has the {self._late[0]} edits that were there")
            copies.append(await copy_of(reader))
