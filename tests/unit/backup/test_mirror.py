"""What is outside the database: copied when it changes, put back without writing over anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep import keys
from keepstep.backup import mirror
from keepstep.backup.files import Stop
from keepstep.backup.keyfile import make_key
from keepstep.backup.mirror import Mirror, node_name, restore_journal, restore_keys
from keepstep.errors import BackupError
from keepstep.runtime import SystemRandomness


def journal(data_dir: Path, content: bytes, name: str = "00000001.journal") -> Path:
    """A journal file as a server writes it."""
    path = data_dir / mirror.JOURNAL / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_journal_comes_back_beside_what_is_there(tmp_path: Path, encrypted: bool) -> None:
    """Of every node, in a directory of its own; the newest copy of each file."""
    key = make_key(tmp_path / "key", now_ms=0) if encrypted else None
    system = tmp_path / "system"
    for node in ("one", "two"):
        journal(tmp_path / node, b"first")
        copies = Mirror(tmp_path / node, system, key=key)
        copies.update(Stop())
        journal(tmp_path / node, f"{node} and more".encode())
        copies.update(Stop())
    kept = journal(tmp_path / "restored", b"kept by hand")
    assert restore_journal(system, tmp_path / "restored", key=key, stop=Stop()) == 2
    assert kept.read_bytes() == b"kept by hand"
    found = {path.read_bytes() for path in (tmp_path / "restored" / mirror.JOURNAL).glob("*/*.journal")}
    assert found == {b"one and more", b"two and more"}


def test_a_restored_server_never_writes_over_the_journal_of_the_one_before(tmp_path: Path) -> None:
    """It is another node, whatever its machine and directory are called."""
    system = tmp_path / "system"
    journal(tmp_path / "server", b"before the restore")
    Mirror(tmp_path / "server", system, key=None).update(Stop())
    first = node_name(tmp_path / "server")
    assert node_name(tmp_path / "server") == first
    (tmp_path / "server").rename(tmp_path / "lost")
    restore_journal(system, tmp_path / "server", key=None, stop=Stop())
    journal(tmp_path / "server", b"after the restore")
    Mirror(tmp_path / "server", system, key=None).update(Stop())
    assert node_name(tmp_path / "server") != first
    restore_journal(system, tmp_path / "third", key=None, stop=Stop())
    found = {path.read_bytes() for path in (tmp_path / "third" / mirror.JOURNAL).glob("*/*.journal")}
    assert found == {b"before the restore", b"after the restore"}


def test_what_has_not_changed_is_not_copied_again(tmp_path: Path) -> None:
    """Every few seconds costs nothing while nothing happens."""
    journal(tmp_path / "server", b"x")
    copies = Mirror(tmp_path / "server", tmp_path / "system", key=None)
    copies.update(Stop())
    (copy,) = (tmp_path / "system").rglob("*.zst")
    copy.unlink()
    copies.update(Stop())
    assert not copy.exists()


def test_keys_are_kept_under_their_own_name(tmp_path: Path) -> None:
    """Only encrypted; a server with a new key leaves the old one's where they are."""
    key, system, data_dir = make_key(tmp_path / "key", now_ms=0), tmp_path / "system", tmp_path / "server"
    old = keys.load_or_create(data_dir, SystemRandomness())
    Mirror(data_dir, system, key=None).update(Stop())
    assert not (system / mirror.KEYS).exists()
    Mirror(data_dir, system, key=key).update(Stop())
    (data_dir / keys.FILE_NAME).unlink()
    new = keys.load_or_create(data_dir, SystemRandomness())
    Mirror(data_dir, system, key=key).update(Stop())
    for wanted in (old, new):
        target = tmp_path / wanted.public.hex()
        assert restore_keys(system, wanted.public.hex(), target, key=key, stop=Stop()) == 1
        assert keys.load(target) == wanted
        assert restore_keys(system, wanted.public.hex(), target, key=key, stop=Stop()) == 0, "what is there stays"


def test_what_cannot_be_copied_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be away on either side, or hold more than anybody makes."""
    journal(tmp_path / "server", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="cannot copy the journal: Not a directory"):
        Mirror(tmp_path / "server", tmp_path / "file" / "system", key=None).update(Stop())
    Mirror(tmp_path / "server", tmp_path / "system", key=None).update(Stop())
    with pytest.raises(BackupError, match="cannot write"):
        restore_journal(tmp_path / "system", tmp_path / "file" / "server", key=None, stop=Stop())
    monkeypatch.setattr(mirror, "FILES_MAX", 0)
    with pytest.raises(BackupError, match="more than 0 files"):
        Mirror(tmp_path / "server", tmp_path / "system", key=None).update(Stop())
