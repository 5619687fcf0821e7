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
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

import keepstep
from keepstep.allocator import bound_pools
from keepstep.cli_database import server_installed
from keepstep.client.server import DEFAULT_REST_URL
from keepstep.errors import ConfigError, KeepstepError
from keepstep.garbage import rare_collections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

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
STANDARD_INPUT: Final = 0
DAY_MS: Final = 24 * 60 * 60 * 1000
FRAMES_SHOWN: Final = 6
"""Places shown of an exception that is a fault of ours, the innermost first."""


class _Commands(click.Group):
    """Our commands, and those of other modules, which are imported only when one of them is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *_other_commands()})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return super().get_command(context, name) or _other_commands().get(name)


def _other_commands() -> Mapping[str, click.Command]:
    """``admin``, ``check-config``, ``migrate``, and those of a device: ``device``, ``publish``, ``tail`` and so on."""
    from keepstep.admin_cli import admin
    from keepstep.archive_cli import archive
    from keepstep.backup_cli import backup
    from keepstep.client.account_cli import commands as device_commands
    from keepstep.client.leaving_cli import delete_account, export_account
    from keepstep.client.link_cli import link_group
    from keepstep.config_cli import check_config
    from keepstep.database_cli import database
    from keepstep.migrate_cli import migrate
    from keepstep.retention_cli import retention
    from keepstep.verify_cli import verify

    others = (
        admin,
        archive,
        backup,
        check_config,
        database,
        delete_account,
        export_account,
        link_group,
        migrate,
        retention,
        verify,
    )
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

    SIGTERM or Ctrl-C stops it once what is under way is done, a second one at once. SIGHUP has it read its
    configuration again.
    """
    with server_installed():
        from keepstep import telemetry

        load = partial(_load, unsafe=unsafe)
        settings = load()
        telemetry.configure_logging(settings.log_level, settings.log_format)
        bound_pools()
        trio.run(_serve, settings, load)


def _load(*, unsafe: bool) -> Settings:
    """The configuration, with what the command line adds. Raises ConfigError."""
    from keepstep import config

    settings = config.load()
    return settings.model_copy(update={"unsafe": True}) if unsafe else settings


async def _serve(settings: Settings, load: Callable[[], Settings]) -> None:
    """The server with its signals: the first one drains, the second one, or one while it starts, stops at once."""
    stop = trio.Event()
    in_terminal = os.isatty(STANDARD_INPUT)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        # Here, for these take the longest of all: until signals are received SIGHUP would end the process.
        from keepstep import server
        from keepstep.reloading import ReloadRequests

        requests = ReloadRequests(load)
        async with trio.open_nursery() as nursery:
            starting = trio.CancelScope()

            async def watch() -> None:
                async for number in signals:
                    # A terminal that closes sends SIGHUP too, and means that its programs should end.
                    if number == signal.SIGHUP and not (in_terminal and not os.isatty(STANDARD_INPUT)):
                        requests.request()
                        continue
                    starting.cancel()
                    if stop.is_set():
                        nursery.cancel_scope.cancel()
                    stop.set()

            nursery.start_soon(watch)
            run = partial(server.run, settings, stop=stop, reload_requests=requests)
            await _run_server(run, settings, starting)
            nursery.cancel_scope.cancel()


async def _run_server(run: Callable[..., Awaitable[None]], settings: Settings, starting: trio.CancelScope) -> None:
    """Run until it has stopped; ``starting`` can cancel it until it has started."""
    async with AsyncExitStack() as serving, trio.open_nursery() as nursery:
        with starting:
            started = await nursery.start(run)
            serving.enter_context(rare_collections(trio.lowlevel.current_trio_token().run_sync_soon))
            _announce(settings, started)
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


# -- accounts -------------------------------------------------------------------------------------------------------


@commands.command("import-account")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--verify", is_flag=True, help="Only verify the file; needs no database.")
def import_one(file: Path, verify: bool) -> None:
    """Read in an account that another server exported.

    Nothing is stored unless all of it verifies. May be repeated, also with a newer file of the account.
    """
    with server_installed():
        from keepstep import config, telemetry
        from keepstep.account_file import AccountFile
        from keepstep.account_intake import verify_account

        with file.open("rb") as stream:
            account = AccountFile(stream)
            imported = trio.run(verify_account, account)
            if not verify:
                settings = config.load()
                telemetry.configure_logging("warning", settings.log_format)
                imported = trio.run(_import_into_database, settings, account)
        verified = f"{imported.events} events in {imported.streams} streams of {imported.user_key.hex()} verify"
        click.echo(verified if verify else f"{verified}; {imported.stored} of them are new here")


async def _import_into_database(settings: Settings, account: AccountFile) -> Imported:
    import structlog

    from keepstep.account_intake import AccountIntake
    from keepstep.journal import FileJournal
    from keepstep.postgres.opening import opened
    from keepstep.runtime import SystemClock, WorkerThreads
    from keepstep.telemetry import Metrics
    from keepstep.upkeep import disk_space

    threads = WorkerThreads()
    async with opened(settings, clock=SystemClock(), threads=threads, probe=None) as database:
        disk = disk_space(settings, threads, Metrics(), structlog.get_logger())
        journal = FileJournal(settings.data_dir, threads)
        intake = AccountIntake(database.log, database.accounts, database.administration, threads, disk, journal=journal)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(disk.run)
                imported = await intake.store(account)
                nursery.cancel_scope.cancel()
        finally:
            journal.close()
        return imported


# -- keys and configuration -----------------------------------------------------------------------------------------


@commands.group()
def keys() -> None:
    """The server's own keys."""


@keys.command("show")
def keys_show() -> None:
    """Print the server's public key, which devices pin."""
    with server_installed():
        from keepstep import config
        from keepstep import keys as server_keys

        settings = config.load()
        click.echo(server_keys.load(settings.data_dir).public.hex())


@keys.command("announce")
@click.option("--from-days", default=7, show_default=True, type=click.IntRange(0, 3650), help="when it may take over")
@click.option("--overlap-days", default=90, show_default=True, type=click.IntRange(1, 3650), help="both are accepted")
def keys_announce(from_days: int, overlap_days: int) -> None:
    """Make the server's next key and announce it; print it.

    A running server tells its devices within seconds. At the first start after --from-days the new key takes the old
    one's place; do that before the overlap is over. Devices that were away all the time find the announcement over
    REST.
    """
    with server_installed():
        from keepstep import config
        from keepstep import keys as server_keys
        from keepstep.runtime import SystemClock, SystemRandomness

        settings = config.load()
        from_ms = SystemClock().now_ms() + from_days * DAY_MS
        server_keys.announce_successor(
            settings.data_dir, SystemRandomness(), from_ms=from_ms, until_ms=from_ms + overlap_days * DAY_MS
        )
        click.echo(server_keys.load(settings.data_dir, name=server_keys.NEXT_FILE_NAME).public.hex())


# -- errors ---------------------------------------------------------------------------------------------------------


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
