"""A server process with nothing but the embedded PostgreSQL in it, for tests that kill it: ``… DATA_DIR [PROGRAMS]``.

Prints the database URL once PostgreSQL accepts connections, and runs until it is killed. ``PROGRAMS`` is a directory
with programs in the place of PostgreSQL's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import trio

from keepstep.config import Settings
from keepstep.postgres import cluster, embedded
from keepstep.postgres.installation import Installation, find_account, find_installation


async def main(data_dir: str, programs: Path | None) -> None:
    """Run PostgreSQL for ever."""
    settings = Settings(data_dir=Path(data_dir))
    found = find_installation(find_account(settings.embedded_user))
    used = found if programs is None else Installation(programs, found.major)
    with mock.patch.object(cluster, "find_installation", return_value=used):
        async with embedded.running(settings) as database_url:
            print(database_url, flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
