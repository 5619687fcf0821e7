"""What a restored database needs before a server runs on it again (protocol.md section 4): a new epoch, the journal.

Whoever restores with tools of their own calls it too: ``keepstep backup declare-restored``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from keepstep.errors import ProtocolError, StartupError, Unavailable
from keepstep.journal import AccountRecord, EpochRecord, FileJournal, read_journal
from keepstep.postgres.accounts import PostgresAccounts
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.pool import Database
from keepstep.postgres.restores import begin_at_nothing, begin_epoch_at
from keepstep.replaying import AccountReplay
from keepstep.runtime import SystemClock, WorkerThreads

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from keepstep.interfaces import Accounts, EventLog
    from keepstep.journal import Record


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
    threads = WorkerThreads()
    limiter = trio.CapacityLimiter(1)
    try:
        records = await threads.run(lambda: list(read_journal(data_dir)), limiter=limiter)
        epochs = [record.epoch for record in records if isinstance(record, EpochRecord)]
        at_least = max([now_ms, *(epoch + 1 for epoch in epochs)])
        epoch, rewinds = await threads.run(lambda: begin_epoch_at(database_url, at_least=at_least), limiter=limiter)
        journal = FileJournal(data_dir, threads)
        try:
            await journal.begin_epoch(epoch)
        finally:
            journal.close()
        database = Database(database_url, threads=threads, clock=SystemClock())
        try:
            log, accounts = PostgresLog(database), PostgresAccounts(database)
            replayed = await replay(records, log, accounts)
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
    except Unavailable as error:
        raise StartupError(f"the database went away while a new epoch was begun in it: {error}") from error
    except OSError as error:
        raise StartupError(f"the journal in {data_dir} cannot be used: {error.strerror}") from error
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


async def replay(records: Iterable[Record], log: EventLog, accounts: Accounts) -> Replayed:
    """Put back what a journal holds beyond the log; repeated, it changes nothing. Raises Unavailable."""
    account_replay = AccountReplay(log, accounts)
    waiting: defaultdict[bytes, dict[int, AccountRecord]] = defaultdict(dict)
    for record in records:
        if isinstance(record, AccountRecord):
            waiting[record.user_key][record.seq] = record  # of two, the one written last
    count = 0
    unplaced: list[tuple[bytes, int]] = []
    revived: list[bytes] = []
    for user_key, events in waiting.items():
        head = await account_replay.head(user_key)
        placed = 0
        for seq in sorted(seq for seq in events if seq > head.seq):
            each = events[seq]
            row = (seq, each.device_id, each.received_at_ms, each.header, each.sig, each.payload, None)
            try:
                await account_replay.place(user_key, row)
            except Unavailable:
                raise
            except ProtocolError:
                unplaced.append((user_key, seq))
            else:
                placed += 1
        count += placed
        if placed and not head.seq:
            revived.append(user_key)
    return Replayed(count, tuple(unplaced), tuple(revived))
