"""Results say where they come from, and what processes cost is read from the process table."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import machine
from bench.machine import (
    Cost,
    commit,
    cost,
    describe_machine,
    file_system,
    main_thread_s,
    memory,
    process_tree,
    read_process,
    written_bytes,
)

if TYPE_CHECKING:
    import pytest

SPIN = "import sys, time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\nsys.stdin.read()"


def test_a_machine_is_described_by_what_matters_for_speed(tmp_path: Path) -> None:
    """Processor, cores, memory, kernel, file system."""
    described = describe_machine(tmp_path)
    assert described.cores >= 1
    assert described.memory_bytes > 2**28
    assert described.processor
    assert described.kernel.startswith("Linux ")
    assert described.file_system == file_system(tmp_path)


def test_the_nearest_mount_counts() -> None:
    """``/proc`` is a file system of its own below the root's."""
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/")) != "proc"


def test_a_processor_without_a_model_name_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ARM's process information has no such field."""
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp\n")
    (tmp_path / "mounts").write_text("disk / ext4 rw 0 0\n")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert describe_machine(tmp_path).processor == platform.machine()


def test_what_reached_a_disk_is_read_from_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In sectors of 512 bytes, the seventh number; a file system without a disk of its own has none."""
    monkeypatch.setattr(machine, "_BLOCK_DEVICES", tmp_path)
    assert written_bytes(tmp_path) is None
    device = tmp_path.stat().st_dev
    disk = tmp_path / f"{os.major(device)}:{os.minor(device)}"
    disk.mkdir()
    (disk / "stat").write_text("  10 11 12 13 14 15 2000 17 0 19 20\n")
    assert written_bytes(tmp_path) == 1_024_000


def test_what_a_process_and_its_children_used_is_found() -> None:
    """A child that works shows in its tree, and in the cost of the server that it is part of."""
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = process_tree(process.pid)
        assert found.cpu_s >= 0.09
        assert found.parent == os.getpid()
        assert found in process_tree(os.getpid())
        used = cost(process.pid)
        assert used.server_s >= 0.09
        assert used.database_s == 0
        assert used.since(used) == Cost(0, 0, 0)
        assert used.loop_s >= 0.09
    assert read_process(process.pid) is None
    assert process_tree(process.pid) == []
    assert main_thread_s(process.pid) == 0


def test_the_memory_of_a_process_is_found() -> None:
    """What is shared with others counts less in its proportional share."""
    found = memory(os.getpid())
    assert found.resident >= found.proportional > 2**20


def test_what_is_named_postgres_is_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs it, and however deep."""
    tree = [machine.Process(1, 0, "python3", 2.0), machine.Process(2, 1, "postgres", 3.0)]
    monkeypatch.setattr(machine, "process_tree", lambda _pid: tree)
    monkeypatch.setattr(machine, "main_thread_s", lambda _pid: 1.5)
    assert cost(1) == Cost(2.0, 1.5, 3.0)


def test_a_name_with_parentheses_does_not_shift_the_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the last parenthesis ends the name."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a (b) c) S 3 " + " ".join(["0"] * 9) + " 100 50 25 25 20 0 1 0")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    found = read_process(7)
    assert found is not None
    assert (found.parent, found.name) == (3, "a (b) c")
    assert found.cpu_s == 200 / machine._TICKS_PER_S


def test_the_commit_is_named_and_whether_files_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of changed files must not be taken for the commit's."""
    answers = {"rev-parse": "abc", "status": " M file"}
    monkeypatch.setattr(machine, "_git", lambda _root, command, *_: answers[command])
    assert commit() == "abc+"
    answers["status"] = ""
    assert commit() == "abc"


def test_outside_of_a_checkout_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unpacked source distribution has none."""
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"


def test_a_port_that_is_free_is_one_that_the_system_gives_to_nobody_else() -> None:
    """Each is another one, may be listened on, and is none of those that sockets get which ask for none."""
    ports = machine.free_ports(3)
    assert len(set(ports)) == 3
    assert set(ports) <= set(machine.PORTS)
    (taken,) = machine.free_ports(1)
    assert taken not in ports
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[0]))
