"""The embedded PostgreSQL's directory: locked, made, configured, and freed of whoever still runs in it.

``data_dir/postgres`` holds ``data`` (PostgreSQL's own), ``socket`` (0700: the only way in) and ``log``. It belongs to
the account PostgreSQL runs as. Everything here blocks; ``keepstep.postgres.embedded`` calls it in worker threads.

Where that account is not the server's, it need not be able to reach the directory by its path: ``data`` is
PostgreSQL's working directory from before it gives up root, it is named ``/proc/self/cwd`` to PostgreSQL, and all else
is relative to it. And since that account may be shared with others (``nobody``), root follows no link of its making.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import quote

import psutil
import psycopg

from keepstep.errors import StartupError
from keepstep.postgres import guardian
from keepstep.postgres.directory import DirectoryLock, SocketAddress
from keepstep.postgres.installation import Account, Installation, find_account, find_installation
from keepstep.postgres.isolation import READER_ROLE
from keepstep.postgres.slowqueries import SLOW_QUERY_MS, embedded_settings

if TYPE_CHECKING:
    from keepstep.config import Settings

DATABASE: Final = "keepstep"
ROLE: Final = "keepstep"
"""Owns the database and nothing else; the server connects as it."""
ADMIN_ROLE: Final = "postgres"
"""The superuser: makes role and database, and later backups."""
PORT: Final = 5432
"""Only part of the socket's file name."""
CONNECTIONS_MAX: Final = 64
"""At most 16 pipelines, 32 readers, and a few for migrations, clean-up and people."""
START_TIMEOUT_S: Final = 300.0
"""Seconds until PostgreSQL accepts connections: 0.3 in general, a minute where it replays ``max_wal_size`` of WAL."""
INIT_TIMEOUT_S: Final = 120
"""Seconds for initdb, which takes one or two."""
OUTPUT_TAIL_BYTES: Final = 2_000
"""How much of what a program said last goes into an error message."""
_PARTIAL_PREFIX: Final = "postgres.partial-"
_LOCK_FILE: Final = "postmaster.pid"
_LOCK_FILE_BYTES_MAX: Final = 4_096
_POLL_S: Final = 0.02
_STATUS_LINE: Final = 7
"""Index of the line of the lock file that says ``ready``."""

SETTINGS: Final = f"""\
# Written by keepstep at every start. To change a value use ALTER SYSTEM, which has precedence.
max_connections = {CONNECTIONS_MAX}
shared_buffers = 128MB                    # modest: the newest events come from keepstep's own memory
wal_compression = on                      # index pages in the WAL shrink well; the payloads in it cannot
max_wal_size = 1GB                        # bounds the disk it takes and the time to recover after a crash
min_wal_size = 256MB                      # files that are used again are synced faster than new ones
wal_init_zero = off                       # a new file is made in 0.3 ms, not in the 30 to 70 in which nothing commits
max_slot_wal_keep_size = 4GB              # a backup that takes nothing any more must not fill the disk
checkpoint_timeout = 15min                # each checkpoint makes the next change of every page a whole page of WAL
autovacuum_vacuum_cost_delay = 10ms       # it goes over all that was stored; a fourth of a core at the default 2ms
backend_flush_after = 512kB               # what COPY wrote is on its way before a checkpoint syncs it
random_page_cost = 1.1                    # solid state
jit = off                                 # compiling takes longer than our short statements
max_parallel_workers_per_gather = 0       # every hot query reads a few pages by key; the cores are the server's
idle_in_transaction_session_timeout = 60s # a stuck client must not hold locks for ever
timezone = 'UTC'
lc_messages = 'C'
logging_collector = on                    # bounded: a file for each day of the week
log_directory = '../log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
"""
"""What fits this job on a small machine; operators may overrule it."""
ENFORCED_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_directories": "../socket",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # What macOS calls fsync leaves the data in the drive's cache.
    **({"wal_sync_method": "fsync_writethrough"} if sys.platform == "darwin" else {}),
}
"""Given on the command line, which nothing overrules: how it is reached, and that an ack means durable."""


