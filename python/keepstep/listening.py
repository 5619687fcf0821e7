"""Listening sockets, and in plain words why one cannot be had."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from keepstep.errors import StartupError

BACKLOG: Final = 1024
"""Connections the system holds until they are accepted: a rush of devices after a restart fits."""
_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"
"""``TCP_LISTEN`` as /proc/net/tcp writes it."""


def bind(host: str, port: int, *, setting: str) -> list[socket.socket]:
    """Bound TCP sockets, not listening yet, one for each address that ``host`` stands for.

    Args:
        host: an address or a name; ``::`` takes IPv4 too.
        port: 0 takes a free one, the same for every address.
        setting: what to change where it fails; for the message.

    Raises:
        StartupError: the name is unknown, or the port is taken (by whom, where that can be seen) or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise StartupError(f"{setting.lower()}: there is no address {host!r} to listen on") from exc
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise StartupError(_why(exc, host, port, setting)) from exc
    return sockets


def _why(error: OSError, host: str, port: int, setting: str) -> str:
    """What to tell a person."""
    if error.errno == errno.EADDRINUSE:
        owner = find_owner(port)
        return (
            f"port {port} is in use{f' by {owner}' if owner else ''}.\n"
            f"Stop that, or set {setting} to another port (now {port})."
        )
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}.\nSet {setting} to a port from 1024 up (now {port})."
    return f"cannot listen on {host} port {port} ({setting}): {error.strerror}"


def find_owner(port: int, *, proc: Path = _PROC) -> str | None:
    """The process that listens on a TCP port, as ``name (process id)``; ``None`` where that cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port, proc)}
    if not inodes:
        return None
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        with suppress(OSError):  # gone meanwhile, or another user's
            for descriptor in (directory / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    # A process names itself, in any bytes.
                    name = (directory / "comm").read_bytes().strip().decode(errors="backslashreplace")
                    return f"{name if name.isprintable() else ascii(name)} (process {directory.name})"
    return None


def _listening_inodes(port: int, proc: Path) -> list[str]:
    """Inodes of the sockets that listen on a port: columns 2 (address:port), 4 (state), 10 (inode) of proc(5)."""
    inodes = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) == port and columns[3] == _LISTEN:
                    inodes.append(columns[9])
    return inodes
