"""The key that backups are encrypted with: a file of age, so that ``age`` itself opens them when all else fails.

The file holds the secret (``AGE-SECRET-KEY-…``), or only what encrypts to it (``age1…``): a server that has only that
makes backups which whoever steals the server cannot read, and which it cannot verify either.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyrage

from keepstep.errors import BackupError

FILE_BYTES_MAX: Final = 4_096
_SECRET_PREFIX: Final = "AGE-SECRET-KEY-1"  # noqa: S105 - what every one begins with
_PUBLIC_PREFIX: Final = "age1"


@dataclass(frozen=True, slots=True)
class BackupKey:
    """What encrypts, and perhaps what decrypts.

    Attributes:
        public: the recipient, ``age1…``.
        recipient: the same for the library.
        secret: for the library; ``None`` where the file has only the public half. Never shown.
        path: of the file.
    """

    public: str
    recipient: Any
    secret: Any = field(repr=False)
    path: Path

    def identity(self) -> object:
        """The secret. Raises BackupError where the file has none."""
        if self.secret is None:
            raise BackupError(
                f"{self.path} holds only the public half of the key: name the file with the secret half by "
                "KEEPSTEP_BACKUP_KEY_FILE"
            )
        secret: object = self.secret
        return secret


def load_key(path: Path) -> BackupKey:
    """Read a key file; lines that begin with # are comments.

    Raises:
        BackupError: it cannot be read, others can read its secret, or it holds no key, or more than one.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise BackupError(f"the backup key {path} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise BackupError(f"the backup key {path} must hold one key, and holds {len(lines)}")
    try:
        if lines[0].startswith(_SECRET_PREFIX):
            if mode & 0o077:
                raise BackupError(
                    f"the backup key {path} can be read by other users (mode {mode:04o}): chmod 600 {path}"
                )
            secret = pyrage.x25519.Identity.from_str(lines[0])
            recipient = secret.to_public()
        else:
            secret, recipient = None, pyrage.x25519.Recipient.from_str(lines[0])
    except (pyrage.IdentityError, pyrage.RecipientError) as error:
        raise BackupError(
            f"the backup key {path} is damaged: {_SECRET_PREFIX}… or {_PUBLIC_PREFIX}… expected"
        ) from error
    return BackupKey(str(recipient), recipient, secret, path)


def make_key(path: Path, *, now_ms: int) -> BackupKey:
    """Make a key and write it to a new file that its owner alone reads.

    Raises:
        BackupError: there is such a file already, or it cannot be written.
    """
    secret = pyrage.x25519.Identity.generate()
    made = datetime.fromtimestamp(now_ms / 1000, UTC)
    content = f"# keepstep backup key of {made:%Y-%m-%d}; whoever has it reads the backups\n"
    content += f"# public key: {secret.to_public()}\n{secret}\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as error:
        if error.filename == str(path.parent):
            raise BackupError(f"the backup key {path} cannot be written: {path.parent} is no directory") from None
        raise BackupError(f"there is a file {path} already; without the key in it old backups cannot be read") from None
    except OSError as error:
        raise BackupError(f"the backup key {path} cannot be written: {error.strerror}") from error
    return load_key(path)
