"""A server process with nothing but the embedded PostgreSQL in it, for tests that kill it: ``… DATA_DIR``.

Prints the database URL once PostgreSQL accepts connections, and runs until it is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from keepstep.config import Settings
from keepstep.postgres import embedded


async def main() -> None:
    """Run PostgreSQL for ever."""
    async with embedded.running(Settings(data_dir=Path(sys.argv[1]))) as database_url:
        print(database_url, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
