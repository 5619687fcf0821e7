"""The write-ahead log between whole backups: what ``pg_receivewal`` wrote is kept compressed, encrypted, and whole.

``pg_receivewal`` writes to a spool in ``data_dir``. Finished segments are moved into ``backup_dir/<system>/wal``; of
the one under way a copy is kept there and replaced every few seconds, so that a lost disk costs seconds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keepstep.backup.files import (
    COMPRESSED_SUFFIX,
    ENCRYPTED_SUFFIX,
    PARTIAL_SUFFIX,
    Stop,
    read_sealed,
    sealed_name,
    write_sealed,
)
from keepstep.errors import BackupError, DamagedBackupError

if TYPE_CHECKING:
    from keepstep.backup.keyfile import BackupKey

DIRECTORY: Final = "wal"
UNDER_WAY_SUFFIX: Final = ".partial"
"""What pg_receivewal calls the segment under way."""
SEGMENT_BYTES_MAX: Final = 1 << 30
"""PostgreSQL's largest segment; 16 MiB unless initdb was told otherwise."""
FILES_MAX: Final = 4_000_000
"""Names looked at in the directory: 64 TiB of WAL."""
_SEGMENT: Final = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_HISTORY: Final = re.compile(r"[0-9A-F]{8}\.history")
_LSN: Final = re.compile(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})")


@dataclass(frozen=True, slots=True)
class Segment:
    """A kept piece of the log.

    Attributes:
        timeline: which of PostgreSQL's histories it is of; each restore begins one.
        number: its place, counted from the log's beginning.
        path: of the file.
        is_whole: whether it is finished, rather than a copy of one under way.
    """

    timeline: int
    number: int
    path: Path
    is_whole: bool


def lsn_bytes(lsn: str) -> int:
    """A position in the log, ``16/B374D848``, in bytes. Raises BackupError."""
    parts = _LSN.fullmatch(lsn)
    if parts is None:
        raise BackupError(f"{lsn!r} is no position in a write-ahead log")
    return (int(parts[1], 16) << 32) + int(parts[2], 16)


def segment_name(timeline: int, number: int, segment_bytes: int) -> str:
    """What PostgreSQL calls a segment."""
    per_file = (1 << 32) // segment_bytes
    return f"{timeline:08X}{number // per_file:08X}{number % per_file:08X}"


def plain_name(path: Path) -> str:
    """The name a file had before it was sealed."""
    return path.name.removesuffix(ENCRYPTED_SUFFIX).removesuffix(COMPRESSED_SUFFIX)


def segments(directory: Path, segment_bytes: int) -> list[Segment]:
    """The kept pieces in the order of the log; of a segment that is there whole no copy under way. Raises OSError."""
    per_file = (1 << 32) // segment_bytes
    found: dict[tuple[int, int], Segment] = {}
    for path in _files(directory):
        name = plain_name(path)
        parts = _SEGMENT.fullmatch(name.removesuffix(UNDER_WAY_SUFFIX))
        if parts is None:
            continue
        place = int(parts[1], 16), int(parts[2], 16) * per_file + int(parts[3], 16)
        is_whole = not name.endswith(UNDER_WAY_SUFFIX)
        if is_whole or place not in found:
            found[place] = Segment(*place, path, is_whole)
    return [found[place] for place in sorted(found)]


def histories(directory: Path) -> list[Path]:
    """The files that say where each timeline began. Raises OSError."""
    return [path for path in _files(directory) if _HISTORY.fullmatch(plain_name(path))]


