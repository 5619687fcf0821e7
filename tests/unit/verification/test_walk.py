"""Rows from anywhere, such as an archive: verified from where they begin, with or without a chain beside each."""

from __future__ import annotations

import pytest

from keepstep._keepstep import DeviceKey
from keepstep.client import crypto
from keepstep.model import Position
from keepstep.protocol.chain import chain_next
from keepstep.verification import Faults, RowWalk, SignedRow, Start
from tests.support.events import NOW_MS, DeviceFixture, UserFixture

ADA = UserFixture("ada")


def stream(count: int = 4) -> tuple[list[SignedRow], dict[bytes, DeviceKey]]:
    """Events of two devices that take turns, with their chains."""
    devices = [DeviceFixture(ADA, name) for name in ("phone", "laptop")]
    chain, rows = ADA.chain_0("notes"), []
    for seq in range(1, count + 1):
        device = devices[seq % 2]
        event = device.event("notes", f"event {seq}".encode())
        chain = chain_next(crypto, chain, seq, NOW_MS, event.hash)
        rows.append(SignedRow(seq, NOW_MS, device.device_id, event.header, event.sig, event.payload, chain))
    return rows, {device.device_id: DeviceKey(device.device_key) for device in devices}


def walk(
    rows: list[SignedRow], keys: dict[bytes, DeviceKey], start: Start | None = None
) -> tuple[RowWalk, list[tuple[str, int | None]]]:
    """Fed in two steps; what was found."""
    faults = Faults(ADA.user_key, "notes")
    walk = RowWalk(
        user_key=ADA.user_key,
        stream="notes",
        start=start or Start(Position(0, ADA.chain_0("notes"))),
        key_of=keys.get,
        faults=faults,
    )
    walk.feed(rows[:2])
    walk.feed(rows[2:])
    return walk, [(fault.code, fault.seq) for fault in faults.found.faults]


@pytest.mark.parametrize("has_chains", [True, False])
def test_rows_that_are_as_they_were_signed(has_chains: bool) -> None:
    """Also where no chain is kept with them: it is at the end."""
    rows, keys = stream()
    fed = rows if has_chains else [row._replace(chain=None) for row in rows]
    walked, found = walk(fed, keys)
    assert found == []
    assert walked.position == Position(4, rows[-1].chain or b"")
    assert (walked.received_at_ms, walked.is_whole, walked.is_certain) == (NOW_MS, True, True)
    assert {author.n for author in walked.authors.values()} == {2}


def test_rows_from_the_middle_on() -> None:
    """They begin where somebody says, with what authors had written by then; 16 bytes of a hash will do."""
    rows, keys = stream()
    whole, _ = walk(rows[:2], keys)
    authors = {device_id: (author.n, author.hash[:16]) for device_id, author in whole.authors.items()}
    start = Start(Position(2, rows[1].chain or b""), NOW_MS, authors)
    assert walk(rows[2:], keys, start)[1] == []
    strange = {device_id: (n, bytes(16)) for device_id, (n, _) in authors.items()}
    assert walk(rows[2:], keys, Start(start.position, NOW_MS, strange))[1] == [
        ("author_number", 3),
        ("author_number", 4),
    ]


def test_without_chains_a_gap_is_a_gap() -> None:
    """What comes behind it is verified as far as it can be."""
    rows, keys = stream()
    fed = [row._replace(chain=None) for row in rows]
    walked, found = walk([fed[0], *fed[2:]], keys)
    assert found == [("seq_missing", 2)]
    assert (walked.seq, walked.chain, walked.is_whole) == (4, None, False)
    assert walked.reaches(bytes(32))


def test_an_author_that_is_not_known() -> None:
    """By a number that no device has, or by an id that has no key."""
    rows, keys = stream()
    assert walk([rows[0]._replace(device_id=None), *rows[1:]], keys)[1] == [("unknown_author", 1)]
    assert walk(rows, {rows[0].device_id or b"": keys[rows[0].device_id or b""]})[1] == [
        ("unknown_author", 2),
        ("unknown_author", 4),
    ]


def test_an_author_that_left_a_number_out() -> None:
    """Its events in between were never in this stream: the server that took it did not look."""
    device = DeviceFixture(ADA, "phone")
    first, _, third = device.events("notes", 3)
    rows = [
        SignedRow(seq, NOW_MS, device.device_id, event.header, event.sig, event.payload)
        for seq, event in enumerate((first, third), 1)
    ]
    assert walk(rows, {device.device_id: DeviceKey(device.device_key)})[1] == [("author_number", 2)]
