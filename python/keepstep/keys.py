"""The server's identity key: made once, kept in the data directory, pinned by every device (protocol.md section 1)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keepstep._keepstep import ed25519_generate
from keepstep.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

    from keepstep.interfaces import Randomness

FILE_NAME: Final = "server.key"
_SEED_BYTES: Final = 32
_FILE_BYTES: Final = 2 * _SEED_BYTES + 1
"""The seed in hexadecimal and a line feed."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """The key devices pin.

    Attributes:
        public: Ed25519 public key, 32 bytes.
        secret: its seed, 32 bytes; never shown.
    """

    public: bytes
    secret: bytes = field(repr=False)


def load(data_dir: Path) -> ServerKey:
    """Read the key.

    Raises:
        StartupError: there is none, it can be read by others, or it is damaged; the message says what to do.
    """
    path = data_dir / FILE_NAME
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise StartupError(f"there is no server key at {path}; `keepstep serve` makes one at its first start") from None
    except OSError as exc:
        raise StartupError(f"the server key {path} cannot be read: {exc.strerror}") from exc
    if mode & 0o077:
        raise StartupError(
            f"the server key {path} can be read by other users (mode {mode:04o}); nobody else may hold it.\n"
            f"If you are sure that nobody read it: chmod 600 {path}"
        )
    try:
        seed = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        seed = b""
    if len(seed) != _SEED_BYTES:
        raise StartupError(
            f"the server key {path} is damaged: it should hold {2 * _SEED_BYTES} hexadecimal digits.\n"
            "Restore it from your backup. A new key would make every device refuse this server."
        )
    secret, public = ed25519_generate(seed)
    return ServerKey(public=public, secret=secret)


def load_or_create(data_dir: Path, randomness: Randomness) -> ServerKey:
    """Read the key, or make it where there is none.

    The file appears whole and readable by its owner alone, or not at all, also when two processes start at once.

    Raises:
        StartupError: as ``load``; or it cannot be written.
    """
    path = data_dir / FILE_NAME
    if not path.exists():
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path, randomness)
        except OSError as exc:
            raise StartupError(f"the server key {path} cannot be written: {exc.strerror}") from exc
    return load(data_dir)


def _create(path: Path, randomness: Randomness) -> None:
    """Write a new key beside its place, make it durable, then link it into place unless another process was first."""
    draft = path.with_name(f"{FILE_NAME}.{randomness.bytes(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(randomness.bytes(_SEED_BYTES).hex().encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return  # the other process' key is as good, and its devices may know it already
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink()
