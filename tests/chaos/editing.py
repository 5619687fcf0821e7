"""The demo's editing session as a load: the client library at work, and a text that must come out right.

The session is ``examples.collaborative_editing``'s: two authors write a recorded text as CRDT updates, each merging the
other's exactly when the recording says so; a third device comes in the end and reads everything. The client keeps what
it publishes and what it verified in its own files; triggers in them note each event as it enters the outbox, before it
is ever sent, so that the checker judges what the library was told and not what it says.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from bench.observations import Complete, Device, Duplicate, Published, Received, Subscribed
from examples.collaborative_editing.measures import Measures
from examples.collaborative_editing.people import STREAM, Author, Reader
from examples.collaborative_editing.session import copy_of
from examples.collaborative_editing.trace import load_trace
from keepstep.client import create_user, crypto, find_server, open_device
from keepstep.client.environment import SYSTEM
from keepstep.protocol.chain import chain_0, event_hash
from keepstep.protocol.event import decode_header
from tests.chaos.load import Progress
from tests.chaos.process import TRACE

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from bench.observations import ObservationWriter
    from examples.collaborative_editing.session import Copy
    from keepstep.client import Receipt
    from tests.chaos.process import ServerProcess

AUTHORS: Final = 2
FINISH_TIMEOUT_S: Final = 600
"""Until the whole text is written and read, on a busy machine."""
RECONNECT_S: Final = 0.2
"""Longest pause of a device between attempts to connect, seconds: the run is to be over soon."""
PAGE_EVENTS: Final = 100
TRIGGERS: Final = """
CREATE TABLE observed_outbox (stream TEXT NOT NULL, n INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TRIGGER observe_insert AFTER INSERT ON outbox BEGIN
    INSERT INTO observed_outbox VALUES (new.stream, new.n, new.hash);
END;
CREATE TRIGGER observe_update AFTER UPDATE OF n, hash ON outbox WHEN new.n <> old.n OR new.hash <> old.hash BEGIN
    INSERT INTO observed_outbox VALUES (new.stream, new.n, new.hash);
END;
"""


class Editing:
    """Two authors and a late reader of one user."""

    in_flight = AUTHORS

    def __init__(self, directory: Path, seeded: random.Random, observed: ObservationWriter) -> None:
        """Device files go below ``directory``."""
        self._paths = [directory / f"device-{number}" for number in range(AUTHORS + 1)]
        self._recovery_path = directory / "recovery.txt"
        self._environment = replace(SYSTEM, jitter=lambda limit: seeded.uniform(0, min(limit, RECONNECT_S)))
        self._observed = observed
        self._trace = load_trace(TRACE)
        self._progress = Progress()
        self._authors: list[Author] = []
        self._copies: list[Copy] = []
        self._written = trio.Event()

    async def prepare(self, server: ServerProcess) -> None:
        """As ``Load.prepare``."""
        found = await find_server(server.rest_url)
        first, *others = self._paths
        await create_user(
            found, path=first, name="first", recovery_path=self._recovery_path, passphrase="only for this test"
        )
        async with open_device(first) as device:
            await device.wait_until_ready()
            for path in others:
                await device.enrol(path, path.name)
        for path in others:
            async with open_device(path) as device:
                await device.wait_until_ready()
        for path in self._paths:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.executescript(TRIGGERS)

    async def run(self) -> None:
        """As ``Load.run``."""
        async with contextlib.AsyncExitStack() as stack:
            opened = [open_device(path, environment=self._environment) for path in self._paths[:AUTHORS]]
            devices = [await stack.enter_async_context(each) for each in opened]
            ids = [device.identity.device_id for device in devices]
            measures = Measures()
            self._authors = [
                Author(self._trace, device, ids, number, measures) for number, device in enumerate(devices)
            ]
            async with trio.open_nursery() as writing:
                for author in self._authors:
                    writing.start_soon(author.write)
                    writing.start_soon(author.read)
                    writing.start_soon(author.wait_for_acks, self._progress.add)
            for author in self._authors:
                author.finish()
                self._copies.append(await copy_of(author))
            self._written.set()
            await trio.sleep_forever()

    async def progress(self, events: int) -> None:
        """As ``Load.progress``."""
        wanted = self._progress.count + events
        assert wanted <= len(self._trace.steps), "the text was finished before everything was killed"
        await self._progress.until(wanted)

    async def finish(self) -> None:
        """As ``Load.finish``."""
        with trio.move_on_after(FINISH_TIMEOUT_S):
            await self._written.wait()
            await self._come_late()

    async def _come_late(self) -> None:
        ids = [author.device.identity.device_id for author in self._authors]
        async with open_device(self._paths[-1], environment=self._environment) as device:
            reader = Reader(self._trace, device, ids)
            await reader.read()
            self._copies.append(await copy_of(reader))

    def problems(self) -> list[str]:
        """As ``Load.problems``."""
        if len(self._copies) <= AUTHORS:
            return ["not everybody has the whole text"]
        found = [f"a text differs: {len(copy.text)} characters" for copy in self._copies if not self._is_right(copy)]
        found += [f"{copy.alarms} alarms" for copy in self._copies if copy.alarms]
        if len({copy.position for copy in self._copies}) != 1:
            found.append("the devices verified different chains")
        return found

    def _is_right(self, copy: Copy) -> bool:
        return copy.text == self._trace.end_content

    def summary(self) -> str:
        """As ``Load.summary``."""
        right = sum(self._is_right(copy) for copy in self._copies)
        return f"{right} of {len(self._paths)} devices have the whole text of {len(self._trace.steps)} edits"

    def observe(self) -> None:
        """As ``Load.observe``: from the devices' own files."""
        for path in self._paths:
            self._observe_identity(path)
        receipts = [author.receipts for author in self._authors]
        for path, each in zip(self._paths, [*receipts, []], strict=True):
            self._observe(path, each)

    def _observe_identity(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            device_id, user_key = connection.execute("SELECT device_id, user_key FROM device").fetchone()
        self._observed.write(Device(device_id, user_key))

    def _observe(self, path: Path, receipts: Sequence[Receipt]) -> None:
        """Write down what a device published, was answered, and verified."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            device_id, user_key = connection.execute("SELECT device_id, user_key FROM device").fetchone()
            published = connection.execute(
                "SELECT n, hash FROM observed_outbox WHERE stream = ? ORDER BY rowid", [STREAM]
            )
            for n, hash_ in published:
                self._observed.write(Published(device_id, STREAM, n, [hash_]))
            for receipt in receipts:
                # Whether it was stored now or had been before, the client does not tell apart; nor does the checker.
                self._observed.write(Duplicate(device_id, STREAM, receipt.n, receipt.seq, None, receipt.received_at_ms))
            self._observed.write(Subscribed(device_id, STREAM, 0, chain_0(crypto, user_key, STREAM)))
            rows = connection.execute(
                "SELECT seq, device_id, received_at_ms, header, sig, chain FROM events WHERE stream = ? ORDER BY seq",
                [STREAM],
            )
            while page := rows.fetchmany(PAGE_EVENTS):
                entries = [
                    (author, decode_header(header).n, received_at_ms, event_hash(crypto, header, sig))
                    for _, author, received_at_ms, header, sig, _ in page
                ]
                self._observed.write(Received(device_id, STREAM, page[0][0], entries, page[-1][-1]))
            self._observed.write(Complete(device_id, STREAM))
