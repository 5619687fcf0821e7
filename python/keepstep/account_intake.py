"""Taking in an account file: first into a log in memory, which verifies it, and only then into the server's own.

So nothing is stored of a file that does not verify, from the shell as over REST.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import trio

from keepstep.account_file import AccountFile
from keepstep.account_import import import_account
from keepstep.diskspace import require_room
from keepstep.journal import NO_JOURNAL
from keepstep.memory import MemoryAccounts, MemoryDatabase, MemoryLog

if TYPE_CHECKING:
    from keepstep.account_import import Imported
    from keepstep.administration import Administration
    from keepstep.diskspace import Room
    from keepstep.interfaces import Accounts, EventLog, Threads
    from keepstep.journal import AccountJournal

INTAKES_AT_ONCE: Final = 1
"""Files that are taken in at the same time: each is held in memory as often as it takes to verify it."""


async def verify_account(file: AccountFile) -> Imported:
    """What a file holds, if every event and head in it verifies. Takes about as much memory as the file is large.

    Raises:
        AccountFileError: it does not; the message says at which event.

    Cancel-safe.
    """
    database = MemoryDatabase()
    log = MemoryLog(database, tail_bytes_max=0, tail_stream_bytes_max=0)
    return await import_account(file, log, MemoryAccounts(database))


class AccountIntake:
    """Takes accounts into a server's storage.

    Args:
        log: where to.
        accounts: of the same storage.
        administration: of the same storage.
        threads: where files are looked through.
        room: whether the disks take new accounts.
        journal: takes their account logs: a restore to before the import must not make a stolen device live again.
    """

    def __init__(
        self,
        log: EventLog,
        accounts: Accounts,
        administration: Administration,
        threads: Threads,
        room: Room,
        *,
        journal: AccountJournal = NO_JOURNAL,
    ) -> None:
        self._journal = journal
        self._room = room
        self._log = log
        self._accounts = accounts
        self._administration = administration
        self._threads = threads
        self._limiter = trio.CapacityLimiter(INTAKES_AT_ONCE)

    async def take(self, data: bytes, *, verify_only: bool) -> Imported:
        """Verify a file that is in memory, and store what is new in it.

        Args:
            data: the file.
            verify_only: store nothing.

        Raises:
            AccountFileError: it does not verify, and nothing of it is stored; or as ``store``.
            Unavailable: as ``store``.

        A cancellation leaves the beginning of the account, from which the next call goes on.
        """
        account = await self._threads.run(lambda: AccountFile(io.BytesIO(data)), limiter=self._limiter)
        verified = await verify_account(account)
        return verified if verify_only else await self.store(account)

    async def store(self, account: AccountFile) -> Imported:
        """Store what is new in a file that verified.

        Raises:
            AccountFileError: another history of the account is here, and nothing was stored; or a device went on with
                it meanwhile: what came before the event that is named may have been stored.
            Unavailable: the database is away, or the disk has no room; it may be repeated, and goes on where it was.

        A cancellation leaves the beginning of the account, from which the next call goes on.
        """
        require_room(self._room)
        await self._administration.forget_deleted(account.begin.user_key)
        return await import_account(account, self._log, self._accounts, self._room, journal=self._journal)
