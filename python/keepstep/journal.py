"""The journal: every event of ``$devices``, fsynced outside the database before it is acknowledged.

A restore sets the database back, and must not make a stolen device live again: what the journal holds is put back in
its place (protocol.md section 4, "After a restore"). Files are only appended to, for ``FILE_AGE_S_MAX``; a whole file
goes once every backup that could be restored holds what is in it (``backup.pruning``), and never while it is written
to. A record that was being written when the power went is passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Annotated, Final, Protocol

import msgspec
import trio
from msgspec import Meta, Struct

from keepstep import _keepstep
from keepstep.errors import ProtocolError, Unavailable
from keepstep.protocol.account_payloads import ACCOUNT_PAYLOAD_BYTES_MAX
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.event import HEADER_BYTES_MAX
from keepstep.protocol.messages import U64, Bytes16, Bytes32, Bytes64, ResultAccepted, ResultDuplicate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepstep._keepstep import Submission
    from keepstep.interfaces import Threads
    from keepstep.protocol.messages import Result

DIRECTORY: Final = "journal"
"""In the data directory. Journals of other nodes may lie in directories of it: all of them are read."""
SUFFIX: Final = ".journal"
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""After this a file is followed by the next one."""
FILE_AGE_S_MAX: Final = 86_400.0
"""Seconds after which a file is followed by the next one, so that there are old files, which may go."""
LENGTH_BYTES: Final = 4
CHECKSUM_BYTES: Final = 8
"""A record is framed by its length, big-endian, and the first bytes of its BLAKE3."""
RECORD_BYTES_MAX: Final = ACCOUNT_PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX + 512
READ_BYTES: Final = 1024 * 1024
"""Read at a time; no more than this and one record is held."""
REMEMBERED_MAX: Final = 100_000
"""Events that are known to be in the journal; a duplicate of one of them is not written again."""
RETRY_AFTER_MS: Final = 1_000


class EpochRecord(Struct, frozen=True, array_like=True, tag=1):
    """``[1, epoch]``: the log is in this epoch."""

    epoch: U64


class AccountRecord(Struct, frozen=True, array_like=True, tag=2):
    """``[2, user_key, seq, received_at_ms, device_id, header, sig, payload]``: an event of ``$devices``."""

    user_key: Bytes32
    seq: U64
    received_at_ms: U64
    device_id: Bytes16
    header: Annotated[bytes, Meta(max_length=HEADER_BYTES_MAX)]
    sig: Bytes64
    payload: Annotated[bytes, Meta(max_length=ACCOUNT_PAYLOAD_BYTES_MAX)]


Record = EpochRecord | AccountRecord
_RECORD: Final[msgspec.msgpack.Decoder[Record]] = msgspec.msgpack.Decoder(Record)


class AccountJournal(Protocol):
    """Takes events of ``$devices`` that are stored, before anybody is told."""

    async def keep(self, record: AccountRecord) -> None:
        """Make a record durable; one that is there already is not written again.

        A cancellation waits for the end.

        Raises:
            Unavailable: it could not be written; whoever sends the event again is answered when it can.
        """


class NoJournal:
    """Keeps nothing: of a log in memory, which no restore sets back."""

    async def keep(self, record: AccountRecord) -> None:
        """As ``AccountJournal.keep``."""


NO_JOURNAL: Final = NoJournal()


async def keep_published(journal: AccountJournal, user_key: bytes, submission: Submission, result: Result) -> None:
    """Keep the one event of ``$devices`` in a submission, if it is stored. Raises Unavailable."""
    if isinstance(result, ResultAccepted):
        seq = result.first_seq
    elif isinstance(result, ResultDuplicate) and result.seq is not None:
        seq = result.seq
    else:
        return
    event = submission.events.event(0)
    received_at_ms = result.received_at_ms
    assert event.payload is not None
    assert received_at_ms is not None
    await journal.keep(
        AccountRecord(user_key, seq, received_at_ms, submission.device_id, event.header, event.sig, event.payload)
    )


