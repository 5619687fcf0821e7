"""WebSocket frames and sockets as the extension gives them to Python."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys

import pytest

from keepstep import _keepstep
from keepstep._keepstep import FrameReader, frame_close, frame_many
from tests.support.records import OVERHEAD, Sealing, record_reader
from tests.support.websocket import frame


def test_frames_become_messages_replies_and_an_end() -> None:
    """However they are cut; nothing comes after the end."""
    reader = FrameReader(10)
    sent = frame(2, b"one") + frame(9, b"p") + frame(2, b"two") + frame(8, struct.pack("!H", 1000)) + frame(2, b"late")
    assert reader.feed(sent[:5]) == ([], b"", None)
    assert reader.feed(bytearray(sent[5:12])) == ([b"one"], b"", None)
    assert reader.feed(sent[12:]) == ([b"two"], b"\x8a\x01p\x88\x02\x03\xe8", "closed")
    assert reader.feed(frame(2, b"later")) == ([], b"", "closed")


@pytest.mark.parametrize(
    ("sent", "replies", "end"),
    [
        (b"\x82\x01x", b"\x88\x02\x03\xea", "broken"),
        (frame(8, b"\x03\xe8\xff"), b"\x88\x02\x03\xef", "broken"),
        (frame(2, bytes(11)), b"", "too_large"),
        (frame(1, b"text"), b"", "malformed"),
    ],
)
def test_an_end_has_a_name(sent: bytes, replies: bytes, end: str) -> None:
    """What WebSocket has a code for is said already; what our protocol has one for is the caller's to say."""
    assert FrameReader(10).feed(frame(2, b"before") + sent) == ([b"before"], replies, end)


def test_the_limit_can_be_raised() -> None:
    """A stranger's, once the device is authenticated."""
    reader = FrameReader(2)
    reader.limit(3)
    assert reader.feed(frame(2, b"one")) == ([b"one"], b"", None)


def test_a_large_chunk_is_read_without_the_gil_as_well() -> None:
    """The same messages."""
    message = os.urandom(60_000)
    assert FrameReader(100_000).feed(frame(2, message)) == ([message], b"", None)


def test_frames_are_made_together() -> None:
    """From any buffer."""
    assert frame_many([]) == b""
    assert frame_many([b"one", bytearray(b"two"), memoryview(b"")]) == b"\x82\x03one\x82\x03two\x82\x00"
    assert frame_close(4501, "too_large") == b"\x88\x0b" + struct.pack("!H", 4501) + b"too_large"


def test_frames_are_records_where_there_is_a_sealer() -> None:
    """The next ones of it, also behind a rekey."""
    sealer, opener = _keepstep.RecordSealer(2, bytes(32), b""), _keepstep.RecordOpener(2, bytes(32), b"")
    sealer.seal(b"before")
    frames = frame_many([b"one", bytearray(b"two"), None, b""], sealer)
    assert [frames[at : at + 2] for at in (0, 21, 42)] == [b"\x82\x13", b"\x82\x13", b"\x82\x10"]
    opener.open_many([_keepstep.RecordSealer(2, bytes(32), b"").seal(b"before")])
    assert [opener.open(frames[2:21]), opener.open(frames[23:42])] == [b"one", b"two"]
    opener.rekey()
    assert opener.open(frames[44:]) == b""
    assert sealer.records == opener.records == 1