def open_cluster(settings: Settings) -> Cluster:
    """Lock the data directory, and make the cluster in it if it is not there: whole, or not at all.

    Raises:
        StartupError: it cannot be used; the message says why and what to do.
    """
    account = find_account(settings.embedded_user)
    installation = find_installation(account)
    data_dir = settings.data_dir
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise PermissionError(
                f"it belongs to user {_user_name(data_dir.stat().st_uid)}, who must let us write there"
            )
        lock = DirectoryLock(data_dir)
        try:
            home = data_dir / "postgres"
            for interrupted in data_dir.glob(f"{_PARTIAL_PREFIX}*"):
                shutil.rmtree(interrupted, ignore_errors=True)  # its initdb may still be ending, and clears up too
            _check_owner(home, account)
            if not (home / "data").exists():
                _initialise(home, account, installation)
            _check_version(home, installation)
            address = SocketAddress(home / "socket", f".s.PGSQL.{PORT}")
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise StartupError(
            f"cannot keep the embedded PostgreSQL in {data_dir}: {error}; "
            "set KEEPSTEP_DATA_DIR to a directory that this user may write, or DATABASE_URL"
        ) from error
    return Cluster(
        home,
        account=account,
        installation=installation,
        address=address,
        lock=lock,
        slow_query_ms=settings.slow_query_ms,
    )


