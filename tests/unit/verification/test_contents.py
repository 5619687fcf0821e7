"""What events say about their stream, where what they say cannot be read or is gone."""

from __future__ import annotations

from typing import Any

import pytest

from keepstep.model import Kind, Policy
from keepstep.protocol.event import decode_header
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import encode_erase
from keepstep.verification import Faults, SignedRow
from keepstep.verification import contents as module
from keepstep.verification.contents import Contents
from keepstep.verification.walk import Walked
from tests.support.events import NOW_MS, DeviceFixture, UserFixture

PHONE = DeviceFixture(UserFixture("ada"), "phone")


def walked(seq: int, payload: bytes = b"x", *, gone: bool = False, **fields: Any) -> Walked:
    """An event of a phone that is signed as it is, with its payload or without."""
    event = PHONE.sign("notes", payload, n=seq, prev=bytes(16), **fields)
    row = SignedRow(seq, NOW_MS, PHONE.device_id, event.header, event.sig, None if gone else payload)
    return Walked(row, decode_header(event.header), None, True, None)


def followed(*batch: Walked, stream: str = "notes") -> tuple[Contents, list[tuple[str, int | None]]]:
    """All of a stream, and what was found."""
    faults = Faults(bytes(32), stream)
    contents = Contents(stream, policy=None, now_ms=NOW_MS, faults=faults)
    contents.take(batch)
    contents.finish()
    return contents, [(fault.code, fault.seq) for fault in faults.found.faults]


def test_a_payload_that_cannot_be_read_is_told_of() -> None:
    """A server that took it did not look; what is in force stays as it was."""
    contents, found = followed(
        walked(1, encode_policy(Policy.FORK), kind=Kind.POLICY),
        walked(2, b"nonsense", kind=Kind.POLICY),
        walked(3, encode_policy(Policy.LATEST), kind=Kind.POLICY),
    )
    assert found == [("payload_differs", 2), ("payload_differs", 3)]
    assert contents.policy is not None
    assert contents.policy.policy == Policy.FORK


def test_a_snapshot_may_lose_its_payload() -> None:
    """There is a newer one; that it was one is known all the same."""
    contents, found = followed(walked(1), walked(2, kind=Kind.SNAPSHOT, gone=True))
    assert found == []
    assert contents.snapshots[2].covers is None


def test_what_an_erasure_names_may_be_gone() -> None:
    """Also in the same page; what it does not name may not."""
    erase = encode_erase({PHONE.device_id: [1]})
    assert followed(walked(1, gone=True), walked(2, gone=True), walked(3, erase, kind=Kind.ERASE))[1] == [
        ("payload_lost", 2)
    ]


def test_a_ttl_accounts_for_a_payload_once_it_is_over_by_any_clock() -> None:
    """A server whose clock is some minutes ahead of ours has dropped it already."""
    assert followed(walked(1, gone=True, ttl_s=60))[1] == []
    assert followed(walked(1, gone=True, ttl_s=60 * 60))[1] == [("payload_lost", 1)]


def test_what_is_gone_for_no_reason_yet_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound it is not judged."""
    monkeypatch.setattr(module, "UNEXPLAINED_MAX", 1)
    assert followed(walked(1, gone=True), walked(2, gone=True))[1] == [("payload_lost", 1)]


def test_what_has_no_header_or_no_author_says_nothing() -> None:
    """It was told of by the walk."""
    event = walked(1, gone=True)
    assert followed(event._replace(header=None), event._replace(row=event.row._replace(device_id=None)))[1] == []
