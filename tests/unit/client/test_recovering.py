"""A recovery that does not get through: what is left on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keepstep.client import ClientError, ProtocolError, recover, recovering
from keepstep.client.recovery import read_recovery_file
from keepstep.client.store import open_store
from tests.support.device_server import CHEAP, PASSPHRASE, DeviceServer


async def attempt(server: DeviceServer, directory: Path, path: Path) -> None:
    """Use the recovery file of a new user."""
    await recover(
        directory / "recovery.txt",
        PASSPHRASE,
        path=path,
        name="new",
        new_recovery_path=directory / "new.txt",
        server=server.address,
        environment=server.environment,
        cost=CHEAP,
    )


def refuse(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The server answers a rotation with that error."""

    async def register(*_arguments: Any, **_options: Any) -> None:
        raise ProtocolError(code)

    monkeypatch.setattr(recovering, "register", register)


async def test_a_refusal_leaves_nothing(server: DeviceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recovery file stays good."""
    server.new_user(tmp_path)
    refuse(monkeypatch, "unprocessable")
    with pytest.raises(ProtocolError, match="unprocessable"):
        await attempt(server, tmp_path, tmp_path / "new.sqlite3")
    assert {each.name for each in tmp_path.iterdir()} == {"laptop.sqlite3", "recovery.txt"}


async def test_a_server_that_cannot_now_is_asked_again(
    server: DeviceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same rotation: the next root key must not be made twice."""
    server.new_user(tmp_path)
    refuse(monkeypatch, "unavailable")
    posted = []
    for _ in range(2):
        with pytest.raises(ClientError, match="use the same recovery file again"):
            await attempt(server, tmp_path, tmp_path / "new.sqlite3")
        store = open_store(tmp_path / "new.sqlite3")
        posted.append((store.genesis(), read_recovery_file(tmp_path / "new.txt", PASSPHRASE).next_root_secret))
        store.close()
    assert posted[0] == posted[1]


async def test_a_device_that_cannot_be_written_leaves_no_recovery_file(server: DeviceServer, tmp_path: Path) -> None:
    """It would look like a recovery that had begun."""
    server.new_user(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match="cannot be written"):
        await attempt(server, tmp_path, tmp_path / "file" / "new.sqlite3")
    assert not (tmp_path / "new.txt").exists()
