"""One owner for a data directory, and a short way to its socket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keepstep.errors import StartupError
from keepstep.postgres.directory import SOCKET_PATH_BYTES_MAX, DirectoryLock, SocketAddress

SOCKET = ".s.PGSQL.5432"


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    """The second is told the first one's process id, and gets it when the first is done."""
    first = DirectoryLock(tmp_path)
    with pytest.raises(StartupError, match=rf"process {os.getpid()}\) runs with the data directory {tmp_path}"):
        DirectoryLock(tmp_path)
    first.release()
    DirectoryLock(tmp_path).release()


def test_the_owner_replaces_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    """A longer process id of an earlier owner does not show through."""
    (tmp_path / "postgres.lock").write_text("99999999999\n")
    lock = DirectoryLock(tmp_path)
    assert (tmp_path / "postgres.lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_directory_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    """The caller knows what it was for."""
    with pytest.raises(FileNotFoundError):
        DirectoryLock(tmp_path / "none")


def test_a_short_path_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly as long as a socket's path may be is short enough."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fits = Path("/") / ("x" * (SOCKET_PATH_BYTES_MAX - len(f"//{SOCKET}")))
    address = SocketAddress(fits, SOCKET)
    assert address.directory == fits
    address.remove()
    assert not list(tmp_path.iterdir())


def long_directory(parent: Path, name: str) -> Path:
    """A directory whose socket's path is too long."""
    path = parent / (name * SOCKET_PATH_BYTES_MAX)
    path.mkdir()
    return path


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Path:
    """A short run-time directory."""
    path = data_dir / "run"
    path.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def test_a_long_path_is_reached_through_a_link(run_dir: Path, tmp_path: Path) -> None:
    """Two servers of one user have each their own, and take only that away."""
    paths = [long_directory(tmp_path, "a"), long_directory(tmp_path, "b")]
    first, second = (SocketAddress(path, SOCKET) for path in paths)
    assert [first.directory.resolve(), second.directory.resolve()] == paths
    assert len(str(first.directory / SOCKET)) <= SOCKET_PATH_BYTES_MAX
    first.remove()
    assert second.directory.resolve() == paths[1]
    second.remove()
    assert not list(run_dir.iterdir())


def test_a_link_that_was_left_behind_is_replaced(run_dir: Path, tmp_path: Path) -> None:
    """A killed server takes nothing away."""
    path = long_directory(tmp_path, "a")
    assert SocketAddress(path, SOCKET).directory == SocketAddress(path, SOCKET).directory


def test_a_private_directory_that_others_may_enter_is_refused(run_dir: Path, tmp_path: Path) -> None:
    """In a shared temporary directory somebody else may have made it, to stand in for the database."""
    (run_dir / f"keepstep-{os.geteuid()}").mkdir(mode=0o755)
    with pytest.raises(StartupError, match="must be a directory that only its owner"):
        SocketAddress(long_directory(tmp_path, "a"), SOCKET)


def test_a_private_directory_that_is_a_link_is_refused(run_dir: Path, tmp_path: Path) -> None:
    """It might lead anywhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (run_dir / f"keepstep-{os.geteuid()}").symlink_to(elsewhere)
    with pytest.raises(StartupError, match="must be a directory that only its owner"):
        SocketAddress(long_directory(tmp_path, "a"), SOCKET)


def test_no_short_path_at_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both settings that can mend it."""
    path = long_directory(tmp_path, "a")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    with pytest.raises(StartupError, match="set KEEPSTEP_DATA_DIR or TMPDIR"):
        SocketAddress(path, SOCKET)
