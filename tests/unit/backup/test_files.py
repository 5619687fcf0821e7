"""Files of a backup: whole or not there, unreadable without the key, and any change noticed."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from keepstep.backup import files
from keepstep.backup.files import Stop, content_of, hash_file, read_sealed, write_sealed
from keepstep.backup.keyfile import BackupKey, make_key
from keepstep.errors import BackupError, DamagedBackupError

CONTENT = os.urandom(1000) * 3_000
"""About three megabytes, so that it takes more than one chunk."""


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> BackupKey | None:
    """Both ways of keeping a file."""
    return make_key(tmp_path / "key", now_ms=0) if request.param == "encrypted" else None


def read_all(path: Path, key: BackupKey | None) -> None:
    """Read a stream to its end, and find it too short."""
    with content_of(path, key=key, stop=Stop(), expected=None) as stream:
        while stream.read(1 << 20):
            pass
        raise BackupError("the stream ended early")


def read_some(path: Path, key: BackupKey | None) -> None:
    """Begin to read a stream, and fail for another reason."""
    with content_of(path, key=key, stop=Stop(), expected=None) as stream:
        stream.read(10)
        raise ValueError("enough")


def test_what_was_written_is_read(tmp_path: Path, key: BackupKey | None) -> None:
    """Compressed, perhaps encrypted, and hashed as it is on the disk."""
    written = write_sealed(io.BytesIO(CONTENT), tmp_path, "copy", key=key, stop=Stop())
    path = tmp_path / written.name
    assert (written.size_bytes, written.content_bytes) == (path.stat().st_size, len(CONTENT))
    assert written.size_bytes < len(CONTENT) / 100
    assert hash_file(path, stop=Stop()) == written.hash
    sink = io.BytesIO()
    read_sealed(path, sink, key=key, stop=Stop(), expected=written.hash)
    assert sink.getvalue() == CONTENT
    with content_of(path, key=key, stop=Stop(), expected=written.hash) as stream:
        assert stream.read(10) == CONTENT[:10]


def test_an_encrypted_file_shows_nothing_of_its_content(tmp_path: Path) -> None:
    """Not even where it does not compress."""
    secret = os.urandom(100_000)
    written = write_sealed(io.BytesIO(secret), tmp_path, "copy", key=make_key(tmp_path / "key", now_ms=0), stop=Stop())
    content = (tmp_path / written.name).read_bytes()
    assert not any(secret[start : start + 16] in content for start in range(0, len(secret), 1_000))


def test_a_flipped_bit_is_noticed(tmp_path: Path, key: BackupKey | None) -> None:
    """Wherever it is, by the hash at the latest."""
    written = write_sealed(io.BytesIO(CONTENT), tmp_path, "copy", key=key, stop=Stop())
    path = tmp_path / written.name
    whole = path.read_bytes()
    for place in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedBackupError, match="is damaged"):
            read_sealed(path, io.BytesIO(), key=key, stop=Stop(), expected=written.hash)
        with (
            pytest.raises(DamagedBackupError, match="is damaged"),
            content_of(path, key=key, stop=Stop(), expected=written.hash) as stream,
        ):
            stream.read()


def test_a_file_cut_short_is_noticed(tmp_path: Path, key: BackupKey | None) -> None:
    """Also by whoever reads it as a stream and finds it too short."""
    written = write_sealed(io.BytesIO(CONTENT), tmp_path, "copy", key=key, stop=Stop())
    path = tmp_path / written.name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedBackupError, match="is damaged"):
        read_all(path, key)


def test_whoever_reads_may_give_up(tmp_path: Path, key: BackupKey | None) -> None:
    """Its own error is what is raised, and no thread is left behind."""
    written = write_sealed(io.BytesIO(os.urandom(3_000_000)), tmp_path, "copy", key=key, stop=Stop())
    with pytest.raises(ValueError, match="enough"):
        read_some(tmp_path / written.name, key)


def test_another_key_is_said_so(tmp_path: Path) -> None:
    """The file is not damaged: whoever has the right key reads it."""
    written = write_sealed(io.BytesIO(b"x"), tmp_path, "copy", key=make_key(tmp_path / "key", now_ms=0), stop=Stop())
    path = tmp_path / written.name
    with pytest.raises(BackupError, match="it takes another key") as raised:
        read_sealed(path, io.BytesIO(), key=make_key(tmp_path / "other", now_ms=0), stop=Stop(), expected=None)
    assert not isinstance(raised.value, DamagedBackupError)
    with pytest.raises(BackupError, match="set KEEPSTEP_BACKUP_KEY_FILE"):
        read_sealed(path, io.BytesIO(), key=None, stop=Stop(), expected=None)


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, key: BackupKey | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor a draft of it."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keepstep.backup.files.os.fsync", full)
    with pytest.raises(BackupError, match="No space left on device"):
        write_sealed(io.BytesIO(b"x"), tmp_path, "copy", key=key, stop=Stop())
    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / "manifest.json", b"x")
    assert [path.name for path in tmp_path.iterdir() if path.name != "key"] == []


def test_a_source_that_fails_leaves_nothing_behind(tmp_path: Path, key: BackupKey | None) -> None:
    """Reading may fail as well as writing."""

    class Failing:
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(BackupError, match="Input/output error"):
        write_sealed(Failing(), tmp_path, "copy", key=key, stop=Stop())
    assert [path.name for path in tmp_path.iterdir() if path.name != "key"] == []


def test_work_is_ended_from_another_thread(tmp_path: Path, key: BackupKey | None) -> None:
    """Within a chunk, with what waits for something else told too; nothing is left behind."""
    written = write_sealed(io.BytesIO(CONTENT), tmp_path, "copy", key=key, stop=Stop())
    stop, called = Stop(), list[str]()
    with stop.calling(lambda: called.append("end")):
        stop.set()
    assert called == ["end"]
    with pytest.raises(BackupError, match="interrupted"):
        write_sealed(io.BytesIO(CONTENT), tmp_path, "other", key=key, stop=stop)
    with pytest.raises(BackupError, match="interrupted"):
        read_sealed(tmp_path / written.name, io.BytesIO(), key=key, stop=stop, expected=None)
    with pytest.raises(BackupError, match="interrupted"), stop.calling(called.clear):
        pass
    assert not list(tmp_path.glob("other*"))


def test_a_file_that_is_gone_is_said_so(tmp_path: Path) -> None:
    """In words, with its path."""
    with pytest.raises(BackupError, match=r"copy\.zst cannot be read: No such file"):
        read_sealed(tmp_path / "copy.zst", io.BytesIO(), key=None, stop=Stop(), expected=None)
    with pytest.raises(BackupError, match="cannot be read: No such file"):
        hash_file(tmp_path / "copy.zst", stop=Stop())