if sys.platform == "linux":

    def pair(hub: _keepstep.SocketHub, sealer: _keepstep.RecordSealer | None = None) -> tuple[int, socket.socket]:
        """A socket in the hub's hands, and its peer."""
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        return joined(hub, ours.detach(), 1_000_000, sealer), peer

    def joined(
        hub: _keepstep.SocketHub, descriptor: int, bytes_max: int = 10, sealer: _keepstep.RecordSealer | None = None
    ) -> int:
        """The token of a socket that is a session's at once."""
        token = hub.welcome(descriptor)
        assert hub.upgraded(token, b"", b"", bytes_max) == ([], None)
        hub.begin(token, record_reader(), sealer, bytes_max)
        return token

    def test_a_hub_seals_for_each_with_its_own_sealer() -> None:
        """In order over several calls; who has none gets the messages as they are."""
        hub = _keepstep.SocketHub(1_000_000)
        sealers = [_keepstep.RecordSealer(1, bytes([number]) * 32, b"aad") for number in range(2)]
        twins = [_keepstep.RecordSealer(1, bytes([number]) * 32, b"aad") for number in range(2)]
        places = [pair(hub, sealer) for sealer in sealers] + [pair(hub)]
        for plaintexts in ([b"one", b"two"], [b"three", None, b"four"]):
            assert hub.send([(token, plaintexts) for token, _ in places]) == []
        for (token, peer), twin in zip(places, [*twins, None], strict=True):
            with peer:
                first = frame_many([b"one", b"two"], twin) + frame_many([b"three", None, b"four"], twin)
                assert peer.recv(1_000) == first
                os.close(hub.remove(token)[0])

    def test_a_hub_receives_from_and_sends_to_those_that_are_ready() -> None:
        """And to nobody else; each socket is given back."""
        hub = _keepstep.SocketHub(1_000_000)
        assert hub.receive() == []
        (first, peer), (second, other) = pair(hub), pair(hub)
        with peer, other:
            peer.sendall(Sealing().frames(b"one") + frame(9, b"p"))
            assert select.select([hub], [], [], 5)[0] == [hub]
            assert hub.receive() == [(first, [b"one"], 3 + OVERHEAD, None, False)]
            assert hub.receive() == []
            assert hub.send([(second, [b"a", b"b"]), (first, [])]) == []
            assert (peer.recv(100), other.recv(100)) == (b"\x8a\x01p", b"\x82\x01a\x82\x01b")
            for token in (first, second):
                descriptor, unsent = hub.remove(token)
                os.close(descriptor)
                assert unsent == 0

    def full(number: int) -> tuple[socket.socket, socket.socket]:
        """A socket that takes nothing more, and its peer, under another number's file: watching that fails."""
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65_536))
        os.dup2(ours.fileno(), number)
        return ours, peer

    def test_a_socket_that_cannot_be_watched_ends_alone_when_sending() -> None:
        """What is left of the others is told."""
        hub = _keepstep.SocketHub(1_000_000)
        ours, peer = socket.socketpair()
        number = ours.fileno()
        ours.setblocking(False)
        other, other_peer = pair(hub)
        token = joined(hub, ours.detach())
        with peer, other_peer:
            held, held_peer = full(number)
            with held, held_peer:
                assert hub.send([(token, [b"one"]), (other, [b"two"])]) == [(token, 0, True)]
            assert other_peer.recv(100) == frame_many([b"two"])
            for each in (token, other):
                os.close(hub.remove(each)[0])

    def test_a_socket_that_cannot_be_watched_ends_alone_when_receiving() -> None:
        """What the others sent is handed over."""
        hub = _keepstep.SocketHub(1_000_000)
        ours, peer = socket.socketpair()
        number = ours.fileno()
        ours.setblocking(False)
        watched = ours.dup()  # the kernel goes on telling of it
        token = joined(hub, ours.detach())
        other, other_peer = pair(hub)
        with peer, watched, other_peer:
            other_peer.sendall(Sealing().frames(b"two"))
            peer.sendall(b"ready")
            held, held_peer = full(number)
            with held, held_peer:
                held_peer.sendall(frame(9, b"p"))  # its pong is what the kernel does not take
                turns = hub.receive()
            assert sorted(turns) == [(token, [], 0, "gone", False), (other, [b"two"], 3 + OVERHEAD, None, False)]
            for each in (token, other):
                os.close(hub.remove(each)[0])

    def test_what_has_left_is_nobody() -> None:
        """Late words about it do no harm; taking it twice is a fault."""
        hub = _keepstep.SocketHub(1_000_000)
        token, peer = pair(hub)
        with peer:
            os.close(hub.remove(token)[0])
            with pytest.raises(KeyError):
                hub.remove(token)
            hub.pause(token, paused=True)
            assert hub.send([(token, [b"one"])]) == []
            again, other = pair(hub)
            with other:
                assert again != token
                os.close(hub.remove(again)[0])

    def test_what_a_socket_does_not_take_goes_when_it_does() -> None:
        """In order, after what is written meanwhile too; until then it counts."""
        hub = _keepstep.SocketHub(1_000_000)
        token, peer = pair(hub)
        message = bytes(range(256)) * 4_000
        with peer:
            ((left, unsent, gone),) = hub.send([(token, [message])])
            assert (left, gone) == (token, False)
            assert hub.send([(token, [b"last"])]) == [(token, unsent + 6, False)]
            data, told = b"", False
            while len(data) < len(message) + 10 + 6:
                data += peer.recv(1 << 20)
                told = told or (token, [], 0, None, True) in hub.receive()
            assert told
            assert data[10:] == message + b"\x82\x04last"
            os.close(hub.remove(token)[0])

    @pytest.mark.parametrize("paused", [False, True])
    def test_a_peer_that_is_gone_is_told_once(paused: bool) -> None:
        """By receiving, or by sending; then its socket is watched no more."""
        hub = _keepstep.SocketHub(1_000_000)
        (first, peer), (second, other) = pair(hub), pair(hub)
        hub.pause(first, paused=paused)
        peer.close()
        other.close()
        assert hub.send([(second, [b"one"])]) == [(second, 0, True)]
        assert hub.receive() == [(first, [], 0, "gone", False)]
        assert hub.receive() == []
        assert hub.send([(first, [b"one"]), (second, [b"one"])]) == []
        hub.pause(first, paused=False)
        for token in (first, second):
            os.close(hub.remove(token)[0])

    def test_a_hub_takes_sockets_only() -> None:
        """What epoll cannot watch is closed and refused."""
        hub = _keepstep.SocketHub(1_000_000)
        descriptor = os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(PermissionError):
            hub.welcome(descriptor)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)

    def begins(hub: _keepstep.SocketHub, peer: socket.socket, data: bytes) -> list[tuple[int, str | None]]:
        """Send what ends in a message that is not whole; whose ends it brought."""
        peer.sendall(data)
        return [(token, end) for token, _, _, end, _ in hub.receive()]

    def test_whose_message_began_first_goes_where_unfinished_ones_have_no_room() -> None:
        """No more of them than has to; what is whole, or of a socket that has gone, takes no room."""
        hub, sealing = _keepstep.SocketHub(100_000), Sealing()
        unfinished, whole = frame(2, bytes(60_000))[:40_000], sealing.frames(bytes(40_000))
        (gone, away), (busy, one), (slow, two), (_, three), (_, four) = places = [pair(hub) for _ in range(5)]
        assert begins(hub, away, unfinished) == []
        hub.discard(gone)
        assert begins(hub, one, whole[:40_000]) == []
        assert begins(hub, two, unfinished) == []
        assert begins(hub, one, whole[40_000:] + unfinished[:20_000]) == [(busy, None)]
        assert begins(hub, one, unfinished[20_000:]) == []  # of a message that began after the slow one's
        assert begins(hub, three, unfinished) == [(slow, "timeout")]
        assert begins(hub, two, bytes(20_000)) == []
        assert begins(hub, four, unfinished) == [(busy, "timeout")]
        assert hub.farewell(slow, b"bye", False)
        assert two.recv(10) == b"bye"
        for token, peer in places:
            hub.discard(token)
            peer.close()

    def test_who_went_in_the_middle_of_a_message_ends_once() -> None:
        """Also where there is no room for what it left: that goes, and nobody else."""
        hub = _keepstep.SocketHub(100_000)
        (gone, away), (there, peer) = pair(hub), pair(hub)
        unfinished = frame(2, bytes(65_000))[:60_000]
        assert begins(hub, away, unfinished) == []
        away.close()
        assert begins(hub, peer, unfinished) == [(gone, "gone")]
        hub.discard(gone)
        assert hub.receive() == []
        hub.discard(there)
        peer.close()
