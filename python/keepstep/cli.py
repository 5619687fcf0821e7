"""The command line: ``keepstep serve | migrate | keys | check-config``, ``admin``, and the commands of a device.

Parses, calls, prints. A user gets plain words and an exit code, never a traceback: 0 done, 1 cannot, 2 wrong usage,
70 a fault of keepstep, 78 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

import keepstep
from keepstep.client.server import DEFAULT_REST_URL
from keepstep.errors import ConfigError, KeepstepError, StartupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from keepstep.account_file import AccountFile
    from keepstep.account_import import Imported
    from keepstep.config import Settings
    from keepstep.server import Started

EXIT_FAILED: Final = 1
EXIT_FAULT: Final = 70
"""``EX_SOFTWARE`` of sysexits.h."""
EXIT_CONFIG: Final = 78
"""``EX_CONFIG`` of sysexits.h."""
EXIT_INTERRUPTED: Final = 130
DAY_MS: Final = 24 * 60 * 60 * 1000
FRAMES_SHOWN: Final = 6
"""Places shown of an exception that is a fault of ours, the innermost first."""

_SERVER_PACKAGES: Final = frozenset(
    {
        "cryptography",
        "flask_swagger_ui",
        "hypercorn",
        "jwt",
        "prometheus_client",
        "psutil",
        "psycopg",
        "pydantic",
        "pydantic_settings",
        "quart",
        "quart_trio",
        "structlog",
    }
)


class _Commands(click.Group):
    """Our commands, and those of other modules, which are imported only when one of them is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *_other_commands()})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return super().get_command(context, name) or _other_commands().get(name)


def _other_commands() -> Mapping[str, click.Command]:
    """``admin``, and those of a device: ``device``, ``publish``, ``tail``, ``token`` and so on."""
    from keepstep.admin_cli import admin
    from keepstep.client.account_cli import commands as device_commands
    from keepstep.client.leaving_cli import delete_account, export_account
    from keepstep.client.link_cli import link_group

    others = (admin, delete_account, export_account, link_group)
    return {**device_commands.commands, **{str(command.name): command for command in others}}


@click.group(cls=_Commands)
@click.version_option(keepstep.__version__, prog_name="keepstep")
def commands() -> None:
    """keepstep keeps one person's devices in step without being able to read what they say."""


# -- serve ----------------------------------------------------------------------------------------------------------


@commands.command()
@click.option("--unsafe", is_flag=True, help="Start even where PostgreSQL may lose what it acknowledged.")
def serve(unsafe: bool) -> None:
    """Run the server.

    SIGTERM or Ctrl-C stops it once what is under way is done, a second one at once.
    """
    with _server_installed():
        from keepstep import config, telemetry

        settings = config.load()
        if unsafe:
            settings = settings.model_copy(update={"unsafe": True})
        telemetry.configure_logging(settings.log_level, settings.log_format)
        trio.run(_serve, settings)


async def _serve(settings: Settings) -> None:
    """The server with its signals: the first one drains, the second one, or one while it starts, stops at once."""
    from keepstep import server

    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            starting = trio.CancelScope()

            async def watch() -> None:
                async for _ in signals:
                    starting.cancel()
                    if stop.is_set():
                        nursery.cancel_scope.cancel()
                    stop.set()

            nursery.start_soon(watch)
            await _run_server(partial(server.run, settings, stop=stop), settings, starting)
            nursery.cancel_scope.cancel()


async def _run_server(run: Callable[..., Awaitable[None]], settings: Settings, starting: trio.CancelScope) -> None:
    """Run until it has stopped; ``starting`` can cancel it until it has started."""
    async with trio.open_nursery() as nursery:
        with starting:
            _announce(settings, await nursery.start(run))
        if starting.cancelled_caught:
            nursery.cancel_scope.cancel()


