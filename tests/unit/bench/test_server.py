"""A server that is measured is started, quoted where it fails, and says how durable it is."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench.machine import free_ports
from bench.server import BenchError, describe, find_target, new_directory, wait_until_ready
from keepstep.postgres.durability import Durability

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    """The end of its log says why."""
    log = tmp_path / "server.log"
    log.write_text("the port is taken")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(BenchError, match="the port is taken"):
            wait_until_ready(process, lambda: None, log)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One that is there gets a new one, which goes with what is in it."""
    with pytest.raises(BenchError, match="nowhere"), new_directory(tmp_path / "nowhere"):
        pass
    with new_directory(tmp_path) as made:
        (made / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_does_not_answer_is_named() -> None:
    """Before anything is built or measured."""
    (port,) = free_ports(1)
    with pytest.raises(BenchError, match=f"no server answers at http://127.0.0.1:{port}"):
        find_target(f"http://127.0.0.1:{port}/")


def test_durability_is_stated_in_words() -> None:
    """No figure is to be shown without it."""
    said = describe(Durability(180_006, "on", "off", "on", ""), "ext4")
    assert said == (
        "PostgreSQL 18.6 on ext4: fsync on, full_page_writes off, synchronous_commit on, standbys waited for: none"
    )
