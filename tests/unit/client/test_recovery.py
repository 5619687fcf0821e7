"""The recovery file: sealed, complete, private, and refused when it is anything else."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import msgspec
import pytest

from keepstep.client import crypto
from keepstep.client.recovery import Cost, Recovery, RecoveryFile, read_recovery_file
from keepstep.errors import ClientError
from tests.support.device_server import CHEAP, PASSPHRASE

SALT = b"s" * crypto.PASSWORD_SALT_BYTES
NONCE = b"n" * crypto.XCHACHA_NONCE_BYTES
RECOVERY = Recovery(
    version=1,
    root_secret=b"r" * 32,
    next_root_secret=b"n" * 32,
    user_key=b"u" * 32,
    server_key=b"s" * 32,
    server_url="ws://server.test/v1/connect",
    heads={"$devices": (1, b"c" * 32)},
    content_keys=[(b"e" * 16, 1, b"k" * 32, b"i" * 32)],
    created_at_ms=1,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recovery file."""
    file = tmp_path / "recovery.txt"
    RecoveryFile(PASSPHRASE, salt=SALT, cost=CHEAP).write(file, RECOVERY, nonce=NONCE)
    return file


def test_a_recovery_file_opens_with_its_passphrase(path: Path) -> None:
    """Everything is in it; and it is text that can be printed, which only its owner reads."""
    assert read_recovery_file(path, PASSPHRASE) == RECOVERY
    assert path.read_text().startswith("-----BEGIN KEEPSTEP RECOVERY FILE-----\n")
    assert max(map(len, path.read_text().splitlines())) <= 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_of_it_is_in_clear(path: Path) -> None:
    """Not the keys, not the user, not the server."""
    sealed = base64.b64decode("".join(path.read_text().splitlines()[1:-1]))
    assert not any(secret in sealed for secret in (b"r" * 32, b"u" * 32, b"k" * 32, b"server.test"))
    assert repr(RECOVERY) == f"Recovery({RECOVERY.user_key.hex()})"


def test_another_passphrase_does_not_open_it(path: Path) -> None:
    """And the message does not tell it from a changed file."""
    with pytest.raises(ClientError, match="another passphrase, or the file was changed"):
        read_recovery_file(path, PASSPHRASE + "x")


def test_keyboards_compose_accents_differently(tmp_path: Path) -> None:
    """One passphrase, typed on two machines."""
    path = tmp_path / "recovery.txt"
    RecoveryFile("caf\u00e9 au lait noir", salt=SALT, cost=CHEAP).write(path, RECOVERY, nonce=NONCE)
    assert read_recovery_file(path, "cafe\u0301 au lait noir") == RECOVERY


def test_it_is_replaced_whole(path: Path) -> None:
    """Written again under the same passphrase."""
    changed = msgspec.structs.replace(RECOVERY, heads={})
    RecoveryFile(PASSPHRASE, salt=SALT, cost=CHEAP).write(path, changed, nonce=NONCE)
    assert read_recovery_file(path, PASSPHRASE) == changed
    assert [file.name for file in path.parent.iterdir()] == ["recovery.txt"]


def test_a_place_that_cannot_be_written_is_told_plainly(tmp_path: Path) -> None:
    """A directory that is not there."""
    with pytest.raises(ClientError, match=r"none/recovery\.txt cannot be written: No such file or directory"):
        RecoveryFile(PASSPHRASE, salt=SALT, cost=CHEAP).write(tmp_path / "none" / "recovery.txt", RECOVERY, nonce=NONCE)


def test_a_short_passphrase_is_refused() -> None:
    """The file may be copied, and guessed at for as long as somebody likes."""
    with pytest.raises(ClientError, match="at least 12"):
        RecoveryFile("too short", salt=SALT, cost=CHEAP)


@pytest.mark.parametrize(
    "content",
    ["", "hello", "-----BEGIN KEEPSTEP RECOVERY FILE-----\n%%%\n-----END KEEPSTEP RECOVERY FILE-----"],
)
def test_another_file_is_told_apart(tmp_path: Path, content: str) -> None:
    """Empty, some text, and something between the right lines."""
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ClientError, match="is not a recovery file"):
        read_recovery_file(path, PASSPHRASE)


@pytest.mark.parametrize("cost", [Cost(17, 8192), Cost(1, 2 * 1024**3)])
def test_a_file_that_asks_for_too_much_work_is_refused(path: Path, cost: Cost) -> None:
    """It would be an attack on whoever opens it."""
    sealed = bytearray(base64.b64decode("".join(path.read_text().splitlines()[1:-1])))
    sealed[8:20] = cost.passes.to_bytes(4, "big") + cost.memory_bytes.to_bytes(8, "big")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], base64.b64encode(sealed).decode(), lines[-1]]))
    with pytest.raises(ClientError, match="more work"):
        read_recovery_file(path, PASSPHRASE)


def test_another_versions_file_is_told_apart(tmp_path: Path) -> None:
    """It opens, and holds something else."""
    path = tmp_path / "recovery.txt"
    later = msgspec.structs.replace(RECOVERY, server_url=7)
    RecoveryFile(PASSPHRASE, salt=SALT, cost=CHEAP).write(path, later, nonce=NONCE)
    with pytest.raises(ClientError, match="another version"):
        read_recovery_file(path, PASSPHRASE)