def _files(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    found = [path for path in directory.iterdir() if not path.name.endswith(PARTIAL_SUFFIX)]
    if len(found) > FILES_MAX:
        raise BackupError(f"{directory} holds more than {FILES_MAX} files")
    return sorted(found)


def remove_before(directory: Path, number: int, segment_bytes: int) -> int:
    """Remove the segments before one that the oldest kept backup begins with; returns how many. Raises OSError."""
    old = [segment for segment in segments(directory, segment_bytes) if segment.number < number]
    for segment in old:
        segment.path.unlink(missing_ok=True)
    return len(old)


class Shipper:
    """Moves what is received into the backups. Blocks; one at a time.

    Args:
        spool: where ``pg_receivewal`` writes.
        directory: where it is kept; made where it is not there.
        key: encrypts it; ``None``: not encrypted.
    """

    def __init__(self, spool: Path, directory: Path, *, key: BackupKey | None) -> None:
        self._spool = spool
        self._directory = directory
        self._key = key
        self._under_way: tuple[str, int] | None = None

    def ship(self, stop: Stop) -> int:
        """Keep all that was received by now; returns how many bytes that took.

        Raises:
            BackupError: it cannot be kept; the message says why. What was received stays where it is.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = sorted(path.name for path in self._spool.iterdir())
            taken = 0
            for name in names:
                stop.check()
                if _HISTORY.fullmatch(name):
                    taken += self._ship_history(name, stop)
                elif _SEGMENT.fullmatch(name):
                    taken += self._ship_segment(name, stop)
            for name in names:
                if name.endswith(UNDER_WAY_SUFFIX) and _SEGMENT.fullmatch(name.removesuffix(UNDER_WAY_SUFFIX)):
                    taken += self._copy_under_way(name, stop)
        except OSError as error:
            raise BackupError(f"cannot keep the write-ahead log in {self._directory}: {error.strerror}") from error
        return taken

    def forget_superseded(self, segment_bytes: int) -> int:
        """Remove from the spool what another node received whole, or beyond, since it was begun here; how many.

        ``pg_receivewal`` goes on where its directory ends, and asks for what the database need not have any more.

        Raises:
            BackupError: it cannot be removed.
        """
        try:
            kept = segments(self._directory, segment_bytes)
            begun = [segment for segment in segments(self._spool, segment_bytes) if not segment.is_whole]
            old = [
                segment
                for segment in begun
                if any(
                    one.timeline == segment.timeline
                    and (one.number > segment.number or (one.is_whole and one.number == segment.number))
                    for one in kept
                )
            ]
            for segment in old:
                segment.path.unlink(missing_ok=True)
        except OSError as error:
            raise BackupError(f"cannot clear {self._spool}: {error.strerror}") from error
        return len(old)

    def _ship_history(self, name: str, stop: Stop) -> int:
        if (self._directory / sealed_name(name, self._key)).exists():
            return 0
        return self._write((self._spool / name).read_bytes(), name, stop)

    def _ship_segment(self, name: str, stop: Stop) -> int:
        path = self._spool / name
        with path.open("rb") as file:
            taken = write_sealed(file, self._directory, name, key=self._key, stop=stop).size_bytes
        path.unlink()
        for copy in self._copies(name):
            copy.unlink(missing_ok=True)
        return taken

    def _copy_under_way(self, name: str, stop: Stop) -> int:
        """Keep what is written of the segment under way, if that is more than the last time."""
        path = self._spool / name
        try:
            state = name, path.stat().st_mtime_ns
            if state == self._under_way:
                return 0
            content = path.read_bytes().rstrip(b"\0")
        except FileNotFoundError:
            return 0  # it was finished just now: the next time it is shipped whole
        taken = self._write(content, name, stop) if content else 0
        self._under_way = state
        return taken

    def _write(self, content: bytes, name: str, stop: Stop) -> int:
        return write_sealed(io.BytesIO(content), self._directory, name, key=self._key, stop=stop).size_bytes

    def _copies(self, name: str) -> Iterable[Path]:
        """Copies of a segment while it was under way, encrypted or not."""
        return self._directory.glob(f"{name}{UNDER_WAY_SUFFIX}{COMPRESSED_SUFFIX}*")


def needed(found: Iterable[Segment], *, timeline: int, first: int, last: int | None) -> list[Segment]:
    """The pieces that continue a backup: from its first one on, to ``last``, on its timeline and later ones.

    Of each timeline, what comes after a gap is of no use and left out.
    """
    chosen: list[Segment] = []
    previous: Segment | None = None
    for segment in found:
        if segment.timeline < timeline or segment.number < first or (last is not None and segment.number > last):
            continue
        same = previous is not None and previous.timeline == segment.timeline
        if same and previous is not None and segment.number != previous.number + 1:
            continue
        chosen.append(segment)
        previous = segment
    return chosen


def find_gap(found: Iterable[Segment], *, timeline: int, copied: int) -> int | None:
    """The first piece that is missing behind a whole backup although later ones are there; ``None``: none is.

    Args:
        found: in the order of the log.
        timeline: the backup's.
        copied: the last piece that is in the backup itself.
    """
    expected = copied + 1
    for segment in found:
        if segment.timeline != timeline or segment.number < expected:
            continue
        if segment.number > expected:
            return expected
        expected += 1
    return None


def place(chosen: Iterable[Segment], target: Path, segment_bytes: int, *, key: BackupKey | None, stop: Stop) -> int:
    """Put pieces where PostgreSQL looks for them; returns how many bytes they take.

    A piece that is there already, from the whole backup, is left alone.

    Raises:
        BackupError: one is damaged or cannot be written.
    """
    taken = 0
    for segment in chosen:
        path = target / plain_name(segment.path).removesuffix(UNDER_WAY_SUFFIX)
        if path.exists():
            continue
        try:
            with path.open("wb") as file:
                read_sealed(segment.path, file, key=key, stop=stop, expected=None)
                size = file.tell()
                if size > segment_bytes or (segment.is_whole and size != segment_bytes):
                    raise DamagedBackupError(f"{segment.path} is damaged: it is not as long as a segment is")
                file.truncate(segment_bytes)
        except OSError as error:
            raise BackupError(f"cannot write {path}: {error.strerror}") from error
        taken += segment_bytes
    return taken
