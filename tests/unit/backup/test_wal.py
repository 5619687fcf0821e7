"""The log between backups: kept whole, found in order, cut at gaps."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from keepstep.backup import wal
from keepstep.backup.files import Stop
from keepstep.backup.keyfile import make_key
from keepstep.errors import BackupError, DamagedBackupError

SEGMENT_BYTES = 1 << 16


def received(spool: Path, timeline: int, number: int, *, whole: bool = True, written: int = SEGMENT_BYTES) -> str:
    """A segment as pg_receivewal leaves it: zeros follow what is written."""
    spool.mkdir(exist_ok=True)
    name = wal.segment_name(timeline, number, SEGMENT_BYTES)
    content = (b"%d" % (number % 10) * written).ljust(SEGMENT_BYTES, b"\0")
    (spool / f"{name}{'' if whole else '.partial'}").write_bytes(content)
    return name


def test_positions_and_names() -> None:
    """As PostgreSQL counts them."""
    assert wal.lsn_bytes("16/B374D848") == 0x16B374D848
    assert wal.segment_name(1, 0x16B374D848 >> 24, 1 << 24) == "0000000100000016000000B3"
    with pytest.raises(BackupError, match="no position"):
        wal.lsn_bytes("nonsense")


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_was_received_is_kept_and_put_back(tmp_path: Path, encrypted: bool) -> None:
    """Finished segments leave the spool; of the one under way there is a copy until it is finished."""
    spool, kept, target = tmp_path / "spool", tmp_path / "wal", tmp_path / "pg_wal"
    key = make_key(tmp_path / "key", now_ms=0) if encrypted else None
    first, second = received(spool, 1, 1), received(spool, 1, 2, whole=False, written=100)
    (spool / "00000002.history").write_text("history")
    (spool / "something else").touch()
    shipper = wal.Shipper(spool, kept, key=key)
    assert shipper.ship(Stop()) > 0
    assert sorted(path.name for path in spool.iterdir()) == [f"{second}.partial", "00000002.history", "something else"]
    assert shipper.ship(Stop()) == 0, "nothing was received since"
    found = wal.segments(kept, SEGMENT_BYTES)
    assert [(one.timeline, one.number, one.is_whole) for one in found] == [(1, 1, True), (1, 2, False)]
    assert [wal.plain_name(path) for path in wal.histories(kept)] == ["00000002.history"]
    target.mkdir()
    assert wal.place(found, target, SEGMENT_BYTES, key=key, stop=Stop()) == 2 * SEGMENT_BYTES
    assert (target / first).read_bytes() == b"1" * SEGMENT_BYTES
    assert (target / second).read_bytes() == (b"2" * 100).ljust(SEGMENT_BYTES, b"\0")
    assert wal.place(found, target, SEGMENT_BYTES, key=key, stop=Stop()) == 0, "what is there is left alone"

    (spool / f"{second}.partial").rename(spool / second)
    shipper.ship(Stop())
    assert [one.is_whole for one in wal.segments(kept, SEGMENT_BYTES)] == [True, True]
    assert not list(kept.glob("*.partial*"))


def test_nothing_is_copied_of_a_segment_that_is_empty(tmp_path: Path) -> None:
    """pg_receivewal makes the file before anything is in it."""
    received(tmp_path / "spool", 1, 1, whole=False, written=0)
    shipper = wal.Shipper(tmp_path / "spool", tmp_path / "wal", key=None)
    assert shipper.ship(Stop()) == 0
    assert wal.segments(tmp_path / "wal", SEGMENT_BYTES) == []


def test_a_segment_that_is_finished_meanwhile_waits_for_the_next_time(tmp_path: Path) -> None:
    """The copy of one under way may find it renamed."""
    shipper = wal.Shipper(tmp_path / "spool", tmp_path / "wal", key=None)
    name = received(tmp_path / "spool", 1, 1, whole=False)
    (tmp_path / "spool" / f"{name}.partial").unlink()
    assert shipper._copy_under_way(f"{name}.partial", Stop()) == 0


def test_what_cannot_be_kept_stays_in_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the backups may be full, or away."""
    name = received(tmp_path / "spool", 1, 1)
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="cannot keep the write-ahead log"):
        wal.Shipper(tmp_path / "spool", tmp_path / "file" / "wal", key=None).ship(Stop())

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keepstep.backup.files.os.fsync", full)
    with pytest.raises(BackupError, match="No space left on device"):
        wal.Shipper(tmp_path / "spool", tmp_path / "wal", key=None).ship(Stop())
    assert (tmp_path / "spool" / name).exists()
    assert list((tmp_path / "wal").iterdir()) == []


