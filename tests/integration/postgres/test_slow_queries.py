"""The slow-query log of a real PostgreSQL: on from the start, with plans, and without anybody's values."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import trio

from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import embedded
from keepstep.postgres.slowqueries import read_slow_query_log

SECRET = "what a user wrote"
SLOW = "SELECT relname, pg_sleep(0.02) FROM pg_class WHERE oid = %(oid)s::oid AND relname <> %(secret)s"


def ask_slowly(url: str) -> None:
    """As the server asks: parameters apart from the statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        oid = connection.execute("SELECT 'pg_class'::regclass::oid").fetchone()
        assert oid is not None
        connection.execute(SLOW, {"oid": oid[0], "secret": SECRET})


@pytest.mark.slow
async def test_a_slow_statement_is_logged_with_its_plan_and_without_its_values(data_dir: Path) -> None:
    """Statement and plan name parameters by their numbers; a statement that is fast is not there."""
    async with embedded.running(Settings(data_dir=data_dir, slow_query_ms=10)) as url:
        await trio.to_thread.run_sync(ask_slowly, url)
    log = "".join(file.read_text() for file in (data_dir / "postgres" / "log").iterdir())
    assert "Query Text: SELECT relname, pg_sleep(0.02) FROM pg_class" in log
    assert "Index Scan using pg_class_oid_index on pg_class" in log
    assert "Index Cond: (oid = ($1)::oid)" in log
    assert "regclass" not in log
    assert SECRET not in log


def test_a_database_that_is_not_there_cannot_be_asked(tmp_path: Path) -> None:
    """The error says of what kind it was, and no address."""
    with pytest.raises(StartupError, match=r"^the database cannot be asked: OperationalError$"):
        read_slow_query_log(f"postgresql://keepstep@/keepstep?host={tmp_path}", connect_timeout_s=5)
