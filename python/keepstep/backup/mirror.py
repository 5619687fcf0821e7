"""What is outside the database and must outlive the disk as well: the journal, and in encrypted backups the keys.

Each node keeps its journal up to date in ``<system>/journal/<node>``; the server's own keys are in
``<system>/keys/<public key>``, so that a server started with a new key never replaces the old one's. Where backups are
not encrypted the keys are not there: whoever read them could play the server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keepstep import keys, tokenkeys
from keepstep.backup.files import PARTIAL_SUFFIX, Stop, read_sealed, write_sealed, write_whole
from keepstep.backup.wal import plain_name
from keepstep.errors import BackupError

if TYPE_CHECKING:
    from keepstep.backup.keyfile import BackupKey

JOURNAL: Final = "journal"
"""Directory in ``data_dir`` of what must be known after a restore, and in the backups of its copies."""
KEYS: Final = "keys"
KEY_FILES: Final = (keys.FILE_NAME, keys.NEXT_FILE_NAME, keys.ANNOUNCEMENTS_FILE_NAME, tokenkeys.FILE_NAME)
"""Files of ``data_dir`` that belong to the server's identity."""
FILES_MAX: Final = 10_000
"""Journal files looked at."""
NODE_FILE: Final = "backup/node"
"""In ``data_dir``: what this node's copies are called."""
_NODE_RANDOM_BYTES: Final = 8


class Mirror:
    """Keeps copies of files of ``data_dir``; a file is copied again when its size or time changes. Blocks.

    Args:
        data_dir: of this node.
        system_dir: of the database's backups.
        key: encrypts the copies.
    """

    def __init__(self, data_dir: Path, system_dir: Path, *, key: BackupKey | None) -> None:
        self._data_dir = data_dir
        self._system_dir = system_dir
        self._key = key
        self._known: dict[Path, tuple[int, int]] = {}

    def update(self, stop: Stop) -> None:
        """Copy what changed. Raises BackupError, StartupError where the server's key is damaged."""
        try:
            journal = self._data_dir / JOURNAL
            node = node_name(self._data_dir)
            for path in _files(journal):
                parent = path.relative_to(journal).parent  # of another node, or of one that was restored
                self._copy(path, self._system_dir / JOURNAL / (node if parent == Path() else parent), stop)
            if self._key is not None and (self._data_dir / keys.FILE_NAME).exists():
                place = self._system_dir / KEYS / keys.load(self._data_dir).public.hex()
                for name in KEY_FILES:
                    if (self._data_dir / name).exists():
                        self._copy(self._data_dir / name, place, stop)
        except OSError as error:
            raise BackupError(f"cannot copy the journal: {error.strerror}") from error

    def _copy(self, path: Path, place: Path, stop: Stop) -> None:
        status = path.stat()
        state = status.st_size, status.st_mtime_ns
        if self._known.get(path) == state:
            return
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("rb") as file:
            write_sealed(file, place, path.name, key=self._key, stop=stop)
        self._known[path] = state


def node_name(data_dir: Path) -> str:
    """What a node's copies are called: by its machine and a number made for each data directory. Raises OSError.

    A server that was restored has a new one, and so never writes over the journal of the one before it.
    """
    path = data_dir / NODE_FILE
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        machine = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname()[:32])
        write_whole(path, f"{machine or 'node'}-{secrets.token_hex(_NODE_RANDOM_BYTES)}\n".encode())
    return path.read_text("utf-8").strip()


def restore_journal(system_dir: Path, data_dir: Path, *, key: BackupKey | None, stop: Stop) -> int:
    """Put every node's journal below ``data_dir``, beside what is there; returns how many files. Raises BackupError."""
    source = system_dir / JOURNAL
    count = 0
    for path in _files(source):
        target = data_dir / JOURNAL / path.relative_to(source).parent
        _restore(path, target, key=key, stop=stop)
        count += 1
    return count


def restore_keys(system_dir: Path, server_key: str, data_dir: Path, *, key: BackupKey | None, stop: Stop) -> int:
    """Put the server's own keys into ``data_dir`` where they are not there; returns how many. Raises BackupError."""
    count = 0
    for path in _files(system_dir / KEYS / server_key):
        if plain_name(path) in KEY_FILES and not (data_dir / plain_name(path)).exists():
            _restore(path, data_dir, key=key, stop=stop)
            count += 1
    return count


def _restore(path: Path, target: Path, *, key: BackupKey | None, stop: Stop) -> None:
    final = target / plain_name(path)
    draft = target / f"{plain_name(path)}{PARTIAL_SUFFIX}"
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            read_sealed(path, file, key=key, stop=stop, expected=None)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
    except OSError as error:
        raise BackupError(f"cannot write {final}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _files(directory: Path) -> list[Path]:
    """Files in a directory and those in it, in order. Raises OSError, BackupError."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(PARTIAL_SUFFIX)]
    if len(found) > FILES_MAX:
        raise BackupError(f"{directory} holds more than {FILES_MAX} files")
    return sorted(found)
