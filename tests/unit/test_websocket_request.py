"""Upgrade requests in the usual shape, and that all others are left to the library."""

from __future__ import annotations

import pytest
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection
from wsproto.handshake import H11Handshake

from keepstep.websocket_request import read_plain_request

LINES = (
    b"GET /v1/connect HTTP/1.1",
    b"Host: here:8441",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Protocol: keepstep.v1",
)


def head(*lines: bytes) -> bytes:
    """Of a request."""
    return b"\r\n".join((*lines, b"", b""))


def test_the_answer_is_the_librarys() -> None:
    """To the byte, but for the case of names; the token is that of RFC 6455 section 1.3."""
    request = read_plain_request(head(*LINES), b"keepstep.v1")
    assert request is not None
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in request.acceptance
    assert request.headers[0] == (b"host", b"here:8441")
    handshake = H11Handshake(ConnectionType.SERVER)
    handshake.receive_data(head(*LINES))
    list(handshake.events())
    answer = handshake.send(AcceptConnection(subprotocol="keepstep.v1"))
    assert sorted(request.acceptance.lower().split(b"\r\n")) == sorted(answer.lower().split(b"\r\n"))


@pytest.mark.parametrize(
    "line",
    [
        b"X-Forwarded-For: 192.0.2.1, 198.51.100.1",
        b"x-empty-no:1",
        b"Sec-WebSocket-Extensions: permessage-deflate",
        b"Origin:   https://here  ",
    ],
)
def test_what_else_a_request_says_does_no_harm(line: bytes) -> None:
    """Compression among it, which is not answered."""
    request = read_plain_request(head(*LINES, line), b"keepstep.v1")
    assert request is not None
    assert len(request.headers) == len(LINES)
    assert b"deflate" not in request.acceptance


def test_a_query_is_part_of_the_usual_shape() -> None:
    """It is ignored."""
    assert read_plain_request(head(b"GET /v1/connect?a=b HTTP/1.1", *LINES[1:]), b"keepstep.v1") is not None


@pytest.mark.parametrize("missing", range(1, len(LINES)))
def test_a_request_without_something_is_left_to_the_library(missing: int) -> None:
    """And one that says it twice."""
    assert read_plain_request(head(*LINES[:missing], *LINES[missing + 1 :]), b"keepstep.v1") is None
    assert read_plain_request(head(*LINES, LINES[missing]), b"keepstep.v1") is None


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (0, b"POST /v1/connect HTTP/1.1"),
        (0, b"GET /v1/connected HTTP/1.1"),
        (0, b"GET /v1/connect HTTP/1.0"),
        (0, b"GET /v1/connect?a b HTTP/1.1"),
        (1, b"Host : here"),
        (1, b" Host: here"),
        (1, b"Host: he\x00re"),
        (1, b"Host: here\nX: y"),
        (2, b"Upgrade: h2c"),
        (3, b"Connection: keep-alive"),
        (4, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="),
        (4, b"Sec-WebSocket-Key: short=="),
        (5, b"Sec-WebSocket-Version: 8"),
        (6, b"Sec-WebSocket-Protocol: keepstep.v2"),
        (6, b"Sec-WebSocket-Protocol: keepstep.v1\r\nContent-Length: 1"),
        (6, b"Sec-WebSocket-Protocol: keepstep.v1\r\nTransfer-Encoding: chunked"),
    ],
)
def test_what_is_unusual_is_left_to_the_library(place: int, line: bytes) -> None:
    """Which refuses it, or not."""
    lines = [*LINES]
    lines[place] = line
    assert read_plain_request(head(*lines), b"keepstep.v1") is None


def test_a_head_without_its_end_is_left_to_the_library() -> None:
    """So are lines that end as they should not."""
    assert read_plain_request(b"\r\n".join(LINES), b"keepstep.v1") is None
    assert read_plain_request(head(*LINES).replace(b"\r\n", b"\n"), b"keepstep.v1") is None
