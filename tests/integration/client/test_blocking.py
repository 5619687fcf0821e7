"""The device library for scripts, against a whole server over real sockets."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from keepstep.client import ClientError, Policy, ProtocolError, blocking
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
        with pytest.raises(ProtocolError, match="forbidden"):
            device.revoke("laptop")  # the last one that manages


def test_a_device_is_revoked_and_everything_recovered(laptop: Path, address: ServerAddress, tmp_path: Path) -> None:
    """The same calls as in Trio, waiting."""
    with blocking.open_device(laptop) as device:
        device.enrol(tmp_path / "phone", "phone")
        device.revoke("phone")
        device.publish_many("notes", [b"1", b"2"])
        assert device.warnings() == []
    new = tmp_path / "new"
    blocking.recover(
        tmp_path / "recovery.txt",
        PASSPHRASE,
        path=new,
        name="new",
        new_recovery_path=tmp_path / "new.txt",
        server=blocking.find_server(address.rest_url),
        cost=CHEAP,
    )
    with blocking.open_device(new) as device:
        device.wait_until_caught_up("notes")
        assert [event.data for event in device.events("notes", quiet_s=0.2)] == [b"1", b"2"]
        assert [each.ended is None for each in device.devices()] == [False, False, True]


def test_events_that_belong_together_are_published_together(laptop: Path) -> None:
    """One that cannot be published keeps the others back too."""
    with blocking.open_device(laptop) as device:
        device.publish("notes", b"0")
        with pytest.raises(ClientError, match="bytes sealed"):
            device.publish_many("notes", [b"1", Random(1).randbytes(2**19)])
        assert device.publish_many("notes", []) == []
        device.publish("notes", b"2")
        assert [event.data for event in islice(device.events("notes"), 2)] == [b"0", b"2"]


def test_a_device_that_never_met_its_server_does_not_wait_for_ever(laptop: Path, tmp_path: Path) -> None:
    """``wait_s`` bounds the wait for the first connection too."""
    with blocking.open_device(laptop) as device:
        device.enrol(tmp_path / "phone", "phone")
    elsewhere = "ws://127.0.0.1:1/v1/connect"
    with (
        blocking.open_device(tmp_path / "phone", device_url=elsewhere) as phone,
        pytest.raises(ClientError, match="has to reach its server once"),
    ):
        phone.publish("notes", b"1", wait_s=0.01)


def test_a_stream_may_want_to_know_what_an_event_builds_on(laptop: Path) -> None:
    """Who was not first is told; what is erased is gone."""
    with blocking.open_device(laptop) as device:
        device.set_policy("inventory", Policy.EXPECT)
        device.wait_until_caught_up("inventory")
        here = device.position("inventory")
        assert device.publish("inventory", b"3 left", expects=here).seq == 2
        with pytest.raises(ProtocolError, match="conflict"):
            device.publish("inventory", b"2 left", expects=here)
        event = next(device.events("inventory"))
        with pytest.raises(ProtocolError):
            device.erase("inventory", [replace(event, n=9)])
        device.erase("inventory", [event])
        assert device.publish("inventory", b"2 left", expects="own").seq == 4
        device.wait_until_caught_up("inventory")
        shown = [(each.seq, each.data, each.problem) for each in islice(device.events("inventory"), 2)]
        assert shown == [(2, None, "erased"), (4, b"2 left", None)]


def test_a_snapshot_is_written_confirmed_and_started_from(laptop: Path, tmp_path: Path) -> None:
    """With the calls that wait; the only device of a user confirms its own."""
    with blocking.open_device(laptop) as device:
        device.publish_many("notes", [b"1", b"2"])
        device.wait_until_caught_up("notes")
        written = device.snapshot("notes", b"two", seq=2)
    with blocking.open_device(laptop) as device:
        device.wait_until_caught_up("notes")
        assert [each.seq for each in device.snapshots("notes")] == [written.seq]
        confirmed = device.confirm("notes", 3)
        assert (written.seq, confirmed.seq) == (3, 4)
        device.publish("notes", b"3")
        device.enrol(tmp_path / "phone.sqlite3", "phone")
    with blocking.open_device(tmp_path / "phone.sqlite3") as device:
        begun = device.start_from_snapshot("notes")
        assert begun is not None
        assert (begun.state, begun.covers.seq) == (b"two", 2)
        events = device.events("notes", after=begun.covers.seq, quiet_s=0.05)
        assert [event.data for event in events] == [b"3"]
        assert device.start_from_snapshot("others") is None