def _initialise(home: Path, account: Account, installation: Installation) -> None:
    """Make a cluster beside its place and move it there when it is complete. Raises StartupError, OSError."""
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL_PREFIX, dir=home.parent))
    for directory in (partial, partial / "data", partial / "socket", partial / "log"):
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, account.uid, account.gid)
    arguments = ("-U", ADMIN_ROLE, "-E", "UTF8", "--locale=C", "--auth=peer", "--no-instructions")
    command = guarded(partial / "data", account, installation, "initdb", *arguments)
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(  # noqa: S603  # our own guardian
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output, start_new_session=True
        ) as process:
            try:
                status = process.wait(INIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                status = -1  # leaving the block closes standard input, upon which the guardian ends
        said = tail(output)
    if status != 0:
        shutil.rmtree(partial)
        full = "the disk is full: " if "No space left on device" in said else ""
        raise StartupError(f"cannot make the embedded PostgreSQL in {home}: {full}{said or 'initdb took too long'}")
    partial.rename(home)
    descriptor = os.open(home.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _check_owner(home: Path, account: Account) -> None:
    """Refuse a directory of another user, which PostgreSQL would too. Raises StartupError, OSError."""
    owner = home.stat().st_uid if home.exists() else account.uid
    if owner != account.uid:
        raise StartupError(
            f"{home} belongs to user {_user_name(owner)} and this PostgreSQL would run as {account.name}: start "
            "keepstep as that user (or, as root, with KEEPSTEP_EMBEDDED_USER), or set another KEEPSTEP_DATA_DIR"
        )


def _check_version(home: Path, installation: Installation) -> None:
    """Refuse files of another major version, which PostgreSQL would too. Raises StartupError, OSError."""
    made_by = (home / "data" / "PG_VERSION").read_text("ascii").strip()
    if made_by != str(installation.major):
        raise StartupError(
            f"{home} was made by PostgreSQL {made_by} and this keepstep carries {installation.major}: run "
            "keepstep database upgrade, or go on with the earlier keepstep, or set another KEEPSTEP_DATA_DIR"
        )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def guarded(directory: Path, account: Account, installation: Installation, program: str, *arguments: str) -> list[str]:
    """The command line of the guardian that runs one of PostgreSQL's programs on a data directory."""
    identity = ("--uid", str(account.uid), "--gid", str(account.gid)) if account.other else ()
    named = "/proc/self/cwd" if account.other and sys.platform == "linux" else str(directory)
    return [
        *(sys.executable, "-I", guardian.__file__, "--directory", str(directory), *identity, "--"),
        *(str(installation.programs / program), "-D", named, *arguments),
    ]


def tail(output: IO[bytes]) -> str:
    """The end of what a program wrote, as text."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - OUTPUT_TAIL_BYTES))
    return output.read().decode("utf-8", "replace").strip()


def _has_ended(process: psutil.Process, bound_s: float) -> bool:
    """Whether somebody else's child ends in time. One that nobody reaps has ended (there may be no init process)."""
    give_up_s = time.monotonic() + bound_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > give_up_s:
                return False
            time.sleep(_POLL_S)
    return True


class Cluster:
    """One data directory, locked for this process, and how to run PostgreSQL in it. Made by ``open_cluster``."""

    start_timeout_s = START_TIMEOUT_S

    def __init__(
        self,
        home: Path,
        *,
        account: Account,
        installation: Installation,
        address: SocketAddress,
        lock: DirectoryLock,
        slow_query_ms: int = SLOW_QUERY_MS,
    ) -> None:
        self.account = account
        self._slow_query_ms = slow_query_ms
        self.home = home
        self._data = home / "data"
        self._installation = installation
        self._address = address
        self._lock = lock
        self._old_lock_file: list[str] = []

    def url(self, database: str = DATABASE, *, role: str = ROLE) -> str:
        """The connection URL; works for the server's own operating system user only."""
        return f"postgresql://{role}@/{database}?host={quote(str(self._address.directory), safe='')}&port={PORT}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles as which the server's own user connects."""
        return ROLE, ADMIN_ROLE

    @property
    def extra_settings(self) -> Mapping[str, str]:
        """More that nothing overrules."""
        return {}

    @property
    def command(self) -> list[str]:
        """The command line that runs PostgreSQL for as long as its standard input is open."""
        values = {**ENFORCED_SETTINGS, **self.extra_settings}
        settings = [argument for name, value in values.items() for argument in ("-c", f"{name}={value}")]
        return guarded(self._data, self.account, self._installation, "postgres", *settings)

    def prepare(self) -> None:
        """Make the directory ready for a start: nobody runs in it, and its configuration is today's.

        Raises:
            StartupError: a PostgreSQL that runs in it does not end, within ``guardian.STOP_SIGNALS``.
            OSError: the configuration cannot be written.
        """
        self._old_lock_file = self._read_lock_file()
        with contextlib.suppress(IndexError, ValueError):
            self._free_from(int(self._old_lock_file[0]))
        own_name = pwd.getpwuid(os.geteuid()).pw_name
        self.write("postgresql.conf", SETTINGS + embedded_settings(self._slow_query_ms))
        self.write("pg_hba.conf", "local all all peer map=keepstep\nlocal replication all peer map=keepstep\n")
        self.write("pg_ident.conf", "".join(f'keepstep "{own_name}" "{role}"\n' for role in self.roles))

    def is_ready(self, pid: int) -> bool:
        """Whether the PostgreSQL with this process id accepts connections."""
        lines = self._read_lock_file()
        return (
            len(lines) > _STATUS_LINE
            and lines[0] == str(pid)
            and lines[_STATUS_LINE].strip() == "ready"
            and lines != self._old_lock_file
        )

    def ensure_database(self) -> None:
        """Make roles and database where they are not there yet. Raises psycopg.Error."""
        with psycopg.connect(self.url("postgres", role=ADMIN_ROLE), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount:
                connection.execute(f"CREATE ROLE {ROLE} LOGIN IN ROLE pg_monitor")
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [READER_ROLE]).rowcount:
                connection.execute(f"CREATE ROLE {READER_ROLE} NOLOGIN ROLE {ROLE}")
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")

    def close(self) -> None:
        """Give the directory free. Call it when PostgreSQL has ended."""
        self._address.remove()
        self._lock.release()

    def _read_lock_file(self) -> list[str]:
        """The lines of PostgreSQL's lock file; none where there is no such file."""
        with contextlib.suppress(FileNotFoundError), self._directory("data") as directory:
            descriptor = os.open(_LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            with os.fdopen(descriptor, "rb") as file:
                return file.read(_LOCK_FILE_BYTES_MAX).decode("ascii", "replace").splitlines()
        return []

    def _free_from(self, pid: int) -> None:
        """End the PostgreSQL that the lock file names, if it is one and runs here. Raises StartupError, OSError."""
        process = self._postgres(pid)
        if process is not None:
            for signal_number, bound_s in guardian.STOP_SIGNALS:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal_number)
                if _has_ended(process, bound_s):
                    break
            else:
                raise StartupError(f"PostgreSQL (process {pid}) still runs in {self.home} and cannot be stopped")
        if psutil.pid_exists(pid):
            # The number has been given to a process that is none of ours (it happens in every container), and
            # PostgreSQL would refuse to start. Its own check that nobody is attached to the old one's memory remains.
            for directory, name in (("data", _LOCK_FILE), ("socket", f".s.PGSQL.{PORT}.lock")):
                with contextlib.suppress(FileNotFoundError), self._directory(directory) as descriptor:
                    os.unlink(name, dir_fd=descriptor)

    def _postgres(self, pid: int) -> psutil.Process | None:
        """The process, if it is a PostgreSQL that runs in this directory."""
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(pid)
            if process.uids().real == self.account.uid and process.cwd() == os.path.realpath(self._data):
                return process
        return None

    def write(self, name: str, text: str) -> None:
        """Replace a file of the data directory. Raises OSError."""
        partial = f"{name}.partial"
        with self._directory("data") as directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=directory)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchown(descriptor, self.account.uid, self.account.gid)
                file.write(text)
            os.replace(partial, name, src_dir_fd=directory, dst_dir_fd=directory)

    @contextlib.contextmanager
    def _directory(self, name: str) -> Iterator[int]:
        """A descriptor of one of our directories, never of one that a link leads to."""
        descriptor = os.open(self.home / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
