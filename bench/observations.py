"""The observation log: what devices published, were answered and received, as JSON Lines of version 1.

Whoever drives devices writes one (the Python client's tests, the chaos tests, the Rust load generator) and
``bench.checker`` judges it. ``docs/reference/observation-log.md`` describes the format for other writers.

One line is one JSON array, its first element the record's name, as the classes below list them. Byte strings are
standard base64 with padding. A file starts with a ``Start``; every device is declared by a ``Device`` before another
record names it; the records of one device are in the order in which it saw things. Nothing orders the records of
two devices, and one run may be spread over many files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Self

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

VERSION: Final = 1
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest line a reader accepts, bytes: a page of 1,000 rows takes about 120 kB."""

Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Row = tuple[Bytes16, Number, Position, Bytes32]
"""``[author, n, received_at_ms, hash]``: a delivered event; the receiver computed ``hash`` from its bytes."""


class Start(Struct, frozen=True, array_like=True, tag="keepstep-observations"):
    """``["keepstep-observations", version, writer]``: first line of every file."""

    version: int
    writer: str


class Device(Struct, frozen=True, array_like=True, tag="device"):
    """``["device", device, user]``: a device of the run and the user key it belongs to."""

    device: Bytes16
    user: Bytes32


class Published(Struct, frozen=True, array_like=True, tag="published"):
    """``["published", device, stream, n, [hash...]]``: events n, n + 1 … of the device, before their first send.

    A number published again with another hash was signed anew, as a device does after a refusal.
    """

    device: Bytes16
    stream: str
    n: Number
    hashes: list[Bytes32]


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """``["accepted", device, stream, n, count, seq, received_at_ms, chain]``: events n … are stored from ``seq`` on."""

    device: Bytes16
    stream: str
    n: Number
    count: Count
    seq: Number
    received_at_ms: Position
    chain: Bytes32


class Duplicate(Struct, frozen=True, array_like=True, tag="duplicate"):
    """``["duplicate", device, stream, n, seq, chain, received_at_ms]``: event n was there; nil: unchecked."""

    device: Bytes16
    stream: str
    n: Number
    seq: Number | None
    chain: Bytes32 | None
    received_at_ms: Position | None


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """``["refused", device, stream, n, hash, code]``: the event n with this hash was answered with an error."""

    device: Bytes16
    stream: str
    n: Number
    hash: Bytes32
    code: str


class Subscribed(Struct, frozen=True, array_like=True, tag="subscribed"):
    """``["subscribed", device, stream, seq, chain]``: a session begins to receive after this position.

    ``chain`` is what the device knows the chain to be there, nil where it knows nothing.
    """

    device: Bytes16
    stream: str
    seq: Position
    chain: Bytes32 | None


class Received(Struct, frozen=True, array_like=True, tag="received"):
    """``["received", device, stream, seq, [row...], chain]``: a page from ``seq`` on, chain after it."""

    device: Bytes16
    stream: str
    seq: Number
    rows: Annotated[list[Row], Meta(min_length=1)]
    chain: Bytes32


class Complete(Struct, frozen=True, array_like=True, tag="complete"):
    """``["complete", device, stream]``: the device waited until it should have everything acknowledged so far.

    From here on what it lacks is lost. Written after the run's last acknowledgement, also when the wait for the
    missing events ran into its deadline.
    """

    device: Bytes16
    stream: str


Record = Start | Device | Published | Accepted | Duplicate | Refused | Subscribed | Received | Complete


class InvalidObservationsError(Exception):
    """The file is not an observation log, so nothing can be said about the run."""


class ObservationWriter:
    """Appends records to one file; the lines are buffered, so call ``close`` (or use ``with``) before reading it."""

    def __init__(self, path: Path, writer: str) -> None:
        """Open ``path`` for a new log and write its first line.

        Args:
            path: a file that does not exist yet.
            writer: who observes, for people.

        Raises:
            FileExistsError: there is a log already; observations are never overwritten.
        """
        self._file = path.open("xb")
        self._encoder = msgspec.json.Encoder()
        self.write(Start(version=VERSION, writer=writer))

    def write(self, record: Record) -> None:
        """Append one record."""
        self._file.write(self._encoder.encode(record) + b"\n")

    def close(self) -> None:
        """Flush and close; may be called again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_observations(paths: Sequence[Path]) -> Iterator[Record]:
    """Every record of every file in order, one line in memory at a time.

    Raises:
        InvalidObservationsError: a line is not a record, is too long, or the first is not a ``Start`` of this version.
        OSError: a file cannot be read.
    """
    decoder = msgspec.json.Decoder(Record)
    for path in paths:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise InvalidObservationsError(f"{path}:{number}: a line above {LINE_BYTES_MAX} bytes")
                try:
                    record: Record = decoder.decode(line)
                except msgspec.DecodeError as exc:
                    raise InvalidObservationsError(f"{path}:{number}: {exc}") from exc
                if (number == 1) != isinstance(record, Start):
                    raise InvalidObservationsError(f"{path}:{number}: the start record is the first line and no other")
                if isinstance(record, Start) and record.version != VERSION:
                    raise InvalidObservationsError(f"{path}:{number}: version {record.version} is not {VERSION}")
                yield record
            if number == 0:
                raise InvalidObservationsError(f"{path}: empty")
