"""Pages of the log as messages: rows are MessagePack already and go between header and trailer as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.protocol.codec import encode

if TYPE_CHECKING:
    from keepstep.interfaces import Page

_EVENTS_HEAD: Final = b"\x94\x41"
"""An array of four that begins with 65 (``messages.Events``)."""
_READ_RESULT_HEAD: Final = b"\x96\x46"
"""An array of six that begins with 70 (``messages.ReadResult``)."""
_CHAIN_HEAD: Final = b"\xc4\x20"
"""A byte string of 32."""
_FIXARRAY_MAX: Final = 15
_ARRAY_16_MAX: Final = 0xFFFF


def _array_header(count: int) -> bytes:
    if count <= _FIXARRAY_MAX:
        return bytes((0x90 | count,))
    assert count <= _ARRAY_16_MAX
    return b"\xdc" + count.to_bytes(2, "big")


def encode_rows(page: Page) -> bytes:
    """The rows of one page, as an array."""
    return _array_header(page.count) + page.rows


def encode_events(stream: str, page: Page) -> bytes:
    """``Events`` of one page."""
    return b"".join((_EVENTS_HEAD, encode(stream), _array_header(page.count), page.rows, _CHAIN_HEAD, page.chain))


def encode_read_result(rid: int, stream: str, page: Page) -> bytes:
    """``ReadResult`` of one page."""
    return b"".join(
        (
            _READ_RESULT_HEAD,
            encode(rid),
            encode(stream),
            _array_header(page.count),
            page.rows,
            _CHAIN_HEAD,
            page.chain,
            encode(page.head_seq),
        )
    )


def encode_revoked(page: Page) -> bytes:
    """``messages.Revoked`` from a page of one event."""
    assert page.count == 1
    return b"\x92\x4d" + page.rows
