"""The server's identity key and its file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keepstep import keys
from keepstep.client import crypto
from keepstep.errors import StartupError
from keepstep.protocol.codec import encode
from keepstep.protocol.succession import Announcement, verify_announcement
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


def test_a_digit_that_changed_does_not_pass_for_another_key(tmp_path: Path) -> None:
    """Every secret is one of some key, but not of the public key that stands beside it."""
    keys.load_or_create(tmp_path, CountedRandomness())
    path = tmp_path / keys.FILE_NAME
    secret, public = path.read_text().splitlines()
    for damaged in (f"{secret[:-1]}{'1' if secret[-1] == '0' else '0'}\n{public}\n", f"{secret}\n{'00' * 32}\n"):
        path.write_text(damaged)
        with pytest.raises(StartupError, match="secret and public key, are not a pair"):
            keys.load(tmp_path)


def test_a_key_without_its_public_half_is_read(tmp_path: Path) -> None:
    """As an earlier keepstep wrote it."""
    made = keys.load_or_create(tmp_path, CountedRandomness())
    path = tmp_path / keys.FILE_NAME
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert keys.load(tmp_path) == made


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


# -- the successor --------------------------------------------------------------------------------------------------


def announced(tmp_path: Path) -> Announcement:
    """A key with a successor that takes over at 1,000 ms."""
    keys.load_or_create(tmp_path, CountedRandomness("first"))
    return keys.announce_successor(tmp_path, CountedRandomness("second"), from_ms=1_000, until_ms=2_000)


def test_a_successor_is_announced_by_both_keys(tmp_path: Path) -> None:
    """It waits beside the key, which stays in force; the announcement verifies with the client's library."""
    announcement = announced(tmp_path)
    succession = verify_announcement(crypto, announcement)
    assert succession.old_key == keys.load(tmp_path).public
    assert succession.new_key == keys.load(tmp_path, name=keys.NEXT_FILE_NAME).public
    assert (succession.from_ms, succession.until_ms) == (1_000, 2_000)
    assert keys.load_announcements(tmp_path) == [announcement]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_successor_takes_over_when_its_time_has_come(tmp_path: Path) -> None:
    """Once; the announcement stays, for devices that were away."""
    announcement = announced(tmp_path)
    new_key = keys.load(tmp_path, name=keys.NEXT_FILE_NAME)
    assert not keys.take_over(tmp_path, now_ms=999)
    assert keys.take_over(tmp_path, now_ms=1_000)
    assert keys.load(tmp_path) == new_key
    assert not keys.take_over(tmp_path, now_ms=1_001)
    assert keys.load_announcements(tmp_path) == [announcement]
    following = keys.announce_successor(tmp_path, CountedRandomness("third"), from_ms=3_000, until_ms=4_000)
    assert verify_announcement(crypto, following).old_key == new_key.public
    assert keys.load_announcements(tmp_path) == [announcement, following]


def test_one_successor_is_announced_at_a_time(tmp_path: Path) -> None:
    """Devices would not know whom to believe."""
    announcement = announced(tmp_path)
    with pytest.raises(StartupError, match="announced already"):
        keys.announce_successor(tmp_path, CountedRandomness("third"), from_ms=1_000, until_ms=2_000)
    assert keys.load_announcements(tmp_path) == [announcement]


def test_an_announcement_that_was_interrupted_goes_on_with_the_key_it_made(tmp_path: Path) -> None:
    """The key was written, the announcement was not."""
    announced(tmp_path)
    made = keys.load(tmp_path, name=keys.NEXT_FILE_NAME)
    (tmp_path / keys.ANNOUNCEMENTS_FILE_NAME).unlink()
    again = keys.announce_successor(tmp_path, CountedRandomness("third"), from_ms=1_000, until_ms=2_000)
    assert verify_announcement(crypto, again).new_key == made.public


def test_a_server_without_a_successor_has_nothing_to_take_over(tmp_path: Path) -> None:
    """The ordinary start; also the first one, without any key."""
    assert not keys.take_over(tmp_path, now_ms=1)
    assert keys.load_announcements(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\x91", encode([(b"x", bytes(64), bytes(64))])])
def test_damaged_announcements_are_not_passed_on(tmp_path: Path, content: bytes) -> None:
    """The server does not start: devices could not verify them."""
    announced(tmp_path)
    (tmp_path / keys.ANNOUNCEMENTS_FILE_NAME).write_bytes(content)
    with pytest.raises(StartupError, match="damaged"):
        keys.take_over(tmp_path, now_ms=1)


def test_another_key_than_the_announced_one_does_not_take_over(tmp_path: Path) -> None:
    """Nor does a missing one."""
    announced(tmp_path)
    path = tmp_path / keys.NEXT_FILE_NAME
    path.write_text("11" * 32 + "\n")
    with pytest.raises(StartupError, match="not the key that was announced"):
        keys.take_over(tmp_path, now_ms=1_000)
    path.unlink()
    with pytest.raises(StartupError, match="there is no server key"):
        keys.take_over(tmp_path, now_ms=1_000)


def test_announcements_that_cannot_be_read_or_written_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain words, with the path."""
    announced(tmp_path)
    path = tmp_path / keys.ANNOUNCEMENTS_FILE_NAME

    def broken(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", broken)
        with pytest.raises(StartupError, match="cannot be put in its place: Permission denied"):
            keys.take_over(tmp_path, now_ms=1_000)
        path.unlink()
        with pytest.raises(StartupError, match=r"cannot be written into .*: Permission denied"):
            keys.announce_successor(tmp_path, CountedRandomness("third"), from_ms=1_000, until_ms=2_000)
    path.mkdir()
    with pytest.raises(StartupError, match="cannot be read: Is a directory"):
        keys.load_announcements(tmp_path)