class FileJournal:
    """The journal of one node.

    Args:
        data_dir: where its directory is, or will be.
        threads: the hop to worker threads.
    """

    def __init__(self, data_dir: Path, threads: Threads) -> None:
        self._directory = data_dir / DIRECTORY
        self._threads = threads
        self._limiter = trio.CapacityLimiter(1)
        self._file: int | None = None
        self._size = 0
        self._begun_s = 0.0
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # hashes of records: in another log a place has another

    async def begin_epoch(self, epoch: int) -> None:
        """Write an epoch down, which the next one is above. A cancellation waits for the end. Raises Unavailable."""
        await self._write(encode(EpochRecord(epoch)))

    async def keep(self, record: AccountRecord) -> None:
        """As ``AccountJournal.keep``."""
        data = encode(record)
        hash_ = _keepstep.blake3(data)
        if hash_ in self._kept:
            return
        await self._write(data)
        self._kept[hash_] = None
        if len(self._kept) > REMEMBERED_MAX:
            self._kept.popitem(last=False)

    def close(self) -> None:
        """Let go of the file; what was kept is on the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what it would tell is known, or was said when it was fsynced
                os.close(file)

    async def _write(self, data: bytes) -> None:
        """A record, encoded."""
        framed = len(data).to_bytes(LENGTH_BYTES, "big") + _keepstep.blake3(data)[:CHECKSUM_BYTES] + data
        now_s = trio.current_time()
        try:
            await self._threads.run(lambda: self._append(framed, now_s), limiter=self._limiter)
        except OSError as error:
            raise Unavailable("the journal cannot be written", retry_after_ms=RETRY_AFTER_MS) from error

    def _append(self, framed: bytes, now_s: float) -> None:
        """In a worker thread. Raises OSError: nothing may be said of the record."""
        if self._size + len(framed) > FILE_BYTES_MAX or now_s - self._begun_s > FILE_AGE_S_MAX:
            self.close()
        if self._file is None:
            self._begin()
            self._begun_s = now_s
        assert self._file is not None
        try:
            written = os.write(self._file, framed)
            if written != len(framed):
                raise OSError("the record was not written whole")
            os.fsync(self._file)
        except OSError:
            # Nothing is written behind a record that is not whole: the next one begins a file. Before this thread lets
            # the next one in, for that would write into the old file.
            self.close()
            raise
        self._size += written

    def _begin(self) -> None:
        """The next file: what an earlier run left unfinished is never appended to."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        numbers = [int(path.stem) for path in self._directory.glob(f"*{SUFFIX}") if path.stem.isdecimal()]
        path = self._directory / f"{max(numbers, default=0) + 1:08}{SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for pruning either
            fcntl.flock(self._file, fcntl.LOCK_SH)
        for directory in (self._directory, self._directory.parent):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_journal(data_dir: Path) -> Iterator[Record]:
    """Every record of every journal below the data directory, in the order of each; blocks.

    A record that is not whole, as where a write was cut short or a disk has failed, is passed over; others are read.

    Raises:
        OSError: a file cannot be read.
    """
    for path in sorted((data_dir / DIRECTORY).rglob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            yield from _records(file)


def _records(file: IO[bytes]) -> Iterator[Record]:
    """The whole records of a file. Behind a damaged place the next one is looked for: its checksum tells it."""
    data, at, has_more = b"", 0, True
    while has_more or at < len(data):
        if has_more and len(data) - at < LENGTH_BYTES + CHECKSUM_BYTES + RECORD_BYTES_MAX:
            more = file.read(READ_BYTES)
            data, at, has_more = data[at:] + more, 0, bool(more)
            continue
        begin = at + LENGTH_BYTES + CHECKSUM_BYTES
        end = begin + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
        record = _record(data[at + LENGTH_BYTES : begin], data[begin:end]) if end - begin <= RECORD_BYTES_MAX else None
        if record is not None:
            yield record
            at = end
        else:
            found = data.find(b"\0", at + 1)  # no record is so long that its length has another first byte
            at = found if found >= 0 else len(data)


def _record(checksum: bytes, data: bytes) -> Record | None:
    if not data or _keepstep.blake3(data)[:CHECKSUM_BYTES] != checksum:
        return None
    try:
        return decode_strict(_RECORD, data, "a record of the journal", bytes_max=RECORD_BYTES_MAX)
    except ProtocolError:
        return None
