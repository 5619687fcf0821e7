"""``keepstep retention``: how far the clean-up of events is, and a run of it by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import trio

from keepstep.cli_database import database_url, server_installed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.config import Settings
    from keepstep.eventlog.retention import RetentionRules
    from keepstep.postgres.retention import PostgresRetention


@click.group()
def retention() -> None:
    """How long events stay. The server cleans up by itself."""


@retention.command("status")
def retention_status() -> None:
    """Show the rules, how old the oldest event is, and what waits to be removed. Changes nothing."""

    async def show(store: PostgresRetention, rules: RetentionRules) -> None:
        from keepstep.runtime import SystemClock

        now_ms = SystemClock().now_ms()
        state = await store.state(now_ms=now_ms, rules=rules)
        click.echo(
            f"events stay: {'for ever' if rules.days is None else f'{rules.days} days'}, or as each user's rule says"
        )
        oldest = "none" if state.oldest_at_ms is None else _days(now_ms - state.oldest_at_ms)
        click.echo(f"oldest event that may go: {oldest}")
        click.echo(f"overdue: {_days(state.overdue_ms) if state.overdue_ms else 'nothing'}")
        click.echo(f"rows to be removed: {state.waiting_rows}")
        click.echo(f"partitions to be dropped: {state.waiting_partitions}")

    _with_retention(show)


@retention.command("run")
@click.option("--at-once", is_flag=True, help="Without rests between the steps: for when nobody publishes.")
def retention_run(at_once: bool) -> None:
    """Let go of what is too old now, all of it. May run beside servers: one of them works at a time."""

    async def work(store: PostgresRetention, rules: RetentionRules) -> None:
        import structlog

        from keepstep.pacing import AT_ONCE, GENTLE
        from keepstep.retention import RetentionRun
        from keepstep.runtime import SystemClock
        from keepstep.telemetry import Metrics

        run = RetentionRun(
            store,
            SystemClock(),
            lambda: rules,
            metrics=Metrics(),
            logger=structlog.get_logger(),
            pace=AT_ONCE if at_once else GENTLE,
        )
        events, rows, partitions = 0, 0, 0
        while True:
            done = await run.run()
            events, rows, partitions = events + done.events, rows + done.rows, partitions + len(done.partitions)
            if done.is_done:
                break
        click.echo(f"let go of {events} events; removed {rows} rows, dropped {partitions} partitions")

    _with_retention(work)


def _days(milliseconds: int) -> str:
    from keepstep.eventlog.retention import DAY_MS

    return f"{milliseconds / DAY_MS:.1f} days"


def _with_retention(work: Callable[[PostgresRetention, RetentionRules], Awaitable[None]]) -> None:
    """Run ``work`` on the settings' database. Raises StartupError, ConfigError, Unavailable."""
    with server_installed():
        from keepstep import config, telemetry

        settings = config.load()
        telemetry.configure_logging("warning", settings.log_format)
        trio.run(_work, settings, work)


async def _work(settings: Settings, work: Callable[[PostgresRetention, RetentionRules], Awaitable[None]]) -> None:
    """Cancel-safe between steps."""
    from keepstep.limits import retention_rules
    from keepstep.postgres.pool import Database
    from keepstep.postgres.retention import PostgresRetention
    from keepstep.runtime import SystemClock, WorkerThreads

    async with database_url(settings, beside_a_server=True) as url:
        database = Database(url, threads=WorkerThreads(), clock=SystemClock())
        try:
            await work(PostgresRetention(database), retention_rules(settings))
        finally:
            database.close()
