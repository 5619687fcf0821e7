"""A whole transaction in one write, against a server that answers what a test says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

import pytest

from keepstep._keepstep import Flight, Ingested
from keepstep.postgres.arrays import bigints, byteas
from tests.support.events import DeviceFixture, UserFixture, submission
from tests.support.flying import COPIED, IDLE, MOVED, ROW, message
from tests.support.ingesting import ingest, new_head, principal

ADA: Final = UserFixture("ada")


def fields(**values: str) -> bytes:
    """What an error or a notice holds."""
    return b"".join(code.encode() + value.encode() + b"\0" for code, value in values.items()) + b"\0"


WARNING: Final = message(b"N", fields(S="WARNING", V="WARNING", C="01000", M="canceling wait"))


class Wire:
    """The two ends of a connection."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()

    def close(self) -> None:
        """Both."""
        self.client.close()
        self.server.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A connection."""
    wire = Wire()
    yield wire
    wire.close()


def batch(*, events: int = 3, payload: bytes = b"payload") -> Ingested:
    """Events in two streams of the two retention classes."""
    device = DeviceFixture(ADA, "phone")
    heads = [new_head(ADA, "notes"), new_head(ADA, "kept", stream_pk=4, retention_class=0)]
    signed = [device.event(name, payload) for name in ("notes", "kept") for _ in range(events)]
    return ingest(submission(principal(device), *signed), heads=heads)


def flight(ingested: Ingested | None = None, *, copies: dict[int, str] | None = None) -> Flight:
    """On its way with one class, where nothing else is said."""
    return Flight(ingested or batch(), move_heads="move", copies=copies or {1: "copy"})


def answered(wire: Wire, answer: bytes) -> Flight:
    """A flight that was answered so."""
    flown = flight()
    assert not flown.fly(wire.client.fileno(), 0.0)
    wire.server.sendall(answer)
    assert flown.fly(wire.client.fileno(), 0.0)
    return flown


def messages(sent: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of each."""
    while sent:
        length = int.from_bytes(sent[1:5], "big")
        yield sent[:1], sent[5 : 1 + length]
        sent = sent[1 + length :]


def test_all_of_it_is_one_write(wire: Wire) -> None:
    """The heads move by one statement, each class of events is copied, and the sync commits."""
    ingested = batch()
    flown = flight(ingested, copies={0: "keep", 1: "standard"})
    assert not flown.fly(wire.client.fileno(), 0.0)

    sent = list(messages(wire.server.recv(65_536)))

    kinds = b"".join(kind for kind, _ in sent)
    assert kinds == b"BE" + 2 * b"BEdddc" + b"S"
    copied = [content for kind, content in sent if kind == b"d"]
    assert [b"".join(copied[:3]), b"".join(copied[3:])] == [ingested.copy_bytes(0), ingested.copy_bytes(1)]
    moved = ingested.moved
    parameters = [
        bigints([old.user_pk for old, _ in moved]),
        bigints([old.stream_pk for old, _ in moved]),
        bigints([old.seq for old, _ in moved]),
        byteas([old.chain for old, _ in moved]),
        bigints([old.auth_epoch for old, _ in moved]),
        bigints([new.seq for _, new in moved]),
        byteas([new.chain for _, new in moved]),
        bigints([new.received_at_ms for _, new in moved]),
        byteas([new.authors_packed for _, new in moved]),
        bigints([new.stored_bytes - old.stored_bytes for old, new in moved]),
        len(moved).to_bytes(8, "big"),
        b"\1",
    ]
    values = b"".join(len(value).to_bytes(4, "big") + value for value in parameters)
    binary = b"\0\1\0\1"
    assert sent[0][1] == b"\0move\0" + binary + b"\0\x0c" + values + binary
    assert sent[1][1] == b"\0" + bytes(4)
    assert sent[2][1] == b"\0keep\0" + binary + b"\0\0" + binary


def test_what_is_committed_has_a_number(wire: Wire) -> None:
    """And the connection can be used again."""
    flown = answered(wire, MOVED + COPIED + IDLE)

    assert (flown.xid, flown.error, flown.warned, flown.in_step) == ("771", None, False, True)


def test_answers_come_in_any_pieces(wire: Wire) -> None:
    """Also byte by byte."""
    flown = flight()
    answer = MOVED + COPIED + IDLE
    for byte in answer[:-1]:
        wire.server.send(bytes([byte]))
        assert not flown.fly(wire.client.fileno(), 0.0)
    assert not flown.in_step
    wire.server.send(answer[-1:])

    assert flown.fly(wire.client.fileno(), None)
    assert flown.in_step


