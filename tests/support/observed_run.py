"""A run in miniature whose observations are known to be right, for planting faults in before they are written.

It keeps what a server would know (logs, answers) and what each reader is given, apart from each other, so that a test
changes exactly one of them and everything else, chains included, stays consistent with the lie.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import blake3

from bench.observations import (
    Accepted,
    Complete,
    Device,
    ObservationWriter,
    Published,
    Received,
    Subscribed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.observations import Record

STREAM: Final = "notes"
START_MS: Final = 1_760_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One event as a log holds it."""

    seq: int
    author: bytes
    n: int
    received_at_ms: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Entries as one message delivers them, with the chain after the last."""

    entries: tuple[Entry, ...]
    chain: bytes


@dataclass(eq=False, slots=True)
class Reader:
    """What one device is given of its user's stream.

    Attributes:
        device: who reads.
        start: the position its session begins after.
        chain: the chain there.
        pages: as they arrive.
        complete: it says that it waited for everything.
    """

    device: bytes
    start: int
    chain: bytes
    pages: list[Page]
    complete: bool = True


@dataclass(eq=False, slots=True)
class User:
    """One user's devices and their stream."""

    key: bytes
    devices: list[bytes]
    published: dict[bytes, list[bytes]] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    answers: list[Accepted] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    extra: list[Record] = field(default_factory=list)
    """Records written after the answers and before what is received."""


def chain_0(user: bytes, stream: str = STREAM) -> bytes:
    """The chain before the first event (protocol.md section 3)."""
    return blake3.blake3(user + stream.encode(), derive_key_context="keepstep/v1/chain-0").digest()


def chain_next(chain: bytes, entry: Entry) -> bytes:
    """The chain after one more event."""
    data = chain + struct.pack(">QQ", entry.seq, entry.received_at_ms) + entry.hash
    return blake3.blake3(data, derive_key_context="keepstep/v1/chain").digest()


def chains(user: bytes, entries: Sequence[Entry]) -> list[bytes]:
    """The chain after each entry."""
    found = []
    chain = chain_0(user)
    for entry in entries:
        chain = chain_next(chain, entry)
        found.append(chain)
    return found


class ObservedRun:
    """Users with devices that publish into one stream each and all read it."""

    def __init__(self, seed: int, *, users: int = 2, devices: int = 3, events: int = 12) -> None:
        """Build a faultless run.

        Args:
            seed: decides order, times, page sizes.
            users: how many, each with its own stream of the same name.
            devices: per user.
            events: per user, at least one more than devices; every device publishes.
        """
        self.random = random.Random(seed)
        self.users = [self._user(devices, events) for _ in range(users)]
        for user in self.users:
            self.answer(user)
            self.deliver(user)

    def _user(self, devices: int, events: int) -> User:
        user = User(self.random_bytes(32), [self.random_bytes(16) for _ in range(devices)])
        authors = user.devices + self.random.choices(user.devices, k=events - devices)
        self.random.shuffle(authors)
        for author in authors:
            self.append(user, author)
        return user

    def random_bytes(self, count: int) -> bytes:
        """Random bytes of this run's seed."""
        return self.random.randbytes(count)

    def append(self, user: User, author: bytes) -> Entry:
        """A device publishes its next event and the log takes it."""
        hashes = user.published.setdefault(author, [])
        hashes.append(self.random_bytes(32))
        received_at_ms = user.log[-1].received_at_ms + self.random.randrange(3) if user.log else START_MS
        entry = Entry(len(user.log) + 1, author, len(hashes), received_at_ms, hashes[-1])
        user.log.append(entry)
        return entry

    def answer(self, user: User) -> None:
        """Acknowledge every event of the log that has a published number, where the log has it."""
        user.answers = [
            Accepted(entry.author, STREAM, entry.n, 1, entry.seq, entry.received_at_ms, chain)
            for entry, chain in zip(user.log, chains(user.key, user.log), strict=True)
            if entry.n <= len(user.published.get(entry.author, ()))
        ]

    def deliver(self, user: User) -> None:
        """Give every device the whole log in pages of random sizes."""
        user.readers = [Reader(device, 0, chain_0(user.key), self.pages(user, user.log)) for device in user.devices]

    def pages(self, user: User, entries: Sequence[Entry]) -> list[Page]:
        """Cut a whole log into pages of one to five entries, with the chains that these entries have."""
        pages = []
        after = chains(user.key, entries)
        place = 0
        while place < len(entries):
            end = min(place + self.random.randint(1, 5), len(entries))
            pages.append(Page(tuple(entries[place:end]), after[end - 1]))
            place = end
        return pages

    def renumber(self, user: User) -> None:
        """Number the log anew after it was changed, answer and deliver it so: the server lies consistently."""
        user.log = [replace(entry, seq=seq) for seq, entry in enumerate(user.log, 1)]
        self.answer(user)
        self.deliver(user)

    def records(self) -> Iterator[Record]:
        """All observations, in an order that one observer of everything could have written."""
        for user in self.users:
            for device in user.devices:
                yield Device(device, user.key)
        for user in self.users:
            for device, hashes in user.published.items():
                yield Published(device, STREAM, 1, hashes)
        for user in self.users:
            yield from user.answers
            yield from user.extra
            for reader in user.readers:
                yield from self._received(reader)

    def _received(self, reader: Reader) -> Iterator[Record]:
        yield Subscribed(reader.device, STREAM, reader.start, reader.chain)
        for page in reader.pages:
            rows = [(entry.author, entry.n, entry.received_at_ms, entry.hash) for entry in page.entries]
            yield Received(reader.device, STREAM, page.entries[0].seq, rows, page.chain)
        if reader.complete:
            yield Complete(reader.device, STREAM)

    def write(self, path: Path) -> Path:
        """Write the log; returns its path."""
        with ObservationWriter(path, "test") as writer:
            for record in self.records():
                writer.write(record)
        return path
