"""The PostgreSQL that the server runs itself when no ``DATABASE_URL`` is set: a real one, in ``data_dir/postgres``.

``async with running(settings) as database_url`` starts it, starts it again whenever it ends (with back-off; pooled
connections break and are made anew), and stops it cleanly after the block. Whichever process is killed, nothing
acknowledged is lost, for fsync is on, and no PostgreSQL is left behind: see ``keepstep.postgres.guardian``.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING, Final

import psycopg
import structlog
import trio

from keepstep.errors import StartupError
from keepstep.postgres import guardian
from keepstep.postgres.cluster import Cluster, open_cluster, tail
from keepstep.telemetry import describe

if TYPE_CHECKING:
    from keepstep.config import Settings

BUSY_TIMEOUT_S: Final = 30.0
"""Seconds to wait for the children of a killed PostgreSQL to notice and let go of its shared memory."""
STOP_TIMEOUT_S: Final = sum(bound_s for _, bound_s in guardian.STOP_SIGNALS) + 5.0
"""Seconds for the guardian to end, which bounds itself."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""Seconds before it is started again: doubled from the first to the last, at which it stays while a disk is full."""
STEADY_S: Final = 2.0
"""Seconds of running after which the back-off starts anew."""
_POLL_S: Final = 0.02
_PID_LINE_BYTES_MAX: Final = 32
_BUSY_MESSAGE: Final = "pre-existing shared memory block"

_log = structlog.get_logger(__name__)


class _BusyError(StartupError):
    """The children of a killed PostgreSQL still hold its shared memory."""


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """A PostgreSQL for as long as the block runs; gives its connection URL.

    It outlives the block even where that is cancelled, so that a commit under way can finish. There is a nursery
    around the block: what it raises comes out in an exception group.

    Raises:
        StartupError: it cannot run; the message says why and what to do.

    Cancel-safe: whatever was started by then is stopped.
    """
    cluster = await trio.to_thread.run_sync(open_cluster, settings)
    try:
        process = await start(cluster)
        supervising = trio.CancelScope(shield=True)  # its deadline is the end of the block
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_supervise, cluster, process, supervising)
            try:
                yield cluster.url()
            finally:
                supervising.cancel()
    finally:
        cluster.close()


async def _supervise(cluster: Cluster, process: trio.Process, scope: trio.CancelScope) -> None:
    """Start PostgreSQL again whenever it ends, until ``scope`` is cancelled; then stop it."""
    with scope:
        backoff_s = BACKOFF_FIRST_S
        try:
            while True:
                started_s = trio.current_time()
                exit_status = await process.wait()
                if trio.current_time() - started_s > STEADY_S:
                    backoff_s = BACKOFF_FIRST_S
                _log.error("embedded_postgres_ended", exit_status=exit_status, retry_after_s=backoff_s)
                while process.returncode is not None:
                    await trio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                    try:
                        process = await start(cluster)
                    except StartupError as error:
                        _log.error("embedded_postgres_not_restarted", retry_after_s=backoff_s, **describe(error))
                _log.info("embedded_postgres_restarted")
        finally:
            with trio.move_on_after(STOP_TIMEOUT_S + guardian.KILL_S, shield=True):
                await stop(process)


async def start(cluster: Cluster) -> trio.Process:
    """The guardian of a PostgreSQL that accepts connections. Cancel-safe: what was started is stopped.

    Raises:
        StartupError: it does not start.
    """
    give_up_s = trio.current_time() + BUSY_TIMEOUT_S
    while True:
        try:
            return await _start_once(cluster)
        except _BusyError:
            if trio.current_time() > give_up_s:
                raise
            await trio.sleep(BACKOFF_FIRST_S)


async def _start_once(cluster: Cluster) -> trio.Process:
    try:
        await trio.to_thread.run_sync(cluster.prepare)
        with tempfile.TemporaryFile() as output:
            process = await trio.lowlevel.open_process(
                cluster.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for the server alone
            )
            try:
                await _wait_until_ready(cluster, process, output)
                await trio.to_thread.run_sync(cluster.ensure_database)
            except BaseException:
                with trio.move_on_after(STOP_TIMEOUT_S + guardian.KILL_S, shield=True):
                    await stop(process)
                raise
            return process
    except (OSError, psycopg.Error, trio.TooSlowError) as error:
        raise StartupError(f"the embedded PostgreSQL in {cluster.home} does not start: {error!r}") from error


async def _wait_until_ready(cluster: Cluster, process: trio.Process, output: IO[bytes]) -> None:
    """Raises StartupError where it ends instead, TooSlowError where it does neither."""
    assert process.stdout is not None
    with trio.fail_after(cluster.start_timeout_s):
        line = await process.stdout.receive_some(_PID_LINE_BYTES_MAX)  # the guardian writes it at once
        while process.poll() is None:
            if line and cluster.is_ready(int(line)):
                return
            await trio.sleep(_POLL_S)
    said = tail(output)
    kind = _BusyError if _BUSY_MESSAGE in said else StartupError
    raise kind(f"the embedded PostgreSQL in {cluster.home} does not start; its log directory may say more: {said}")


async def stop(process: trio.Process) -> None:
    """End PostgreSQL through its guardian, and the guardian in any case. To be called in a shielded scope."""
    assert process.stdin is not None
    assert process.stdout is not None
    with trio.move_on_after(STOP_TIMEOUT_S):
        await process.stdin.aclose()
        await process.stdout.aclose()
        await process.wait()
    if process.returncode is None:
        _log.error("embedded_postgres_not_stopped", process_id=process.pid)
        process.kill()
        await process.wait()
