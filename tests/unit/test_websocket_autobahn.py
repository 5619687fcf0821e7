"""Autobahn's cases by number, against the server on a real socket: those that binary messages without extensions have.

What Autobahn expects of text (1.1, 5.3 to 5.20 in text, 6) has one answer here: binary messages only, ``malformed``.
Cases 9 (speed), 10, 12 and 13 (extensions) do not apply. `make test-autobahn` runs Autobahn itself.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import pytest
import trio

from keepstep.entrance import Entrance
from keepstep.websocket import serve_stream
from keepstep.websocket_connection import Limits
from tests.support.echo import by_awaiting, by_callbacks
from tests.support.records import OVERHEAD, Sealing
from tests.support.websocket import UPGRADE, Place, frame, read_all

LIMITS: Final = Limits(
    upgrade_timeout_s=10,
    unauthenticated_message_bytes_max=100_000,
    message_bytes_max=100_000,
    unfinished_bytes_max=1_000_000,
)
BINARY, PING, PONG, CLOSE = 2, 9, 10, 8


@asynccontextmanager
async def peer(way: str) -> AsyncIterator[trio.SocketStream]:
    """A raw client of an echoing server, upgraded."""
    async with trio.open_nursery() as nursery:
        hub = None
        if way == "hub":
            from keepstep.websocket_hub import Hub

            hub = Hub(nursery, lambda error, _address: pytest.fail(repr(error)), unfinished_bytes_max=1_000_000)
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with listener, client:
            nursery.start_soon(
                partial(
                    serve_stream,
                    await listener.accept(),
                    "192.0.2.1",
                    handler=by_awaiting if way == "awaiting" else by_callbacks,
                    admit=lambda _: Place(),
                    limits=LIMITS,
                    entrance=Entrance(),
                    refusals=trio.CapacityLimiter(1),
                    on_fault=lambda error, _address: pytest.fail(repr(error)),
                    hub=hub,
                )
            )
            await client.send_all((UPGRADE + "\r\n").encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += bytes(await client.receive_some(1))
            yield client


def plain(opcode: int, payload: bytes) -> bytes:
    """An unmasked frame, as the server sends it."""
    if len(payload) < 126:
        return bytes([0x80 | opcode, len(payload)]) + payload
    if len(payload) <= 0xFFFF:
        return bytes([0x80 | opcode, 126]) + struct.pack("!H", len(payload)) + payload
    return bytes([0x80 | opcode, 127]) + struct.pack("!Q", len(payload)) + payload


def masked(payload: bytes) -> bytes:
    """A binary message of any size, with a mask that is not zero."""
    mask = b"\x37\xfa\x21\x3d"
    body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    head = plain(BINARY, payload)[: -len(payload) or None]
    return head[:1] + bytes([head[1] | 0x80]) + head[2:] + mask + body


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame's payload."""
    return struct.pack("!H", code) + reason


OCTETS: Final = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
DONE: Final = frame(CLOSE, closing(1000))
BYE: Final = plain(CLOSE, closing(1000))
BROKEN: Final = plain(CLOSE, closing(1002))
TEXT: Final = plain(CLOSE, closing(4500, b"malformed"))

Cases = dict[str, tuple[list[bytes], bytes]]

