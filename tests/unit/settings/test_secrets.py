"""Secrets from files: what is taken for one, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keepstep.settings.secrets import SECRET_FILE_BYTES_MAX, SecretFileError, read_secret


def secret(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    """A file with a secret in it."""
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"hunter2", b"hunter2\n", b"hunter2\r\n", b"hunter2\n\n"])
def test_line_ends_after_it_are_left_off(content: bytes, tmp_path: Path) -> None:
    """Editors and ``echo`` add them."""
    assert read_secret(str(secret(tmp_path, content))) == "hunter2"


def test_blanks_are_part_of_it(tmp_path: Path) -> None:
    """Nothing is guessed."""
    assert read_secret(str(secret(tmp_path, b" hunter 2 \n"))) == " hunter 2 "


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_owner_and_group_may_read_it(mode: int, tmp_path: Path) -> None:
    """A group is how containers share it with the server's user."""
    assert read_secret(str(secret(tmp_path, b"hunter2", mode))) == "hunter2"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff\xfe", "it is no text in UTF-8"),
        (b"x" * (SECRET_FILE_BYTES_MAX + 1), "it is larger than 4096 bytes"),
    ],
)
def test_what_is_no_secret_is_refused_unseen(content: bytes, why: str, tmp_path: Path) -> None:
    """The message says why."""
    with pytest.raises(SecretFileError) as refused:
        read_secret(str(secret(tmp_path, content)))
    assert str(refused.value) == why


def test_a_secret_that_everybody_can_read_is_refused_except_where_containers_get_them(tmp_path: Path) -> None:
    """Container runtimes mount them so, and shut others out themselves."""
    path = secret(tmp_path, b"hunter2", 0o444)
    with pytest.raises(SecretFileError, match=r"every user of this machine can read it \(mode 0444\)"):
        read_secret(str(path))
    assert read_secret(str(path), runtime_folder=tmp_path) == "hunter2"


def test_a_pipe_does_not_stop_the_server(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretFileError, match="it is no regular file"):
        read_secret(str(tmp_path / "pipe"))


def test_what_is_no_path_is_said_so() -> None:
    """As of a file that is not there."""
    with pytest.raises(SecretFileError, match="it is no path"):
        read_secret("nul\0byte")
    with pytest.raises(SecretFileError, match="reading it failed: No such file or directory"):
        read_secret("/nowhere/secret")
