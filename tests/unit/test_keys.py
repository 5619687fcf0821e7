"""The server's identity key and its file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keepstep import keys
from keepstep.client import crypto
from keepstep.errors import StartupError
from tests.support.parts import CountedRandomness


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    """The second start finds the first one's key, whatever randomness says then."""
    made = keys.load_or_create(tmp_path, CountedRandomness("first"))
    assert keys.load_or_create(tmp_path, CountedRandomness("second")) == made
    assert keys.load(tmp_path) == made
    assert crypto.ed25519_public(made.secret) == made.public


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask; and no draft stays behind."""
    before = os.umask(0)
    try:
        keys.load_or_create(tmp_path, CountedRandomness())
    finally:
        os.umask(before)
    assert (tmp_path / keys.FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [keys.FILE_NAME]


def test_the_secret_does_not_show(tmp_path: Path) -> None:
    """Printing a key prints the public half."""
    key = keys.load_or_create(tmp_path, CountedRandomness())
    assert repr(key.secret) not in repr(key)
    assert repr(key.public) in repr(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says what to do, and nothing was changed."""
    keys.load_or_create(tmp_path, CountedRandomness())
    path = tmp_path / keys.FILE_NAME
    path.chmod(mode)
    with pytest.raises(StartupError, match=f"mode {mode:04o}.*\n.*chmod 600"):
        keys.load_or_create(tmp_path, CountedRandomness())
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("content", [b"", b"00" * 31 + b"\n", b"00" * 33 + b"\n", b"zz" * 32 + b"\n", b"\xff" * 65])
def test_a_damaged_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    """Devices would refuse a new one: the file stays, and the message says to restore it."""
    path = tmp_path / keys.FILE_NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StartupError, match="damaged"):
        keys.load_or_create(tmp_path, CountedRandomness())
    assert path.read_bytes() == content


def test_a_missing_key_is_made_by_serve_only(tmp_path: Path) -> None:
    """``load`` alone says so and makes none."""
    with pytest.raises(StartupError, match="keepstep serve"):
        keys.load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_key_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    """For instance because it is a directory."""
    (tmp_path / keys.FILE_NAME).mkdir()
    with pytest.raises(StartupError, match="cannot be read"):
        keys.load(tmp_path)


def test_a_key_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """For instance because its directory is a file."""
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot be written"):
        keys.load_or_create(tmp_path / "file", CountedRandomness())


def test_the_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """With the directories above it."""
    keys.load_or_create(tmp_path / "new" / "data", CountedRandomness())
    assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_the_first_of_two_servers_that_start_at_once_wins(tmp_path: Path) -> None:
    """The one that comes second takes the key that is there by then, and leaves no draft."""

    class Late(CountedRandomness):
        """Another process makes the key while this one draws its own."""

        def bytes(self, count: int) -> bytes:
            if count == 32:
                keys.load_or_create(tmp_path, CountedRandomness("first"))
            return super().bytes(count)

    late = keys.load_or_create(tmp_path, Late("late"))
    assert late == keys.load(tmp_path)
    assert late.secret != CountedRandomness("late").bytes(32)
    assert [file.name for file in tmp_path.iterdir()] == [keys.FILE_NAME]
