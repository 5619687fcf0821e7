"""The keys that sign access tokens: in one file in the data directory, replaced without locking anybody out.

The newest key signs. A key that was replaced goes on verifying until the longest token that it may have signed has
run out; then it is gone. Processes on one data directory share the file: whoever meets a key it does not know reads it
again, and changes are made under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from keepstep.accesstokens import SigningKey
from keepstep.errors import ProtocolError, StartupError

if TYPE_CHECKING:
    from keepstep.interfaces import Randomness

FILE_NAME: Final = "token-keys.json"
KEYS_MAX: Final = 8
"""Keys that verify at the same time; above it another rotation has to wait, or to give up the old keys at once."""
SECRET_BYTES: Final = 32
_FILE_BYTES_MAX: Final = 16 * 1024
_VERSION: Final = 1


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key; ``verifies_until_ms`` is null for the one that signs."""

    secret: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * SECRET_BYTES}}}$")]
    made_at_ms: int
    verifies_until_ms: int | None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file: first the key that signs, then older ones."""

    version: int
    keys: Annotated[list[_Key], Meta(min_length=1, max_length=KEYS_MAX)]


class TokenKeyFile:
    """The keys of one data directory. Methods that touch the file block.

    Args:
        data_dir: where the file is.
        randomness: for new keys.
    """

    def __init__(self, data_dir: Path, randomness: Randomness) -> None:
        self._path = data_dir / FILE_NAME
        self._randomness = randomness
        self._keys: list[tuple[SigningKey, int | None]] = []

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        return self._keys[0][0]

    def valid(self, now_ms: int) -> list[SigningKey]:
        """The keys whose signatures count now, the one that signs first."""
        return [key for key, until_ms in self._keys if until_ms is None or until_ms > now_ms]

    def open(self, now_ms: int) -> None:
        """Read the file, or make it with a first key. The directory is there.

        Raises:
            StartupError: it cannot be read or written, can be read by others, or is damaged; says what to do.
        """
        with self._locked():
            content = self._read()
            if content is None:
                content = _File(_VERSION, [_Key(self._randomness.bytes(SECRET_BYTES).hex(), now_ms, None)])
                self._write(content)
        self._take(content)

    def reload(self) -> None:
        """Read the file again, where it is there. Raises StartupError: as ``open``."""
        content = self._read()
        if content is not None:
            self._take(content)

    def rotate(self, now_ms: int, *, overlap_ms: int) -> None:
        """Let a new key sign; on the disk when this returns.

        Args:
            now_ms: unix milliseconds.
            overlap_ms: how much longer the key before it verifies; 0: neither it nor older ones do any more, for keys
                that somebody may have.

        Raises:
            ProtocolError: ``limit_exceeded``: too many keys verify still.
            StartupError: the file cannot be read or written; the keys are as before.
        """
        with self._locked():
            content = self._read()
            keys = [] if content is None or not overlap_ms else list(content.keys)
            kept = [
                msgspec.structs.replace(key, verifies_until_ms=until_ms)
                for key in keys
                for until_ms in [now_ms + overlap_ms if key.verifies_until_ms is None else key.verifies_until_ms]
                if until_ms > now_ms
            ]
            if len(kept) >= KEYS_MAX:
                oldest_ms = min(key.verifies_until_ms or 0 for key in kept)
                raise ProtocolError(
                    "limit_exceeded", "too many keys still verify tokens", retry_after_ms=oldest_ms - now_ms
                )
            new = _Key(self._randomness.bytes(SECRET_BYTES).hex(), now_ms, None)
            content = _File(_VERSION, [new, *kept])
            self._write(content)
        self._take(content)

    def _take(self, content: _File) -> None:
        self._keys = [
            (SigningKey.from_secret(bytes.fromhex(key.secret)), key.verifies_until_ms) for key in content.keys
        ]

    def _read(self) -> _File | None:
        try:
            with self._path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StartupError(f"the token keys {self._path} cannot be read: {exc.strerror}") from exc
        if mode & 0o077:
            raise StartupError(
                f"the token keys {self._path} can be read by other users (mode {mode:04o}); who has them can pass for\n"
                f"any device over REST. If you are sure that nobody read them: chmod 600 {self._path}\n"
                "If you are not, delete the file: new keys are made, and every REST client has to authenticate anew."
            )
        try:
            decoded = msgspec.json.decode(content, type=_File)
        except msgspec.DecodeError as exc:
            raise self._damaged() from exc
        if decoded.version != _VERSION or [key.verifies_until_ms is None for key in decoded.keys].count(True) != 1:
            raise self._damaged()
        return decoded

    def _damaged(self) -> StartupError:
        return StartupError(
            f"the token keys {self._path} are damaged. Delete the file: new keys are made, and every REST client has\n"
            "to authenticate anew; nothing else is lost."
        )

    def _write(self, content: _File) -> None:
        """Put the file in place whole, durably, readable by its owner alone."""
        draft = self._path.with_name(f"{FILE_NAME}.{self._randomness.bytes(8).hex()}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self._path)
            finally:
                draft.unlink(missing_ok=True)
            with self._directory() as descriptor:
                os.fsync(descriptor)
        except OSError as exc:
            raise StartupError(f"the token keys {self._path} cannot be written: {exc.strerror}") from exc

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process changes the file meanwhile."""
        with self._directory() as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path.parent, os.O_RDONLY)
        except OSError as exc:
            raise StartupError(f"the folder of {self._path} cannot be opened: {exc.strerror}") from exc
        try:
            yield descriptor
        finally:
            os.close(descriptor)
