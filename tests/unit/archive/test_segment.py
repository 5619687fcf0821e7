"""One segment as bytes: what it is made of, and every way in which it can be none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import zstandard

from keepstep.archive import segment
from keepstep.archive.segment import MAGIC, SIGNATURE_PREFIX, Edge, Manifest, edges, pack, unpack, without
from keepstep.client import crypto
from keepstep.errors import ArchiveError
from keepstep.model import Position
from keepstep.protocol.chain import chain_0, chain_next
from keepstep.protocol.codec import encode
from tests.support.events import NOW_MS, DeviceFixture, UserFixture

if TYPE_CHECKING:
    from keepstep.archive.segment import SegmentRow

ADA: Final = UserFixture("ada")
SECRET: Final = crypto.blake3(b"the server's key")
KEYS: Final = (crypto.ed25519_public(SECRET),)


def made() -> tuple[Edge, Edge, list[SegmentRow]]:
    """Three events from the beginning of a stream."""
    phone = DeviceFixture(ADA, "phone")
    start = Edge(Position(0, chain_0(crypto, ADA.user_key, "notes")), {}, 0)
    rows: list[SegmentRow] = []
    chain = start.position.chain
    for seq, event in enumerate(phone.events("notes", 3), 1):
        rows.append((seq, phone.device_id, NOW_MS + seq, event.header, event.sig, event.payload))
        chain = chain_next(crypto, chain, seq, NOW_MS + seq, event.hash)
    return start, Edge(Position(3, chain), {phone.device_id: (3, event.hash)}, NOW_MS + 3), rows


def packed(rows: Any, *, body: bytes | None = None, **changes: Any) -> bytes:
    """A segment of rows that the server signs whatever they are; ``changes`` of its manifest."""
    start, end, _ = made()
    raw = msgspec.msgpack.encode(rows)
    frame = zstandard.compress(raw) if body is None else body
    manifest = Manifest(
        *(ADA.user_key, "notes", 0, start.position.chain, {}, 0),
        *(3, end.position.chain, end.authors, NOW_MS + 3, len(raw), crypto.blake3(frame)),
    )
    signed = encode(msgspec.structs.replace(manifest, **changes))
    return b"".join(
        (MAGIC, len(signed).to_bytes(4, "big"), signed, crypto.ed25519_sign(SECRET, SIGNATURE_PREFIX + signed), frame)
    )


def test_a_segment_reads_back_as_it_was_written() -> None:
    """With the chain after each event; the same events make the same object under the same name."""
    start, end, rows = made()
    name, data = pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=rows)
    read = unpack(data, KEYS)
    assert list(read.rows) == rows
    assert read.chains[-1] == end.position.chain
    assert edges(read.manifest) == (start, end)
    assert pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=rows) == (name, data)
    assert name.split("/")[2].startswith("0000000000000000-0000000000000003-")


def test_what_is_erased_is_left_out_and_the_rest_verifies() -> None:
    """Header, signature and place stay."""
    start, end, rows = made()
    _, data = pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=rows)
    left = without(unpack(data, KEYS), {(rows[1][1], 2)})
    assert left == [rows[0], (*rows[1][:5], None), rows[2]]
    _, again = pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=left)
    assert list(unpack(again, KEYS).rows) == left


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda rows: packed([rows[0], rows[2], rows[1]]), "event 2 is not where", id="swapped pair"),
        pytest.param(lambda rows: packed(rows[:2]), "do not lead to its end", id="last one missing"),
        pytest.param(lambda rows: packed([*rows[:2], (*rows[2][:4], bytes(64), b"")]), "lead|signed", id="other sig"),
        pytest.param(
            lambda rows: packed([(*rows[0][:5], b"other"), *rows[1:]]), "payload of the event 1", id="payload"
        ),
        pytest.param(
            lambda rows: packed([(*rows[0][:3], b"\xc1", *rows[0][4:]), *rows[1:]]),
            "header of the event 1",
            id="header",
        ),
        pytest.param(lambda _: packed([]), "cannot be unpacked", id="no events"),
        pytest.param(lambda rows: packed(rows, body=b"no frame"), "cannot be unpacked", id="no zstd frame"),
        pytest.param(lambda rows: packed(rows, rows_bytes=segment.BYTES_MAX + 1), "larger than any", id="bomb"),
        pytest.param(lambda rows: packed(rows, digest=bytes(32)), "digest", id="other digest"),
        pytest.param(lambda rows: packed(rows, user_key=b"short"), "manifest does not have its form", id="manifest"),
    ],
)
def test_a_segment_that_was_signed_wrongly_is_refused(change: Any, words: str) -> None:
    """A fault of the server's own is found like any other."""
    _, _, rows = made()
    with pytest.raises(ArchiveError, match=words) as refused:
        unpack(change(rows), KEYS)
    assert refused.value.code == "segment_damaged"


def test_every_flipped_byte_is_noticed() -> None:
    """Wherever it is."""
    start, end, rows = made()
    _, data = pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=rows)
    for index in range(0, len(data), 7):
        with pytest.raises(ArchiveError):
            unpack(data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :], KEYS)


def test_names_differ_between_users_and_streams() -> None:
    """And a user's streams lie together."""
    ben = UserFixture("ben").user_key
    assert segment.stream_folder(ADA.user_key, "a").startswith(segment.user_folder(ADA.user_key))
    assert segment.stream_folder(ADA.user_key, "a") != segment.stream_folder(ADA.user_key, "b")
    assert segment.user_folder(ADA.user_key) != segment.user_folder(ben)


def test_another_place_makes_another_segment() -> None:
    """The manifest says where it belongs."""
    start, end, rows = made()
    other = replace(start, received_at_ms=5)
    assert (
        pack(SECRET, ADA.user_key, "notes", start=start, end=end, rows=rows)[1]
        != pack(SECRET, ADA.user_key, "notes", start=other, end=end, rows=rows)[1]
    )
