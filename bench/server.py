"""The server that is measured: started here on an embedded PostgreSQL in a new directory, or one's own elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import psycopg

from bench.machine import free_ports
from keepstep.postgres.cluster import ADMIN_ROLE, DATABASE, PORT, ROLE
from keepstep.postgres.durability import Durability, check_durability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY: Final = Path(__file__).parents[1]
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
WAL_FILES: Final = 64
"""Of 16 MiB: what there is once a second checkpoint has ended, at ``max_wal_size`` 1 GiB (PostgreSQL's documentation,
"WAL Configuration")."""
LOG_SHOWN: Final = 2_000
"""Characters of a log's end that an error says."""

Ready = TypeVar("Ready")


class BenchError(Exception):
    """There is no result; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach a server.

    Attributes:
        rest_url: of REST and health.
        device_url: of devices, with the key that they pin.
        version: that it says it has.
    """

    rest_url: str
    device_url: str
    version: str


@dataclass(frozen=True, slots=True)
class Server(Target):
    """A server that was started here, so that what its processes cost can be read."""

    process: subprocess.Popen[bytes]
    data_dir: Path


@contextlib.contextmanager
def new_directory(parent: Path) -> Iterator[Path]:
    """A directory on the disk to measure, removed afterwards with what is in it. Raises BenchError."""
    try:
        made = tempfile.TemporaryDirectory(prefix="keepstep-bench-", dir=parent)
    except OSError as exc:
        raise BenchError(f"no directory can be made in {parent}: {exc.strerror}") from exc
    with made as name:
        yield Path(name)


@contextlib.contextmanager
def running_server(
    directory: Path, settings: Mapping[str, str] | None = None, *, python_path: Path | None = None
) -> Iterator[Server]:
    """``keepstep serve`` below ``directory``, with its own database, stopped afterwards. Raises BenchError.

    Args:
        directory: ``data`` in it is the data directory.
        settings: variables beside those that every benchmark takes.
        python_path: where the package is that is measured; ``None`` for this one.
    """
    rest_port, device_port = free_ports(2)
    data_dir = directory / "data"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")}
    environment.pop("DATABASE_URL", None)
    environment |= {
        "KEEPSTEP_DATA_DIR": str(data_dir),
        "KEEPSTEP_REST_PORT": str(rest_port),
        "KEEPSTEP_DEVICE_PORT": str(device_port),
        "KEEPSTEP_REGISTRATIONS_PER_ADDRESS_HOUR": "1000000",
        "KEEPSTEP_REGISTRATIONS_PER_HOUR": "1000000",
        # One address does here what many do elsewhere.
        "KEEPSTEP_REST_CALLS_PER_USER_MINUTE": "1000000",
        "KEEPSTEP_REST_CALLS_PER_ADDRESS_MINUTE": "1000000",
        "KEEPSTEP_LOG_LEVEL": "warning",
    } | dict(settings or {})
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    command = [sys.executable, "-m", "keepstep", "serve"]
    url = f"http://127.0.0.1:{rest_port}"
    with running_process(command, directory, lambda: _ask(url), environment=environment) as (process, about):
        yield Server(url, about["device_url"], about["version"], process, data_dir)


@contextlib.contextmanager
def running_process(
    command: Sequence[str],
    directory: Path,
    ask: Callable[[], Ready],
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], Ready]]:
    """A process and what it answered when it was ready; ended afterwards, with force where it does not end by itself.

    Args:
        command: its program and arguments.
        directory: that it runs in, with its log.
        ask: tried until it raises no OSError.
        environment: all of its variables; ``None`` for this process's own.

    Raises:
        BenchError: it ended, or did not become ready in time.
    """
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=directory)  # noqa: S603
    try:
        yield process, wait_until_ready(process, ask, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], ask: Callable[[], Ready], log: Path) -> Ready:
    """What ``ask`` gives, once it raises no OSError. Raises BenchError."""
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            return ask()
        except OSError:
            time.sleep(POLL_S)
    shown = log.read_text(errors="replace")[-LOG_SHOWN:]
    raise BenchError(f"{process.args!r} does not become ready: {shown}")


def _ask(url: str) -> dict[str, str]:
    """What the server says about itself. Raises OSError where it is not ready."""
    with urllib.request.urlopen(f"{url}/health/ready", timeout=POLL_S * 10):  # noqa: S310
        return about_server(url)


def about_server(url: str) -> dict[str, str]:
    """What a server says about itself at its REST address. Raises OSError where it does not answer."""
    with urllib.request.urlopen(f"{url}/api/v1/server", timeout=POLL_S * 10) as answer:  # noqa: S310
        about: dict[str, str] = json.load(answer)
        return about


def find_target(url: str) -> Target:
    """One's own server, by its REST address. Raises BenchError where none answers there."""
    try:
        about = about_server(url.rstrip("/"))
    except (OSError, ValueError) as exc:
        raise BenchError(f"no server answers at {url}: {exc}") from exc
    return Target(url.rstrip("/"), about["device_url"], about["version"])


def database_url(server: Server, role: str = ROLE) -> str:
    """The server's own database, as that role of it."""
    socket = quote(str(server.data_dir / "postgres" / "socket"), safe="")
    return f"postgresql://{role}@/{DATABASE}?host={socket}&port={PORT}"


def read_durability(server: Server) -> Durability:
    """What the server's database promises, asked of the database itself."""
    with psycopg.connect(database_url(server), autocommit=True) as connection:
        return check_durability(connection, unsafe=True)


def checkpoint(server: Server) -> None:
    """Have the server's database write what it still holds in memory, and begin a new log. Blocks."""
    with psycopg.connect(database_url(server, ADMIN_ROLE), autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def use_wal_files(server: Server) -> None:
    """Have the server's database make its WAL files, to be used again. Blocks some seconds.

    A new one is empty, and each sync of it has blocks to allocate. A new server meets that until it has them all
    and then no more.
    """
    with psycopg.connect(database_url(server, ADMIN_ROLE), autocommit=True) as connection:
        for _ in range(WAL_FILES):
            connection.execute("SELECT pg_logical_emit_message(false, 'bench', '')")
            connection.execute("SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")


def describe(durability: Durability, file_system: str) -> str:
    """One sentence that a result must not be shown without."""
    return (
        f"PostgreSQL {durability.version // 10_000}.{durability.version % 10_000} on {file_system}: "
        f"fsync {durability.fsync}, full_page_writes {durability.full_page_writes}, "
        f"synchronous_commit {durability.synchronous_commit}, "
        f"standbys waited for: {durability.standby_names or 'none'}"
    )
