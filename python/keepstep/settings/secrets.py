"""Secrets from files, as containers get them: ``ADMIN_API_KEY_FILE`` names the file that holds ``ADMIN_API_KEY``."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

SUFFIX: Final = "_FILE"
SECRET_FILE_BYTES_MAX: Final = 4_096
"""A secret is a line; a larger file is another one, named by mistake."""
RUNTIME_FOLDER: Final = Path("/run/secrets")
"""Where container runtimes mount secrets, readable by all by default: the container is what shuts others out."""


def is_open_to_all(path: Path, mode: int, *, runtime_folder: Path = RUNTIME_FOLDER) -> bool:
    """Whether every user of this machine may read a file, as far as its mode tells."""
    return bool(mode & stat.S_IROTH) and not path.absolute().is_relative_to(runtime_folder)


class SecretFileError(ValueError):
    """A file cannot be taken for a secret; the message says why, and nothing of what is in it."""


def read_secret(path: str, *, runtime_folder: Path = RUNTIME_FOLDER) -> str:
    """The secret in a file, without the line ends after it.

    Args:
        path: a regular file of at most ``SECRET_FILE_BYTES_MAX``, which not everybody on this machine may read.
        runtime_folder: below which everybody may.

    Raises:
        SecretFileError: it is not, it cannot be read, or there is nothing in it.
    """
    file = Path(path)
    try:
        # Without waiting: a named pipe that nobody writes to would stop the server here for good.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise SecretFileError("it is no regular file")
            content = opened.read(SECRET_FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise SecretFileError(f"reading it failed: {exc.strerror}") from exc
    except ValueError as exc:
        if isinstance(exc, SecretFileError):
            raise
        raise SecretFileError("it is no path") from exc
    if is_open_to_all(file, mode, runtime_folder=runtime_folder):
        raise SecretFileError(f"every user of this machine can read it (mode {stat.S_IMODE(mode):04o}); chmod o-r it")
    if len(content) > SECRET_FILE_BYTES_MAX:
        raise SecretFileError(f"it is larger than {SECRET_FILE_BYTES_MAX} bytes")
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise SecretFileError("it is no text in UTF-8") from exc
    if not secret:
        raise SecretFileError("it is empty")
    return secret