def _announce(settings: Settings, started: Started) -> None:
    """Tell a person where the server is and what to do next; the last line is what scripts wait for."""
    program = _program()
    server = "" if started.rest_url == DEFAULT_REST_URL else f" --server {started.rest_url}"
    lines = [
        f"keepstep {keepstep.__version__} is running.",
        "",
        f"  devices   {started.device_url}",
        f"  REST      {started.rest_url}",
        f"  data      {settings.data_dir}",
        f"  database  {started.database}",
        "",
        "Try it, in another terminal:",
        "",
        f"  {program} device new laptop{server}",
        f"  {program} device new phone --by laptop",
        f"  {program} tail notes --device phone",
        "",
        "and in a third one:",
        "",
        f"  {program} publish notes 'hello' --device laptop",
        "",
        "What follows # in the devices' address is this server's key: a device accepts no other server.",
        "Ctrl-C stops the server.",
    ]
    click.echo("\n".join(lines))
    sys.stdout.flush()


def _program() -> str:
    """How this program was called, so that what is printed can be copied."""
    called = Path(sys.argv[0])
    found = shutil.which("keepstep")
    if called.name != "keepstep" or (found is not None and called.exists() and Path(found).samefile(called)):
        return "keepstep"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())


# -- migrate --------------------------------------------------------------------------------------------------------


@commands.group()
def migrate() -> None:
    """Bring the database's schema up or down. `serve` does `up` by itself."""


@migrate.command("status")
def migrate_status() -> None:
    """Show every migration, applied or pending. Changes nothing."""

    def show(url: str) -> None:
        from keepstep.postgres import migrate

        rows = migrate.status(url)
        for row in rows:
            state = "pending" if row.applied_at is None else f"applied {row.applied_at:%Y-%m-%d %H:%M:%S %Z}"
            click.echo(f"{row.version:04}_{row.name}  {state}{f'  PROBLEM: {row.problem}' if row.problem else ''}")
        if any(row.problem for row in rows):
            raise StartupError("the database's schema cannot be used as it is")

    _with_database(show)


@migrate.command("up")
@click.option("--to", type=click.IntRange(min=0), help="Stop after this version; all by default.")
def migrate_up(to: int | None) -> None:
    """Apply what is pending."""

    def apply(url: str) -> None:
        from keepstep.postgres import migrate

        done = migrate.up(url, to=to)
        click.echo("\n".join(f"applied {one}" for one in done) or "nothing to apply")

    _with_database(apply)


@migrate.command("down")
@click.option("--to", type=click.IntRange(min=0), required=True, help="The version to go back to; 0 for none.")
@click.confirmation_option(prompt="This deletes what the undone versions stored. Go on?")
def migrate_down(to: int) -> None:
    """Undo migrations, the newest first, with the data they stored."""

    def undo(url: str) -> None:
        from keepstep.postgres import migrate

        done = migrate.down(url, to=to)
        click.echo("\n".join(f"undone {one}" for one in done) or "nothing to undo")

    _with_database(undo)


def _with_database(work: Callable[[str], None]) -> None:
    """Run ``work`` in a worker thread with the URL of the settings' database, which is started where it is ours."""
    with _server_installed():
        from keepstep import config, telemetry

        settings = config.load()
        telemetry.configure_logging("warning", settings.log_format)
        trio.run(_work_on_database, settings, work)


async def _work_on_database(settings: Settings, work: Callable[[str], None]) -> None:
    if settings.database_url is not None:
        await trio.to_thread.run_sync(work, settings.database_url.get_secret_value())
        return
    from keepstep.postgres import embedded

    async with embedded.running(settings) as url:
        await trio.to_thread.run_sync(work, url)


# -- accounts -------------------------------------------------------------------------------------------------------


@commands.command("import-account")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--verify", is_flag=True, help="Only verify the file; needs no database.")
def import_one(file: Path, verify: bool) -> None:
    """Read in an account that another server exported.

    Nothing is stored unless all of it verifies. May be repeated, also with a newer file of the account.
    """
    with _server_installed():
        from keepstep import config, telemetry
        from keepstep.account_file import AccountFile

        with file.open("rb") as stream:
            account = AccountFile(stream)
            imported = trio.run(_import_into_memory, account)
            if not verify:
                settings = config.load()
                telemetry.configure_logging("warning", settings.log_format)
                imported = trio.run(_import_into_database, settings, account)
        verified = f"{imported.events} events in {imported.streams} streams of {imported.user_key.hex()} verify"
        click.echo(verified if verify else f"{verified}; {imported.stored} of them are new here")


