"""A server for programs that run Trio themselves or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_thread import ServerAddress, server_in_thread


@pytest.fixture
def address(data_dir: Path) -> Iterator[ServerAddress]:
    """Where a server is reached that runs in another thread."""
    with server_in_thread(data_dir) as address:
        yield address
