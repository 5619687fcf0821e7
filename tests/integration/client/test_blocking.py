"""The device library for scripts, against a whole server over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep.client import Capability, ClientError, ProtocolError, blocking
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress


@pytest.fixture
def laptop(address: ServerAddress, tmp_path: Path) -> Path:
    """The file of a new user's first device."""
    path = tmp_path / "laptop.sqlite3"
    blocking.create_user(
        blocking.find_server(address.rest_url),
        path=path,
        name="laptop",
        recovery_path=tmp_path / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    return path


def test_a_script_publishes_and_another_device_reads(laptop: Path, tmp_path: Path) -> None:
    """Publishing returns with the receipt; reading ends when it is quiet, and goes on from a committed position."""
    phone = tmp_path / "phone.sqlite3"
    with blocking.open_device(laptop) as device:
        device.enrol(phone, "phone")
        receipt = device.publish("notes", b"1", ttl_s=3600)
        assert receipt is not None
        assert receipt.seq == 1
        receipts = device.publish_many("notes", [b"2", b"3"])
        assert receipts is not None
        assert [each.seq for each in receipts] == [2, 3]
        assert [each.name for each in device.devices()] == ["laptop", "phone"]
        assert (device.connected, device.waiting, device.alarms()) == (True, 0, [])
    with blocking.open_device(phone) as device:
        device.wait_until_caught_up("notes")
        assert [event.data for event in device.events("notes", quiet_s=0.05)] == [b"1", b"2", b"3"]
        assert [event.data for event in device.events("notes", after=2, quiet_s=0.05)] == [b"3"]
        device.commit("notes", "app", 1, state=b"state")
        assert [event.data for event in device.events("notes", cursor="app", quiet_s=0.05)] == [b"2", b"3"]


def test_a_script_need_not_wait_for_the_server(laptop: Path) -> None:
    """The event is safe in the outbox, whether or not the server answers in time."""
    with blocking.open_device(laptop, device_url="ws://127.0.0.1:1/v1/connect") as device:
        before = device.waiting
        assert device.publish("notes", b"1", wait_s=0.01) is None
        assert (device.waiting, device.connected) == (before + 1, False)


def test_errors_come_out_where_the_call_is(laptop: Path, tmp_path: Path) -> None:
    """A device that cannot be opened, and a call that cannot be done, raise in the caller's thread."""
    with pytest.raises(ClientError, match="there is no device"), blocking.open_device(tmp_path / "none"):
        pass
    with blocking.open_device(laptop) as device, pytest.raises(ClientError, match="reserved"):
        next(device.events("$devices"))
    with blocking.open_device(laptop) as device:
        with pytest.raises(ClientError, match="in use"), blocking.open_device(laptop):
            pass
        device.enrol(tmp_path / "second", "second", capabilities=Capability(7))
        with pytest.raises(ProtocolError, match="unsupported"):
            device.enrol(tmp_path / "third", "third", capabilities=Capability(7))
        assert not (tmp_path / "third").exists()