OF_FRAMES: Final[Cases] = {
    # 2 pings and pongs
    "2.1": ([frame(PING, b""), DONE], plain(PONG, b"") + BYE),
    "2.2": ([frame(PING, b"Hello, world!"), DONE], plain(PONG, b"Hello, world!") + BYE),
    "2.3": (
        [frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), DONE],
        plain(PONG, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff") + BYE,
    ),
    "2.4": ([frame(PING, b"\xfe" * 125), DONE], plain(PONG, b"\xfe" * 125) + BYE),
    "2.5": ([frame(PING, b"\xfe" * 126), DONE], BROKEN),
    "2.6": ([bytes([octet]) for octet in frame(PING, b"\xfe" * 125)] + [DONE], plain(PONG, b"\xfe" * 125) + BYE),
    "2.7": ([frame(PONG, b""), DONE], BYE),
    "2.8": ([frame(PONG, b"unsolicited"), DONE], BYE),
    "2.9": ([frame(PONG, b"unsolicited"), frame(PING, b"ping"), DONE], plain(PONG, b"ping") + BYE),
    "2.10": (
        [b"".join(frame(PING, b"payload-%d" % index) for index in range(10)), DONE],
        b"".join(plain(PONG, b"payload-%d" % index) for index in range(10)) + BYE,
    ),
    "2.11": (
        [bytes([octet]) for octet in b"".join(frame(PING, b"payload-%d" % index) for index in range(10))] + [DONE],
        b"".join(plain(PONG, b"payload-%d" % index) for index in range(10)) + BYE,
    ),
    # 6 text, whether it is UTF-8 or not
    "6.1.1": ([frame(1, b""), DONE], TEXT),
    "6.3.1": ([frame(1, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited")], TEXT),
    # 7 closing
    "7.1.2": ([DONE, DONE], BYE),
    "7.1.3": ([DONE, frame(PING, b"late")], BYE),
    "7.1.4": ([DONE, frame(BINARY, b"late")], BYE),
    "7.3.1": ([frame(CLOSE, b"")], plain(CLOSE, b"")),
    "7.3.2": ([frame(CLOSE, b"a")], BROKEN),
    "7.3.3": ([DONE], BYE),
    "7.3.4": ([frame(CLOSE, closing(1000, b"Hello World!"))], BYE),
    "7.3.5": ([frame(CLOSE, closing(1000, b"*" * 123))], BYE),
    "7.3.6": ([frame(CLOSE, closing(1000, b"*" * 124))], BROKEN),
    "7.5.1": ([frame(CLOSE, closing(1000, b"\xce\xba\xed\xa0\x80edited"))], plain(CLOSE, closing(1007))),
    **{
        f"7.7.{number}": ([frame(CLOSE, closing(code))], plain(CLOSE, closing(code)))
        for number, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1)
    },
    **{
        f"7.9.{number}": ([frame(CLOSE, closing(code))], BROKEN)
        for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    },
    "7.13.1": ([frame(CLOSE, closing(5000))], BROKEN),
    "7.13.2": ([frame(CLOSE, closing(65_535))], BROKEN),
}
"""Those without a binary message that is answered."""


def of_messages(sealed: Callable[[bytes], bytes], overhead: int) -> Cases:
    """Number → what the client sends, the last of it after the answers to the rest, and all that the server answers.

    Args:
        sealed: what a client sends of its first message.
        overhead: by how many bytes that is longer.
    """

    def octets(size: int) -> bytes:
        return b"\xfe" * max(0, size - overhead)  # so that sizes are those of what is sent

    one, fragment, letters = sealed(b"one"), sealed(b"fragment"), sealed(b"abcde")
    frag, ment = fragment[:4], fragment[4:]
    a, b, c, d, e = letters[:1], letters[1:2], letters[2:3], letters[3:4], letters[4:]
    return {
        # 1 framing: sizes on both sides of each way to write a length
        **{
            f"1.2.{number}": ([masked(sealed(octets(size))), DONE], plain(BINARY, octets(size)) + BYE)
            for number, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1)
        },
        "1.2.8": (
            [masked(sealed(octets(65_536)))[at : at + 997] for at in range(0, 65_550, 997)] + [DONE],
            plain(BINARY, octets(65_536)) + BYE,
        ),
        "1.1.1": ([frame(1, b""), DONE], TEXT),
        "1.1.2": ([frame(1, b"*" * 125), DONE], TEXT),
        # 3 reserved bits
        **{
            f"3.{bits}": ([frame(BINARY, one), frame(BINARY, b"two", reserved=bits)], plain(BINARY, b"one") + BROKEN)
            for bits in range(1, 8)
        },
        # 4 reserved opcodes
        **{
            f"4.{group}.{number}": ([frame(BINARY, one), frame(opcode, payload)], plain(BINARY, b"one") + BROKEN)
            for group, first in ((1, 3), (2, 11))
            for number, (opcode, payload) in enumerate(
                ((first, b""), (first + 1, b"reserved"), (first + 2, b""), (first + 3, b"reserved"), (first + 4, b"")),
                1,
            )
        },
        # 5 fragments
        "5.1": ([frame(PING, b"frag", final=False), frame(0, b"ment")], BROKEN),
        "5.2": ([frame(PONG, b"frag", final=False), frame(0, b"ment")], BROKEN),
        "5.3": ([frame(BINARY, frag, final=False), frame(0, ment), DONE], plain(BINARY, b"fragment") + BYE),
        "5.4": ([frame(BINARY, frag, final=False) + frame(0, ment), DONE], plain(BINARY, b"fragment") + BYE),
        "5.5": (
            [bytes([octet]) for octet in frame(BINARY, frag, final=False) + frame(0, ment)] + [DONE],
            plain(BINARY, b"fragment") + BYE,
        ),
        "5.6": (
            [frame(BINARY, frag, final=False), frame(PING, b"ping"), frame(0, ment), DONE],
            plain(PONG, b"ping") + plain(BINARY, b"fragment") + BYE,
        ),
        "5.9": ([frame(0, b"nothing to continue"), frame(BINARY, b"one")], BROKEN),
        "5.12": ([frame(0, b"nothing to continue", final=False), frame(BINARY, b"one")], BROKEN),
        "5.15": (
            [frame(BINARY, frag, final=False), frame(0, ment), frame(0, b"a", final=False) + frame(BINARY, b"one")],
            plain(BINARY, b"fragment") + BROKEN,
        ),
        "5.18": ([frame(BINARY, b"one", final=False), frame(BINARY, b"two")], BROKEN),
        "5.19": (
            [frame(BINARY, a, final=False), frame(0, b, final=False), frame(PING, b"1"), frame(0, c, final=False)]
            + [frame(0, d, final=False), frame(PING, b"2"), frame(0, e), DONE],
            plain(PONG, b"1") + plain(PONG, b"2") + plain(BINARY, b"abcde") + BYE,
        ),
        "7.1.1": ([frame(BINARY, one), DONE], plain(BINARY, b"one") + BYE),
        "7.1.5": ([frame(BINARY, frag, final=False), DONE, frame(0, ment)], BYE),
    }


PLAIN: Final = OF_FRAMES | of_messages(lambda message: message, 0)
SEALED: Final = OF_FRAMES | of_messages(lambda message: Sealing().seal(message)[0], OVERHEAD)
"""Where the connection listens, it opens records."""


@pytest.mark.parametrize("way", ["awaiting", "stream", *(["hub"] if sys.platform == "linux" else [])])
@pytest.mark.parametrize("number", PLAIN)
async def test_the_server_answers_as_autobahn_expects(number: str, way: str) -> None:
    """The same bytes, whichever way they move."""
    sent, expected = (PLAIN if way == "awaiting" else SEALED)[number]
    *first, last = sent
    before = len(expected[: expected.rfind(b"\x88")])  # what it sends before it closes
    answer = b""
    with trio.fail_after(20):
        async with peer(way) as client:
            with suppress(trio.BrokenResourceError):  # it has ended the connection by then
                for data in first:
                    await client.send_all(data)
                while len(answer) < before:
                    answer += bytes(await client.receive_some(before - len(answer)))
                await client.send_all(last)
                await client.send_eof()
            assert answer + await read_all(client) == expected
