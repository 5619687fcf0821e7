"""The server's identity key: made once, kept in the data directory, pinned by every device (protocol.md section 1).

Its successor is made and announced ahead of time, so that devices know it when it takes its place: at the first start
at or after the time that the announcement names. Announcements are kept, for devices that were away meanwhile.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
import trio
from msgspec import Meta

from keepstep import _keepstep
from keepstep._keepstep import ed25519_generate
from keepstep.errors import ProtocolError, StartupError, Unavailable
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.succession import ANNOUNCEMENT_BYTES_MAX, Announcement, announce, verify_announcement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keepstep.interfaces import Randomness, Threads
    from keepstep.protocol.succession import Succession

T = TypeVar("T")

FILE_NAME: Final = "server.key"
NEXT_FILE_NAME: Final = "server.key.next"
"""The successor's seed, from its announcement until it takes the place of the other."""
ANNOUNCEMENTS_FILE_NAME: Final = "server.announcements"
ANNOUNCEMENTS_MAX: Final = 64
"""Announcements that are kept, the latest: with one a year as long as anybody keeps a device."""
_ANNOUNCEMENTS: Final[msgspec.msgpack.Decoder[list[Announcement]]] = msgspec.msgpack.Decoder(
    Annotated[list[Announcement], Meta(max_length=ANNOUNCEMENTS_MAX)]
)
_ANNOUNCEMENTS_BYTES_MAX: Final = ANNOUNCEMENTS_MAX * ANNOUNCEMENT_BYTES_MAX + 8
_SEED_BYTES: Final = 32
_LINE_BYTES: Final = 2 * _SEED_BYTES + 1
_FILE_BYTES_MAX: Final = 2 * _LINE_BYTES
"""A line for the seed and one for the public key, in hexadecimal: every seed is a key, so a digit that changed would
otherwise pass for another server. A file without the second line was made by a keepstep that did not write it."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """The key devices pin.

    Attributes:
        public: Ed25519 public key, 32 bytes.
        secret: its seed, 32 bytes; never shown.
    """

    public: bytes
    secret: bytes = field(repr=False)


def load(data_dir: Path, *, name: str = FILE_NAME) -> ServerKey:
    """Read the key, or its successor.

    Raises:
        StartupError: there is none, it can be read by others, or it is damaged; the message says what to do.
    """
    path = data_dir / name
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise StartupError(f"there is no server key at {path}; `keepstep serve` makes one at its first start") from None
    except OSError as exc:
        raise StartupError(f"the server key {path} cannot be read: {exc.strerror}") from exc
    if mode & 0o077:
        raise StartupError(
            f"the server key {path} can be read by other users (mode {mode:04o}); nobody else may hold it.\n"
            f"If you are sure that nobody read it: chmod 600 {path}"
        )
    key, written_public = _parse(content)
    if key is None:
        raise StartupError(
            f"the server key {path} is damaged: it should hold two lines of {2 * _SEED_BYTES} hexadecimal digits.\n"
            "Restore it from your backup. A new key would make every device refuse this server."
        )
    if written_public not in (None, key.public):
        raise StartupError(
            f"the server key {path} is damaged: its two lines, secret and public key, are not a pair.\n"
            "Restore it from your backup. A new key would make every device refuse this server."
        )
    return key


def _parse(content: bytes) -> tuple[ServerKey | None, bytes | None]:
    """The key in a file, ``None`` where it is none, and the public key as it is written there, if it is."""
    try:
        lines = [bytes.fromhex(line) for line in content.decode("ascii").splitlines()]
    except ValueError:
        return None, None
    if len(content) > _FILE_BYTES_MAX or len(lines) not in (1, 2) or any(len(line) != _SEED_BYTES for line in lines):
        return None, None
    secret, public = ed25519_generate(lines[0])
    return ServerKey(public=public, secret=secret), lines[1] if len(lines) == 2 else None


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
    try:
        seed, public = ed25519_generate(randomness.bytes(_SEED_BYTES))
        _write(draft, f"{seed.hex()}\n{public.hex()}\n".encode("ascii"))
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return  # the other process' key is as good, and its devices may know it already
        _sync_names(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """A new file that its owner alone reads, on the disk when this returns."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_names(data_dir: Path) -> None:
    """Have the names of its files on the disk."""
    directory = os.open(data_dir, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# -- the successor --------------------------------------------------------------------------------------------------


def load_announcements(data_dir: Path) -> list[Announcement]:
    """The announcements of successors, the oldest first, each verified.

    Raises:
        StartupError: the file is damaged or cannot be read.
    """
    path = data_dir / ANNOUNCEMENTS_FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StartupError(f"the announcements in {path} cannot be read: {exc.strerror}") from exc
    try:
        announcements = decode_strict(_ANNOUNCEMENTS, data, "announcements", bytes_max=_ANNOUNCEMENTS_BYTES_MAX)
        for announcement in announcements:
            verify_announcement(_keepstep, announcement)
    except ProtocolError as exc:
        raise StartupError(f"the announcements in {path} are damaged: restore the file from your backup") from exc
    return announcements


def announce_successor(data_dir: Path, randomness: Randomness, *, from_ms: int, until_ms: int) -> Announcement:
    """Make the server's next identity key, and announce it.

    Args:
        data_dir: where both keys are.
        randomness: for the new key.
        from_ms: unix milliseconds from which the new key may take the old one's place.
        until_ms: unix milliseconds from which devices take the old one for an impostor's.

    Raises:
        StartupError: there is no key, a successor is announced already, or it cannot be written.
    """
    key = load(data_dir)
    announcements = load_announcements(data_dir)
    if announcements and verify_announcement(_keepstep, announcements[-1]).old_key == key.public:
        raise StartupError("the next server key is announced already; it takes over first")
    try:
        if not (data_dir / NEXT_FILE_NAME).exists():
            _create(data_dir / NEXT_FILE_NAME, randomness)
        successor = load(data_dir, name=NEXT_FILE_NAME)
        announcement = announce(
            _keepstep, old_secret=key.secret, new_secret=successor.secret, from_ms=from_ms, until_ms=until_ms
        )
        data = encode([*announcements, announcement][-ANNOUNCEMENTS_MAX:])
        draft = data_dir / f"{ANNOUNCEMENTS_FILE_NAME}.{randomness.bytes(8).hex()}"
        _write(draft, data)
        draft.replace(data_dir / ANNOUNCEMENTS_FILE_NAME)
        _sync_names(data_dir)
    except OSError as exc:
        raise StartupError(f"the next server key cannot be written into {data_dir}: {exc.strerror}") from exc
    return announcement


def take_over(data_dir: Path, *, now_ms: int) -> bool:
    """Put an announced successor in its place, if its time has come; whether it was put there now.

    Raises:
        StartupError: the successor that was announced is not there, or cannot be put in its place.
    """
    announcements = load_announcements(data_dir)
    if not announcements:
        return False
    succession = verify_announcement(_keepstep, announcements[-1])
    if now_ms < succession.from_ms or load(data_dir).public != succession.old_key:
        return False
    path = data_dir / NEXT_FILE_NAME
    if load(data_dir, name=NEXT_FILE_NAME).public != succession.new_key:
        raise StartupError(f"{path} is not the key that was announced: restore it from your backup")
    try:
        path.replace(data_dir / FILE_NAME)
        _sync_names(data_dir)
    except OSError as exc:
        raise StartupError(f"the server key {path} cannot be put in its place: {exc.strerror}") from exc
    return True


class ServerKeys:
    """``administration.ServerKeys``: the successor of the key in a data directory, for a running server.

    Args:
        data_dir: where the keys are.
        randomness: for a new key.
        threads: where files are read and written.
        announced: called when a successor has been announced here.
    """

    def __init__(
        self, data_dir: Path, randomness: Randomness, threads: Threads, announced: Callable[[], None] = lambda: None
    ) -> None:
        self._data_dir = data_dir
        self._randomness = randomness
        self._threads = threads
        self._announced = announced
        self._limiter = trio.CapacityLimiter(1)

    async def successor(self) -> Succession | None:
        """As ``ServerKeys.successor``. A cancellation waits for the file."""
        return await self._run(self._successor)

    async def announce(self, *, from_ms: int, until_ms: int) -> Succession:
        """As ``ServerKeys.announce``. A cancellation waits for the files."""

        def work() -> Succession:
            if self._successor() is not None:
                raise ProtocolError("unexpected", "the next server key is announced already")
            announcement = announce_successor(self._data_dir, self._randomness, from_ms=from_ms, until_ms=until_ms)
            return verify_announcement(_keepstep, announcement)

        succession = await self._run(work)
        self._announced()
        return succession

    def _successor(self) -> Succession | None:
        announcements = load_announcements(self._data_dir)
        if not announcements:
            return None
        succession = verify_announcement(_keepstep, announcements[-1])
        return succession if succession.old_key == load(self._data_dir).public else None

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await self._threads.run(work, limiter=self._limiter)
        except StartupError as exc:
            raise Unavailable("the server's keys cannot be read or written") from exc
