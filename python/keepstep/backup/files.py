"""A backup's files: compressed by zstd, encrypted in the format of age where there is a key, hashed by BLAKE3.

A file gets its name when all of it is on the disk: it is written under another one, fsynced, renamed, and the
directory is fsynced. Reading checks the hash that the manifest has. Everything here blocks and is bounded in memory;
``Stop`` ends it from another thread within one chunk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import pyrage
import zstandard
from blake3 import blake3

from keepstep.errors import BackupError, DamagedBackupError

if TYPE_CHECKING:
    from keepstep.backup.keyfile import BackupKey

COMPRESSION_LEVEL: Final = 3
"""zstd's own default: faster than a disk writes. Sealed payloads do not compress at any level."""
CHUNK_BYTES: Final = 1 << 20
"""Read and written at a time."""
WINDOW_BYTES_MAX: Final = 1 << 27
"""Memory that a damaged file can make decompression ask for."""
COMPRESSED_SUFFIX: Final = ".zst"
ENCRYPTED_SUFFIX: Final = ".age"
PARTIAL_SUFFIX: Final = ".writing"
"""What a file or directory is called until it is whole; whoever comes next removes it."""

_OTHER_KEY: Final = "it takes another key"


class Readable(Protocol):
    """What can be read from."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes; none at the end."""


class Writable(Protocol):
    """What can be written to."""

    def write(self, data: bytes, /) -> int:
        """Takes all of it."""


class Stop:
    """Set from another thread to end what runs in this one."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], object]] = []

    def set(self) -> None:
        """End it."""
        self._event.set()
        for callback in tuple(self._callbacks):
            callback()

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Have ``callback`` called when it is set while the block runs, to end what would wait for ever."""
        self._callbacks.append(callback)
        try:
            self.check()
            yield
        finally:
            self._callbacks.remove(callback)

    def check(self) -> None:
        """Raises BackupError where it is to end."""
        if self._event.is_set():
            raise BackupError("interrupted")


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it is on the disk.

    Attributes:
        name: of the file.
        size_bytes: on the disk.
        hash: BLAKE3 of its bytes, 32 bytes.
        content_bytes: before compression.
    """

    name: str
    size_bytes: int
    hash: bytes
    content_bytes: int


class _Counting:
    """A source that counts what is read from it, and can be stopped."""

    def __init__(self, source: Readable, stop: Stop) -> None:
        self._source = source
        self._stop = stop
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        self._stop.check()
        data = self._source.read(size)
        self.count += len(data)
        return data


class _Hashing:
    """A file being written, hashed as it goes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = blake3()
        self.count = 0

    def write(self, data: bytes, /) -> int:
        self.hash.update(data)
        self.count += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is fsynced once."""


class _HashingSource:
    """A file being read, hashed as it goes."""

    def __init__(self, file: IO[bytes], stop: Stop) -> None:
        self._file = file
        self._stop = stop
        self.hash = blake3()

    def read(self, size: int = -1, /) -> bytes:
        self._stop.check()
        data = self._file.read(size)
        self.hash.update(data)
        return data


class _Decompressing:
    """Passes on what it is given, decompressed."""

    def __init__(self, sink: Writable) -> None:
        self._sink = sink
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompressobj()

    @property
    def is_whole(self) -> bool:
        """Whether the end was reached."""
        return self._decompressor.eof

    def write(self, data: bytes, /) -> int:
        self._sink.write(self._decompressor.decompress(data))
        return len(data)

    def flush(self) -> None:
        """Nothing: nothing is held back."""


class _Pipe:
    """The writing end of a pipe, and whether the reader went away."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.is_broken = False

    def write(self, data: bytes, /) -> int:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._file.write(rest) :]
            except BrokenPipeError:
                self.is_broken = True
                raise
        return len(data)

    def flush(self) -> None:
        """Nothing: it is not buffered."""


def sealed_name(name: str, key: BackupKey | None) -> str:
    """What a file is called once it is compressed and, with a key, encrypted."""
    return f"{name}{COMPRESSED_SUFFIX}{ENCRYPTED_SUFFIX if key is not None else ''}"