def test_what_a_backup_needs_ends_at_a_gap(tmp_path: Path) -> None:
    """On its timeline and later ones, from its first segment, and not beyond the last one asked for."""
    spool, kept = tmp_path / "spool", tmp_path / "wal"
    for timeline, number in ((1, 3), (1, 4), (1, 5), (1, 7), (1, 8), (2, 5), (2, 6)):
        received(spool, timeline, number)
    wal.Shipper(spool, kept, key=None).ship(Stop())
    found = wal.segments(kept, SEGMENT_BYTES)

    def places(timeline: int, first: int, last: int | None) -> list[tuple[int, int]]:
        chosen = wal.needed(found, timeline=timeline, first=first, last=last)
        return [(one.timeline, one.number) for one in chosen]

    assert places(1, 4, None) == [(1, 4), (1, 5), (2, 5), (2, 6)]
    assert places(1, 3, 4) == [(1, 3), (1, 4)]
    assert places(2, 5, None) == [(2, 5), (2, 6)]


def test_a_gap_behind_a_backup_is_found(tmp_path: Path) -> None:
    """The first piece that is missing while later ones are there, on the backup's timeline; the newest is no gap."""
    spool, kept = tmp_path / "spool", tmp_path / "wal"
    for timeline, number in ((1, 3), (1, 4), (1, 5), (1, 7), (2, 9)):
        received(spool, timeline, number)
    received(spool, 2, 10, whole=False)
    wal.Shipper(spool, kept, key=None).ship(Stop())
    found = wal.segments(kept, SEGMENT_BYTES)

    gaps = [wal.find_gap(found, timeline=1, copied=copied) for copied in (1, 2, 5, 6, 7)]
    assert gaps == [2, 6, 6, None, None]
    assert wal.find_gap(found, timeline=2, copied=8) is None


def test_what_another_node_received_meanwhile_is_not_asked_for_again(tmp_path: Path) -> None:
    """A piece that was under way when this node stopped goes, where a later one, or all of it, is kept."""
    kept = tmp_path / "wal"
    for spool, begun in (("stopped", 3), ("stopped long ago", 2), ("newest", 4)):
        received(tmp_path / spool, 1, begun, whole=False, written=10)
    received(tmp_path / "other", 1, 3)
    wal.Shipper(tmp_path / "other", kept, key=None).ship(Stop())

    def forgotten(spool: str) -> int:
        return wal.Shipper(tmp_path / spool, kept, key=None).forget_superseded(SEGMENT_BYTES)

    assert [forgotten(spool) for spool in ("stopped", "stopped long ago", "newest")] == [1, 1, 0]
    assert [len(list((tmp_path / spool).iterdir())) for spool in ("stopped", "newest")] == [0, 1]


def test_a_spool_that_cannot_be_cleared_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is received until it can."""
    received(tmp_path / "spool", 1, 3, whole=False)
    received(tmp_path / "other", 1, 3)
    wal.Shipper(tmp_path / "other", tmp_path / "wal", key=None).ship(Stop())

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(BackupError, match="cannot clear"):
        wal.Shipper(tmp_path / "spool", tmp_path / "wal", key=None).forget_superseded(SEGMENT_BYTES)


def test_what_no_backup_needs_is_removed(tmp_path: Path) -> None:
    """Segments before the oldest backup's first one, on every timeline."""
    spool, kept = tmp_path / "spool", tmp_path / "wal"
    for number in (1, 2, 3):
        received(spool, 1, number)
    wal.Shipper(spool, kept, key=None).ship(Stop())
    assert wal.remove_before(kept, 3, SEGMENT_BYTES) == 2
    assert [one.number for one in wal.segments(kept, SEGMENT_BYTES)] == [3]


def test_a_segment_of_another_length_is_damaged(tmp_path: Path) -> None:
    """PostgreSQL would take it for the end of the log and go on without what follows."""
    spool, kept, target = tmp_path / "spool", tmp_path / "wal", tmp_path / "pg_wal"
    name = received(spool, 1, 1)
    (spool / name).write_bytes(b"short")
    wal.Shipper(spool, kept, key=None).ship(Stop())
    target.mkdir()
    with pytest.raises(DamagedBackupError, match="not as long as a segment"):
        wal.place(wal.segments(kept, SEGMENT_BYTES), target, SEGMENT_BYTES, key=None, stop=Stop())
    with pytest.raises(BackupError, match="cannot write"):
        wal.place(wal.segments(kept, SEGMENT_BYTES), tmp_path / "nowhere", SEGMENT_BYTES, key=None, stop=Stop())


def test_a_directory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is not there yet is empty."""
    assert wal.segments(tmp_path / "nowhere", SEGMENT_BYTES) == []
    (tmp_path / "file").touch()
    monkeypatch.setattr(wal, "FILES_MAX", 0)
    with pytest.raises(BackupError, match="more than 0 files"):
        wal.histories(tmp_path)