async def _import_into_memory(account: AccountFile) -> Imported:
    from keepstep.account_import import import_account
    from keepstep.memory import MemoryAccounts, MemoryDatabase, MemoryLog

    database = MemoryDatabase()
    log = MemoryLog(database, tail_bytes_max=0, tail_stream_bytes_max=0)
    return await import_account(account, log, MemoryAccounts(database))


async def _import_into_database(settings: Settings, account: AccountFile) -> Imported:
    from keepstep.account_import import import_account
    from keepstep.postgres.opening import opened
    from keepstep.runtime import SystemClock, WorkerThreads

    async with opened(settings, clock=SystemClock(), threads=WorkerThreads(), probe=lambda _: None) as database:
        await database.administration.forget_deleted(account.begin.user_key)
        return await import_account(account, database.log, database.accounts)


# -- keys and configuration -----------------------------------------------------------------------------------------


@commands.group()
def keys() -> None:
    """The server's own keys."""


@keys.command("show")
def keys_show() -> None:
    """Print the server's public key, which devices pin."""
    with _server_installed():
        from keepstep import config
        from keepstep import keys as server_keys

        settings = config.load()
        click.echo(server_keys.load(settings.data_dir).public.hex())


@keys.command("announce")
@click.option("--from-days", default=7, show_default=True, type=click.IntRange(0, 3650), help="when it may take over")
@click.option("--overlap-days", default=90, show_default=True, type=click.IntRange(1, 3650), help="both are accepted")
def keys_announce(from_days: int, overlap_days: int) -> None:
    """Make the server's next key and announce it; print it.

    Restart the server to have devices told. At the first start after --from-days the new key takes the old one's
    place; do that before the overlap is over. Devices that were away all the time find the announcement over REST.
    """
    with _server_installed():
        from keepstep import config
        from keepstep import keys as server_keys
        from keepstep.runtime import SystemClock, SystemRandomness

        settings = config.load()
        from_ms = SystemClock().now_ms() + from_days * DAY_MS
        server_keys.announce_successor(
            settings.data_dir, SystemRandomness(), from_ms=from_ms, until_ms=from_ms + overlap_days * DAY_MS
        )
        click.echo(server_keys.load(settings.data_dir, name=server_keys.NEXT_FILE_NAME).public.hex())


@commands.command("check-config")
def check_config() -> None:
    """Check the configuration and print it, secrets masked. Opens nothing."""
    with _server_installed():
        from keepstep import config

        settings = config.load()
        for name in type(settings).model_fields:
            value = getattr(settings, name)
            click.echo(f"{config.variable(name)}={'' if value is None else value}")


# -- errors ---------------------------------------------------------------------------------------------------------


@contextmanager
def _server_installed() -> Iterator[None]:
    """Say plainly that the server's packages are missing, where they are."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        raise StartupError(
            'only the device part is installed here; for the server: pip install "keepstep[server]"'
        ) from exc


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = commands.main(args=arguments, prog_name=_program(), standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as exc:
        sys.exit(_tell(exc))
    sys.exit(code)


def _tell(error: BaseException) -> int:
    """Tell a person what went wrong; the exit code."""
    causes = _leaves(error)
    told = [problem for problem in map(_plain, causes) if problem is not None]
    if told and len(told) == len(causes):
        for problem in told:
            click.echo(f"keepstep: {problem}", err=True)
        return EXIT_CONFIG if any(isinstance(cause, ConfigError) for cause in causes) else EXIT_FAILED
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return EXIT_INTERRUPTED
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        # Whoever read our output has gone; Python would complain again while flushing it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    for cause in causes:
        where = " < ".join(
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            for frame in reversed(traceback.extract_tb(cause.__traceback__)[-FRAMES_SHOWN:])
        )
        click.echo(f"keepstep: a fault of keepstep itself: {type(cause).__name__} at {where}", err=True)
    click.echo("keepstep: please report it with these lines and what you did.", err=True)
    return EXIT_FAULT


def _plain(cause: BaseException) -> str | None:
    """What a person can do something about, in words; ``None`` for a fault of ours."""
    if isinstance(cause, KeepstepError):
        return str(cause)
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"{cause.filename} cannot be used: {cause.strerror}"
    return None


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions of a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
