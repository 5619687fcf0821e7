"""What a measurement ran on, what processes cost, which ports are free: read from ``/proc``, so on Linux only."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shlex
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_BLOCK_DEVICES: Final = Path("/sys/dev/block")
_SECTORS_WRITTEN: Final = 6
"""The place in a block device's ``stat``."""
_SECTOR_BYTES: Final = 512
_NANOSECONDS_PER_S: Final = 1e9
_KIBIBYTE: Final = 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a result comes from.

    Attributes:
        processor: model name.
        cores: that this process may use.
        memory_bytes: of the machine.
        kernel: name and release.
        file_system: type, of the data directory.
        python: version.
    """

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    file_system: str
    python: str


def describe_machine(data_dir: Path) -> Machine:
    """This machine, with the file system that holds ``data_dir``."""
    return Machine(
        processor=_field(_PROC / "cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=file_system(data_dir),
        python=platform.python_version(),
    )


def command_line(module: str, arguments: Sequence[str]) -> str:
    """How to do it again: the command without where its results went."""
    kept = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if "--output" not in (before, argument)
    ]
    return shlex.join(["python", "-m", module, *kept])


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` is on, as ``/proc/mounts`` names it."""
    resolved = path.resolve()
    mounts = [line.split(" ") for line in (_PROC / "mounts").read_text().splitlines()]
    holding = [fields for fields in mounts if resolved.is_relative_to(fields[1])]
    # The longest mount point is the nearest; of two at the same place the later one hides the other.
    return max(enumerate(holding), key=lambda each: (len(each[1][1]), each[0]))[1][2]


def commit() -> str:
    """The commit of this checkout, ``+`` appended where files differ from it; ``unknown`` outside of one."""
    root = Path(__file__).parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changed else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table: times in seconds of processor time, children that ended included."""

    pid: int
    parent: int
    name: str
    cpu_s: float


def read_process(pid: int) -> Process | None:
    """A process as ``/proc/<pid>/stat`` has it; ``None`` where it ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold any character, these included.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    user, system, user_of_children, system_of_children = (int(field) for field in fields[11:15])
    ticks = user + system + user_of_children + system_of_children
    return Process(pid, int(fields[1]), head.partition("(")[2], ticks / _TICKS_PER_S)


def process_tree(pid: int) -> list[Process]:
    """A process and everything below it; empty where it ended."""
    numbers = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    processes = {each: process for each in numbers if (process := read_process(each))}
    tree = [processes[pid]] if pid in processes else []
    for process in tree:  # grows while it is walked
        tree += [child for child in processes.values() if child.parent == process.pid]
    return tree


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds used so far by a server and by its database.

    Attributes:
        server_s: of all the server's threads.
        loop_s: of its event-loop thread alone, which is part of ``server_s``.
        database_s: of every PostgreSQL process.
    """

    server_s: float
    loop_s: float
    database_s: float

    def since(self, earlier: Cost) -> Cost:
        """What was used in between."""
        return Cost(
            self.server_s - earlier.server_s, self.loop_s - earlier.loop_s, self.database_s - earlier.database_s
        )


def cost(pid: int) -> Cost:
    """What a server with an embedded PostgreSQL has used; everything named ``postgres`` below it is the database."""
    tree = process_tree(pid)
    database_s = sum(process.cpu_s for process in tree if process.name == "postgres")
    return Cost(sum(process.cpu_s for process in tree) - database_s, main_thread_s(pid), database_s)


def main_thread_s(pid: int) -> float:
    """Processor seconds of a process's first thread, on which a server's event loop runs; 0 where it ended."""
    try:
        text = (_PROC / str(pid) / "task" / str(pid) / "schedstat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(text.split()[0]) / _NANOSECONDS_PER_S


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process, in bytes.

    Attributes:
        resident: RSS, pages shared between processes counted in each.
        proportional: PSS, shared pages divided among those that share them.
    """

    resident: int
    proportional: int


def memory(pid: int) -> Memory:
    """Memory of one process, its children not counted. Raises OSError where it ended."""
    rollup = _PROC / str(pid) / "smaps_rollup"
    return Memory(*(int(_field(rollup, name).split()[0]) * _KIBIBYTE for name in ("Rss", "Pss")))


def written_bytes(path: Path) -> int | None:
    """What everybody had written to the disk that ``path`` is on so far, in bytes; ``None`` where that is not known.

    What still waits in memory is written first. Of processes the kernel says something else: it counts all of a folio
    of the page cache, up to some MiB, each time a byte of it changes after an fsync.
    """
    os.sync()
    device = path.stat().st_dev
    try:
        fields = (_BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}" / "stat").read_text().split()
    except OSError:
        return None
    return int(fields[_SECTORS_WRITTEN]) * _SECTOR_BYTES


PORTS: Final = range(20_000, 32_000)
"""Below those that systems choose from by themselves, 32768 and above on Linux."""
_PORTS_BEGIN: Final = os.getpid() * 101 % len(PORTS)
_ports = itertools.cycle([*PORTS[_PORTS_BEGIN:], *PORTS[:_PORTS_BEGIN]])


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now.

    A port that the system chose could be chosen again, for a connection of any other process, before it is listened
    on. These it chooses for nobody; two processes look in different places, and one never gets the same port twice
    in a row.
    """
    found: list[int] = []
    for port in itertools.islice(_ports, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("every port is taken")
