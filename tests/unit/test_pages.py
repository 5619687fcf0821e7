"""Pages as messages: what is put together by hand decodes as the messages it should be."""

from __future__ import annotations

import msgspec
import pytest

from keepstep.interfaces import Page
from keepstep.pages import encode_events, encode_read_result
from keepstep.protocol.messages import EventRow, Events, ReadResult, decode_from_server
from tests.support.events import seed


def make_page(count: int) -> tuple[Page, list[EventRow]]:
    """A page of small rows, and the rows."""
    rows: list[EventRow] = [
        (seq, bytes(16), 1_000 + seq, b"header", bytes(64), b"payload", None) for seq in range(5, 5 + count)
    ]
    encoded = b"".join(msgspec.msgpack.encode(row) for row in rows)
    return Page(4, encoded, count, 4 + count, seed("chain"), 1_000_000), rows


@pytest.mark.parametrize("count", [0, 1, 15, 16, 1_000])
def test_a_page_decodes_as_events(count: int) -> None:
    """On both sides of where MessagePack writes the length of an array in another way."""
    page, rows = make_page(count)
    assert decode_from_server(encode_events("notes", page)) == Events("notes", rows, page.chain)


@pytest.mark.parametrize("count", [0, 15, 16])
def test_a_page_decodes_as_read_result(count: int) -> None:
    """With the request's id, and the head that the stream had."""
    page, rows = make_page(count)
    decoded = decode_from_server(encode_read_result(77, "notes", page))
    assert decoded == ReadResult(77, "notes", rows, page.chain, page.head_seq)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_pages_are_encoded_as_the_codec_would(count: int) -> None:
    """Byte for byte the one encoding of the message."""
    page, rows = make_page(count)
    assert encode_events("notes", page) == msgspec.msgpack.encode(Events("notes", rows, page.chain))
