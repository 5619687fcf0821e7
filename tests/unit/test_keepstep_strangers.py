"""What the extension's hub does with a socket before it is a session's, and when it leaves."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from keepstep._keepstep import RecordReader
from tests.support.records import Sealing
from tests.support.websocket import frame

if TYPE_CHECKING:
    from keepstep._keepstep import SocketHub

HEAD: Final = b"GET / HTTP/1.1\r\nA: b\r\n\r\n"
GONE: Final = "gone"

if sys.platform == "linux":
    from keepstep._keepstep import SocketHub

    @contextmanager
    def welcomed() -> Iterator[tuple[SocketHub, int, socket.socket]]:
        """A socket in the hub's hands that has said nothing, and its peer."""
        hub = SocketHub(1_000_000)
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        with peer:
            token = hub.welcome(ours.detach())
            yield hub, token, peer
            hub.discard(token)

    @contextmanager
    def upgraded(rest: bytes = b"") -> Iterator[tuple[SocketHub, int, socket.socket]]:
        """The same after its upgrade, of a limit of 100 bytes."""
        with welcomed() as (hub, token, peer):
            assert hub.upgraded(token, b"", rest, 100) == ([], None)
            yield hub, token, peer

    @pytest.mark.parametrize("head", [HEAD, b"X\n\n", b"X\n\r\n", b"X\r\n\n"])
    def test_a_requests_head_is_given_with_what_came_behind_it(head: bytes) -> None:
        """Once the empty line is there, however the bytes are cut; nothing more is taken then."""
        with welcomed() as (hub, token, peer):
            for index in range(len(head) - 1):
                peer.sendall(head[index : index + 1])
                assert hub.receive() == []
            peer.sendall(head[-1:] + b"rest")
            assert hub.receive() == [(token, [head, b"rest"], 0, None, False)]
            peer.sendall(b"more")
            assert hub.receive() == []
            assert hub.receive() == []

    @pytest.mark.parametrize("sent", [b"\x16\x03\x01", b" GET", b"\r\n", b"x" * 20_480])
    def test_what_is_no_request_ends_the_connection(sent: bytes) -> None:
        """TLS on a plain port, or more than 16 KiB without an end."""
        with welcomed() as (hub, token, peer):
            peer.sendall(sent)
            turns = [turn for _ in range(5) for turn in hub.receive()]
            assert turns == [(token, [], 0, GONE, False)]

    def test_a_request_may_be_as_large_as_the_limit() -> None:
        """Its end has to come within a chunk of it."""
        with welcomed() as (hub, token, peer):
            head = b"x" * (16 * 1024 - 2) + b"\n\n"
            peer.sendall(head)
            turns = [turn for _ in range(5) for turn in hub.receive()]
            assert turns == [(token, [head, b""], 0, None, False)]

    def test_a_peer_that_leaves_within_its_request_is_gone() -> None:
        """As anywhere else."""
        with welcomed() as (hub, token, peer):
            peer.sendall(b"GET")
            peer.close()
            turns = [turn for _ in range(2) for turn in hub.receive()]
            assert turns == [(token, [], 0, GONE, False)]

    def test_the_answer_goes_as_it_is_and_frames_begin() -> None:
        """Those that came behind the request are given at once."""
        with welcomed() as (hub, token, peer):
            assert hub.upgraded(token, b"answer", frame(2, b"hello"), 100) == ([b"hello"], None)
            assert peer.recv(100) == b"answer"
            assert hub.send([(token, [b"clear"])]) == []
            assert peer.recv(100) == b"\x82\x05clear"

    def test_a_stranger_says_one_thing_after_the_other() -> None:
        """What it says before it is asked waits in the socket."""
        with upgraded() as (hub, token, peer):
            peer.sendall(frame(2, b"one"))
            assert hub.receive() == [(token, [b"one"], 3, None, False)]
            peer.sendall(frame(2, b"two"))
            assert [hub.receive(), hub.receive()] == [[], []]
            hub.listen(token)
            assert hub.receive() == [(token, [b"two"], 3, None, False)]

    def test_a_stranger_that_leaves_unasked_is_gone() -> None:
        """A reset shows; nothing has to be read for it."""
        with upgraded() as (hub, token, peer):
            peer.sendall(frame(2, b"one"))
            assert hub.receive()
            peer.close()
            assert hub.receive() == [(token, [], 0, GONE, False)]

    @pytest.mark.parametrize(
        ("sent", "end"),
        [(frame(2, bytes(101)), "too_large"), (frame(1, b"text"), "malformed"), (b"\x82\x00", "broken")],
    )
    def test_a_strangers_frames_are_bounded(sent: bytes, end: str) -> None:
        """By the limit that came with the upgrade; also where they came with the request."""
        with upgraded() as (hub, token, peer):
            peer.sendall(sent)
            assert hub.receive() == [(token, [], 0, end, False)]
        with welcomed() as (hub, token, _):
            assert hub.upgraded(token, b"", sent, 100) == ([], end)

    def test_an_answer_to_a_peer_that_is_gone_says_so() -> None:
        """Nothing is watched then."""
        with welcomed() as (hub, token, peer):
            peer.close()
            assert hub.upgraded(token, b"answer", b"", 100) == ([], GONE)
            assert hub.receive() == []

    def test_a_session_takes_larger_messages_than_a_stranger() -> None:
        """And their records are opened."""
        with upgraded() as (hub, token, peer):
            sealing = Sealing()
            peer.sendall(sealing.frames(bytes(1_000)))
            assert isinstance(sealing.records.reader, RecordReader)
            hub.begin(token, sealing.records.reader, None, 10_000)
            ((_, opened, _, end, _),) = hub.receive()
            assert (opened, end) == ([bytes(1_000)], None)

    def test_the_last_word_is_followed_by_nothing() -> None:
        """What the peer says is passed over until its own last word."""
        with upgraded() as (hub, token, peer):
            assert hub.farewell(token, b"bye", ended=False)
            assert peer.recv(100) == b"bye"
            peer.sendall(frame(2, b"one") + frame(9, b"ping"))
            assert hub.receive() == []
            peer.sendall(frame(8, struct.pack("!H", 1000)))
            assert hub.receive() == [(token, [], 0, "closed", False)]
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(100)

    def test_a_peer_that_has_said_its_last_word_is_told_the_end() -> None:
        """Its own end stands for an answer."""
        with upgraded() as (hub, token, peer):
            peer.sendall(frame(8, struct.pack("!H", 1000)))
            assert hub.receive() == [(token, [], 0, "closed", False)]
            assert hub.farewell(token, b"", ended=True)
            assert peer.recv(100) == b"\x88\x02" + struct.pack("!H", 1000)
            assert peer.recv(100) == b""
            assert hub.receive() == []
            peer.close()
            assert hub.receive() == [(token, [], 0, GONE, False)]

    def test_a_last_word_to_a_peer_that_is_gone_is_not_waited_for() -> None:
        """There is nobody to answer."""
        with upgraded() as (hub, token, peer):
            peer.close()
            assert not hub.farewell(token, b"bye", ended=False)

    def test_connections_are_accepted_together() -> None:
        """With their addresses, IPv4 as such; the listening socket's options are theirs."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert SocketHub.accept(listener.fileno()) == []
            peers = [socket.create_connection(listener.getsockname()) for _ in range(3)]
            accepted = SocketHub.accept(listener.fileno())
            assert [address for _, address in accepted] == ["127.0.0.1"] * 3
            for descriptor, _ in accepted:
                with socket.socket(fileno=descriptor) as ours:
                    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert not os.get_blocking(descriptor)
            for peer in peers:
                peer.close()

    def test_what_does_not_listen_accepts_nothing() -> None:
        """The system's error is raised."""
        with socket.socket() as sock, pytest.raises(OSError, match="Invalid argument"):
            SocketHub.accept(sock.fileno())

    def test_an_error_of_the_connection_that_came_is_not_the_ports() -> None:
        """That one is gone; the others come with the next call. A socket without connections says the same."""
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            assert SocketHub.accept(sock.fileno()) == []

    def test_a_socket_that_is_nobodys_has_no_part_in_anything() -> None:
        """To close it twice does no harm."""
        hub = SocketHub(1_000_000)
        hub.discard(7)
        for call in (
            lambda: hub.upgraded(7, b"", b"", 1),
            lambda: hub.listen(7),
            lambda: hub.farewell(7, b"", ended=False),
            lambda: hub.unsent(7),
        ):
            with pytest.raises(KeyError):
                call()
