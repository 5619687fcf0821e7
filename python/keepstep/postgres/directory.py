"""What PostgreSQL does not do for its directory by itself: one owner at a time, and a short way to its socket."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from keepstep.errors import StartupError

SOCKET_PATH_BYTES_MAX: Final = 107 if sys.platform == "linux" else 103
"""What fits into ``sockaddr_un`` before its terminating zero."""
_PRIVATE_MODE: Final = 0o700


class DirectoryLock:
    """The data directory belongs to this process until ``release`` or its end, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        """Take it.

        Raises:
            StartupError: another process has it; the message gives its process id.
            OSError: the file cannot be made.
        """
        self._descriptor = os.open(data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StartupError(
                f"another keepstep (process {owner}) runs with the data directory {data_dir}: "
                "stop it, or set KEEPSTEP_DATA_DIR to another directory"
            ) from None
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, b"%d\n" % os.getpid())

    def release(self) -> None:
        """Let others have it. The file stays: removing it would let two processes lock two files of one name."""
        os.close(self._descriptor)


def short_link(socket_directory: Path) -> Path:
    """The link that ``SocketAddress`` makes where a socket's own path is too long."""
    private = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"keepstep-{os.geteuid()}"
    return private / hashlib.blake2s(os.fsencode(socket_directory), digest_size=8).hexdigest()


class SocketAddress:
    """The directory by which clients reach a socket, short enough for ``connect``.

    Where the socket's own path is too long that is a link to its directory, in a private directory below
    ``XDG_RUNTIME_DIR`` or the system's temporary directory.
    """

    def __init__(self, socket_directory: Path, file_name: str) -> None:
        """Make the link where one is needed.

        Raises:
            StartupError: that path is too long as well, or the private directory is not ours alone.
            OSError: it cannot be made.
        """
        self._link: Path | None = None
        self.directory = socket_directory
        if len(os.fsencode(socket_directory / file_name)) <= SOCKET_PATH_BYTES_MAX:
            return
        link = short_link(socket_directory)
        private = link.parent
        if len(os.fsencode(link / file_name)) > SOCKET_PATH_BYTES_MAX:
            raise StartupError(
                f"the paths {socket_directory} and {private} are too long for a socket: "
                "set KEEPSTEP_DATA_DIR or TMPDIR to a shorter one"
            )
        private.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        status = private.lstat()
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid != os.geteuid()
            or stat.S_IMODE(status.st_mode) != _PRIVATE_MODE
        ):
            raise StartupError(f"{private} must be a directory that only its owner, user {os.geteuid()}, may enter")
        link.unlink(missing_ok=True)
        link.symlink_to(socket_directory)
        self.directory = self._link = link

    def remove(self) -> None:
        """Take the link away again."""
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # links of other servers are in it
                self._link.parent.rmdir()