def write_sealed(source: Readable, directory: Path, name: str, *, key: BackupKey | None, stop: Stop) -> Written:
    """Compress, encrypt where there is a key, and write a file that is whole once it has its name.

    Raises:
        BackupError: it cannot be written; the message says why. Nothing is left behind.
    """
    final = directory / sealed_name(name, key)
    draft = final.with_name(f"{final.name}{PARTIAL_SUFFIX}")
    counting = _Counting(source, stop)
    try:
        with draft.open("wb", buffering=CHUNK_BYTES) as file:
            sink = _Hashing(file)
            compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
            with compressor.stream_reader(counting, read_size=CHUNK_BYTES) as compressed:  # type: ignore[arg-type]
                if key is None:
                    while chunk := compressed.read(CHUNK_BYTES):
                        sink.write(chunk)
                else:
                    pyrage.encrypt_io(compressed, sink, [key.recipient])
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
        sync_directory(directory)
    except (OSError, pyrage.EncryptError) as error:
        stop.check()
        raise BackupError(f"cannot write {final}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return Written(final.name, sink.count, sink.hash.digest(), counting.count)


def read_sealed(path: Path, sink: Writable, *, key: BackupKey | None, stop: Stop, expected: bytes | None) -> None:
    """Decrypt and decompress a file into ``sink``, which must discard what it was given where this raises.

    Args:
        path: of the file; its name says whether it is encrypted.
        sink: takes the content.
        key: for an encrypted file.
        stop: ends it.
        expected: BLAKE3 of the file, or ``None`` where nothing says what it is.

    Raises:
        BackupError: it is damaged, cannot be read, or takes another key.
    """
    identity = _identity(path, key)
    try:
        with path.open("rb", buffering=CHUNK_BYTES) as file:
            source = _HashingSource(file, stop)
            decompressing = _Decompressing(sink)
            if identity is not None:
                pyrage.decrypt_io(source, decompressing, [identity])
            else:
                while chunk := source.read(CHUNK_BYTES):
                    decompressing.write(chunk)
            if not decompressing.is_whole:
                raise DamagedBackupError(f"{path} is damaged: it ends early")
            while source.read(CHUNK_BYTES):  # what follows the end of the content counts for the hash as well
                pass
    except (OSError, zstandard.ZstdError, pyrage.DecryptError) as error:
        stop.check()
        reason = _reason(error)
        # The library's own findings come as OSError too, without the operating system's number.
        if reason == _OTHER_KEY or (isinstance(error, OSError) and error.errno is not None):
            raise BackupError(f"{path} cannot be read: {reason}") from error
        raise DamagedBackupError(f"{path} is damaged: {reason}") from error
    if expected is not None and source.hash.digest() != expected:
        raise DamagedBackupError(f"{path} is damaged: it is not what its manifest says")


def _identity(path: Path, key: BackupKey | None) -> object | None:
    """The secret that opens a file, or ``None`` for one that is not encrypted. Raises BackupError."""
    if not path.name.endswith(ENCRYPTED_SUFFIX):
        return None
    if key is None:
        raise BackupError(f"{path} is encrypted: set KEEPSTEP_BACKUP_KEY_FILE to the key it was encrypted with")
    return key.identity()


def hash_file(path: Path, *, stop: Stop) -> bytes:
    """BLAKE3 of a file. Raises BackupError."""
    try:
        with path.open("rb", buffering=0) as file:
            source = _HashingSource(file, stop)
            while source.read(CHUNK_BYTES):
                pass
            return source.hash.digest()
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that is whole once it has its name. Raises OSError."""
    draft = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def content_of(path: Path, *, key: BackupKey | None, stop: Stop, expected: bytes | None) -> Iterator[IO[bytes]]:
    """A file's content to read from, decrypted and decompressed by a thread that ends with the block.

    Raises:
        BackupError: as ``read_sealed``, at the end of the block at the latest.
    """
    reading, writing = os.pipe()
    failures: list[BackupError] = []

    def feed() -> None:
        with os.fdopen(writing, "wb", buffering=0) as file:
            sink = _Pipe(file)
            try:
                read_sealed(path, sink, key=key, stop=stop, expected=expected)
            except BackupError as error:
                if not sink.is_broken:
                    failures.append(error)

    thread = threading.Thread(target=feed, name="keepstep-backup-reader")
    thread.start()
    try:
        with os.fdopen(reading, "rb", buffering=CHUNK_BYTES) as source:
            yield source
            while source.read(CHUNK_BYTES):
                pass
    finally:
        thread.join()
        if failures:
            raise failures[0]


def _reason(error: BaseException) -> str:
    """Why something failed, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).partition("\n")[0]
    return _OTHER_KEY if "No matching keys" in text else text[:200] or type(error).__name__
