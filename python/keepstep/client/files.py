"""Files that must be there whole or not at all, and that only their owner reads."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from keepstep.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says when a file cannot be made, as a message for people. Raises ClientError."""
    try:
        yield
    except OSError as exc:
        raise ClientError(f"{path} cannot be written: {exc.strerror}") from exc


def make_private(path: Path) -> None:
    """Make an empty file of mode 0600 where nothing is. Raises FileExistsError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in place of ``path``: on the disk when this returns, mode 0600, never half.

    Raises:
        ClientError: it cannot be written there.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        beside.unlink(missing_ok=True)
        make_private(beside)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        move_into_place(beside, path)


def move_into_place(beside: Path, path: Path) -> None:
    """Rename within a directory, and have the name on the disk when this returns."""
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
