"""What a restored database needs before a server runs on it again (protocol.md section 4): a new epoch, the journal.

Whoever restores with tools of their own calls it too: ``keepstep backup declare-restored``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from keepstep.errors import ProtocolError, StartupError, Unavailable
from keepstep.journal import FileJournal, read_journal
from keepstep.journal_spool import FIRST, JournalSpool
from keepstep.postgres.accounts import PostgresAccounts
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.pool import Database
from keepstep.postgres.restores import begin_at_nothing, begin_epoch_at
from keepstep.replaying import AccountReplay
from keepstep.runtime import SystemClock, WorkerThreads

if TYPE_CHECKING:
    from pathlib import Path

    from keepstep.interfaces import Accounts, EventLog, Threads


@dataclass(frozen=True, slots=True)
class Begun:
    """A new epoch.

    Attributes:
        epoch: unix milliseconds of the restore, and above every epoch before.
        rewinds: streams that may have been longer.
        replayed: events of ``$devices`` that the journal put back.
        unplaced: (user id, seq) of those that it could not put back: their accounts need a look.
        revived: user ids of accounts that only the journal held.
    """

    epoch: int
    rewinds: int
    replayed: int
    unplaced: tuple[tuple[bytes, int], ...]
    revived: tuple[bytes, ...]


async def begin_epoch(database_url: str, data_dir: Path, *, now_ms: int) -> Begun:
    """Begin a new epoch in a restored database, while no server runs on it.

    All tokens, refresh families, open invites, links and challenges end; every stream gets its rewind; what the journal
    holds of ``$devices`` is put back. It may be repeated, which begins one epoch more. A cancellation waits for the
    step under way.

    Args:
        database_url: migrated; as the owner of the tables.
        data_dir: with the journal; ``journal`` in it may hold other nodes' journals too.
        now_ms: unix milliseconds.

    Raises:
        StartupError: the database or the journal cannot be used; the message says why.
    """
    try:
        with JournalSpool() as spool:
            return await _begin_epoch(spool, database_url, data_dir, now_ms=now_ms)
    except Unavailable as error:
        raise StartupError(f"the database went away while a new epoch was begun in it: {error}") from error
    except OSError as error:
        raise StartupError(f"the journal in {data_dir} cannot be used: {error.strerror}") from error


async def _begin_epoch(spool: JournalSpool, database_url: str, data_dir: Path, *, now_ms: int) -> Begun:
    """As ``begin_epoch``. Raises StartupError, Unavailable, OSError."""
    threads = WorkerThreads()
    limiter = trio.CapacityLimiter(1)
    before = await threads.run(lambda: spool.fill(read_journal(data_dir)), limiter=limiter)
    at_least = max(now_ms, before + 1)
    epoch, rewinds = await threads.run(lambda: begin_epoch_at(database_url, at_least=at_least), limiter=limiter)
    journal = FileJournal(data_dir, threads)
    try:
        await journal.begin_epoch(epoch)
    finally:
        journal.close()
    database = Database(database_url, threads=threads, clock=SystemClock())
    try:
        log, accounts = PostgresLog(database), PostgresAccounts(database)
        replayed = await replay(spool, log, accounts, threads)
        for user_key in replayed.revived:
            user_pk = await accounts.user(user_key)
            assert user_pk is not None
            place = (int(user_pk), user_key)
            await database.accounts.run(
                lambda lease, place=place: lease.ask(  # type: ignore[misc]
                    lambda connection: begin_at_nothing(connection, *place, epoch=epoch)
                )
            )
    finally:
        database.close()
    begun = Begun(epoch, rewinds, replayed.count, replayed.unplaced, replayed.revived)
    structlog.get_logger().info("epoch_begun", count=rewinds)
    return begun


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the journal put back.

    Attributes:
        count: events.
        unplaced: as ``Begun``.
        revived: as ``Begun``.
    """

    count: int
    unplaced: tuple[tuple[bytes, int], ...]
    revived: tuple[bytes, ...]


async def replay(spool: JournalSpool, log: EventLog, accounts: Accounts, threads: Threads) -> Replayed:
    """Put back what a journal holds beyond the log; repeated, it changes nothing.

    Raises:
        Unavailable: the database is away.
        StartupError: the disk of temporary files failed.
    """
    account_replay = AccountReplay(log, accounts)
    limiter = trio.CapacityLimiter(1)
    count = 0
    unplaced: list[tuple[bytes, int]] = []
    revived: list[bytes] = []
    at, head_seq = FIRST, 0
    while page := await threads.run(lambda: spool.page(at), limiter=limiter):  # noqa: B023 - called at once
        for each in page:
            if each.user_key != at[0]:
                head_seq = (await account_replay.head(each.user_key)).seq
            at = each.user_key, each.seq
            if each.seq <= head_seq:
                continue
            row = (each.seq, each.device_id, each.received_at_ms, each.header, each.sig, each.payload, None)
            try:
                await account_replay.place(each.user_key, row)
            except Unavailable:
                raise
            except ProtocolError:
                unplaced.append(at)
                continue
            count += 1
            if each.seq == 1:
                revived.append(each.user_key)
    return Replayed(count, tuple(unplaced), tuple(revived))
