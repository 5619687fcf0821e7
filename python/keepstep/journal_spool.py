"""A journal in the order in which its events are put back, on the disk: memory does not grow with it.

Files of several nodes and of several runs hold the events of an account in any order, and some of them twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final, Self

import msgspec

from keepstep.errors import StartupError
from keepstep.journal import AccountRecord, EpochRecord
from keepstep.protocol.codec import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keepstep.journal import Record

PAGE_RECORDS_MAX: Final = 64
"""Records that are read again at a time."""
CACHE_KIB: Final = 4_096
_RECORD: Final = msgspec.msgpack.Decoder(AccountRecord)
_SCHEMA: Final = """
CREATE TABLE records (
    user_key BLOB NOT NULL,
    seq INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (user_key, seq)
) WITHOUT ROWID
"""
FIRST: Final = (b"", 0)
"""Before every record."""


class JournalSpool:
    """Events of ``$devices`` by account and number, in a temporary file that nobody else sees. Everything blocks.

    A context manager: at the end the file is gone. Not to be used by two threads at once. All methods raise
    StartupError where the disk of temporary files fails or is full.
    """

    def __init__(self) -> None:
        with _in_words():
            self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            for statement in (f"PRAGMA cache_size = -{CACHE_KIB}", "PRAGMA journal_mode = OFF", _SCHEMA):
                self._connection.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def fill(self, records: Iterable[Record]) -> int:
        """Take in what a journal holds, of two records of one place the later one; the highest epoch in it, or 0."""
        epoch = 0
        with _in_words(), contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN")
            for record in records:
                if isinstance(record, EpochRecord):
                    epoch = max(epoch, record.epoch)
                    continue
                row = record.user_key, record.seq, encode(record)
                cursor.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)
            cursor.execute("COMMIT")
        return epoch

    def page(self, after: tuple[bytes, int]) -> list[AccountRecord]:
        """The next records after a place, which is an account and a number; none at the end."""
        with _in_words():
            found = self._connection.execute(
                "SELECT record FROM records WHERE (user_key, seq) > (?, ?) ORDER BY user_key, seq LIMIT ?",
                (*after, PAGE_RECORDS_MAX),
            ).fetchall()
        return [_RECORD.decode(data) for (data,) in found]


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StartupError(
            f"the journal cannot be put in order in the directory of temporary files: {error}"
        ) from error