def test_an_error_is_told_with_its_fields(wire: Wire) -> None:
    """The first one counts; the session is idle again."""
    first = message(b"E", fields(S="ERROR", V="ERROR", C="23514", M="no partition"))
    flown = answered(wire, MOVED + first + message(b"E", fields(C="25P02")) + IDLE)

    assert flown.error == {ord("S"): b"ERROR", ord("V"): b"ERROR", ord("C"): b"23514", ord("M"): b"no partition"}
    assert flown.in_step


def test_only_a_warning_of_the_commit_counts(wire: Wire) -> None:
    """It comes after everything else; notices and other news mean nothing."""
    notice = message(b"N", fields(S="NOTICE", V="NOTICE", C="00000", M="so"))
    news = message(b"S", b"TimeZone\0UTC\0") + message(b"A", bytes(4) + b"channel\0\0")

    assert not answered(wire, WARNING + MOVED + COPIED + notice + news + IDLE).warned
    assert answered(wire, MOVED + COPIED + WARNING + IDLE).warned


def test_more_than_was_asked_for_leaves_the_connection_out_of_step(wire: Wire) -> None:
    """libpq would take the rest for the beginning of something; the outcome is known all the same."""
    flown = answered(wire, MOVED + COPIED + IDLE + WARNING[:7])

    assert (flown.xid, flown.error, flown.in_step) == ("771", None, False)


@pytest.mark.parametrize(
    "answer",
    [
        message(b"Q"),
        b"2" + (3).to_bytes(4, "big"),
        b"2" + (-1).to_bytes(4, "big", signed=True),
        b"2" + (1 << 20).to_bytes(4, "big"),
        MOVED + IDLE,
        COPIED + COPIED + IDLE,
        MOVED + COPIED + message(b"Z", b"T"),
        message(b"D", b"\0\1\0\0\0\x09771"),
        message(b"D", b"\0\1" + bytes(3)),
        message(b"D", b"\0\1\0\0\0\1\xff"),
        MOVED + ROW,
        message(b"E", b"SERROR"),
        message(b"E", b"SERROR\0"),
        message(b"E", b"\0\0"),
        message(b"E", b""),
    ],
)
def test_a_server_that_makes_no_sense_is_left(wire: Wire, answer: bytes) -> None:
    """Nothing is concluded from it."""
    flown = flight()
    wire.server.sendall(answer)

    with pytest.raises(ConnectionError):
        flown.fly(wire.client.fileno(), 0.0)
    assert not flown.in_step


def test_a_lost_connection_is_told(wire: Wire) -> None:
    """With what was answered until then."""
    flown = flight()
    wire.server.sendall(MOVED)
    wire.server.shutdown(socket.SHUT_WR)

    with pytest.raises(ConnectionError, match="closed"):
        flown.fly(wire.client.fileno(), None)
    assert flown.xid == "771"


def test_what_the_server_said_before_it_went_is_heard(wire: Wire) -> None:
    """Although nothing can be sent any more."""
    flown = flight()
    wire.server.sendall(message(b"E", fields(S="FATAL", V="FATAL", C="57P01", M="terminating")))
    wire.server.close()

    with pytest.raises(ConnectionError):
        flown.fly(wire.client.fileno(), None)
    assert flown.error is not None
    assert flown.error[ord("C")] == b"57P01"


def test_both_sides_may_send_at_once(wire: Wire) -> None:
    """A server that waits until its answers are taken does not read, and is not waited for."""
    ingested = batch(events=100, payload=bytes(8_192))
    flown = flight(ingested, copies={0: "keep", 1: "standard"})
    assert not flown.fly(wire.client.fileno(), 0.0)
    wire.server.setblocking(False)
    news = message(b"S", b"application_name\0" + bytes(4_000) + b"\0")
    told = 0
    while told < 4 << 20:  # more than any buffer holds
        try:
            told += wire.server.send(news[told % len(news) :])
        except BlockingIOError:
            assert not flown.fly(wire.client.fileno(), 0.0)
    wire.server.setblocking(True)
    wire.server.sendall(news[told % len(news) :] if told % len(news) else b"")

    received = bytearray()
    while not received.endswith(message(b"S")):
        received += wire.server.recv(1 << 20)
        assert not flown.fly(wire.client.fileno(), 0.0)

    assert [kind for kind, _ in messages(bytes(received))].count(b"d") == 6
    wire.server.sendall(MOVED + COPIED + COPIED + IDLE)
    assert flown.fly(wire.client.fileno(), None)


@pytest.mark.parametrize(("descriptor", "timeout_s"), [(-1, 1.0), (0, -1.0), (0, float("nan"))])
def test_a_flight_takes_a_socket_and_a_time(descriptor: int, timeout_s: float) -> None:
    """Anything else is a caller's mistake."""
    with pytest.raises(ValueError, match=r"not a (socket|time)"):
        flight().fly(descriptor, timeout_s)
