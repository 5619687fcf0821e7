"""What only the hub does: it rests with and without connections, and holds so much and no more. Elsewhere is none."""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.listening import BY_HUB, PATIENCE_S, Bench, bench, descriptors, has
from tests.support.records import Sealing
from tests.support.websocket import frame, read_all

if sys.platform == "linux":
    from keepstep._keepstep import SocketHub
    from keepstep.websocket_hub import HubConnection

    @pytest.mark.parametrize(("size", "count"), [(32_000, 4), (1, 1_000)])
    def test_nobody_has_two_turns_before_everybody_had_one(size: int, count: int) -> None:
        """Even where more have something than one turn takes, and the kernel names the same ones first.

        It takes so many bytes, and of short messages so many: what others wait for comes in between.
        """
        hub, message = SocketHub(1_000_000), bytes(size)
        with ExitStack() as peers:
            tokens = set()
            for _ in range(100):
                ours, peer = socket.socketpair()
                ours.setblocking(False)
                peers.enter_context(peer)
                token, sealing = hub.welcome(ours.detach()), Sealing()
                assert hub.upgraded(token, b"", b"", 100) == ([], None)
                hub.begin(token, sealing.records.reader, None, 40_000)
                peer.sendall(sealing.frames(*[message] * count))
                tokens.add(token)
                peers.callback(hub.discard, token)
            turns = [[token for token, *_ in hub.receive()]]
            while sum(map(len, turns)) < len(tokens):
                turns.append([token for token, *_ in hub.receive()])
        assert len(turns) > 1
        assert sorted(chain.from_iterable(turns)) == sorted(tokens)


@BY_HUB
async def test_the_hub_rests_when_nobody_listens(way: str) -> None:
    """Its tasks end with the last connection and begin with the next; every descriptor is given back."""
    before = descriptors()
    async with trio.open_nursery() as nursery:
        each = Bench(nursery, way)
        tasks = len(nursery.child_tasks)
        for _ in range(2):
            listening = await each.open()
            listening.connection.write([b"one"])
            assert await listening.peer_receives(5) == b"\x82\x03one"
            await listening.peer.aclose()
            await listening.over.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == tasks
        assert descriptors() == before + 1  # the hub's own


@BY_HUB
async def test_a_message_that_is_not_whole_makes_way_for_a_younger_one(way: str) -> None:
    """Where there is no room for both: its device is told to come again, and the other one goes on."""
    async with bench(way) as each:
        each.hub.sockets = SocketHub(15_000)
        slow, quick = await each.open(), await each.open()
        slow.closing = (4103, "timeout")
        await slow.peer.send_all(slow.sealing.frames(bytes(9_900))[:9_000])
        await trio.testing.wait_all_tasks_blocked()
        message = quick.sealing.frames(bytes(9_900))
        await quick.peer.send_all(message[:9_000])
        assert await read_all(slow.peer) == b"\x88\x09" + struct.pack("!H", 4103) + b"timeout"
        assert [None if end is None else end.code for end in slow.receiver.ends] == ["timeout"]
        await quick.peer.send_all(message[9_000:])
        await quick.receiver.until(lambda: quick.receiver.messages == [bytes(9_900)])


@BY_HUB
async def test_somebody_who_comes_while_the_last_one_leaves_is_served(way: str) -> None:
    """The hub was about to rest."""
    async with bench(way) as each:
        first = await each.open()
        second = await each.open()
        first.cancel()
        second.cancel()
        third = await each.open()
        await third.peer_says(b"one")
        await third.receiver.until(lambda: third.receiver.messages == [b"one"])


@BY_HUB
async def test_a_peer_that_takes_no_pongs_cannot_make_the_server_hold_more(way: str) -> None:
    """They are left out while so much waits for it."""
    async with bench(way) as each:
        listening = await each.open()
        peer = listening.peer
        while not listening.connection.blocked:
            listening.connection.write([bytes(65_536)])
            await trio.testing.wait_all_tasks_blocked()
        listening.connection.write([bytes(100_000)])
        await trio.testing.wait_all_tasks_blocked()
        backlog_bytes = listening.connection.backlog_bytes
        for index in range(50):
            await peer.send_all(frame(9, bytes(120)) * 100 + listening.sealing.frames(b"one"))
            await listening.receiver.until(partial(has, listening.receiver, index + 1))
        listening.connection.write([b"x"])
        await trio.testing.wait_all_tasks_blocked()
        # Less where the system has taken more of it meanwhile.
        assert listening.connection.backlog_bytes <= backlog_bytes + 3


@BY_HUB
async def test_a_fault_in_the_turn_of_a_connection_ends_that_one(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, and whoever is behind it in the same turn goes on."""
    async with bench(way, fault=ArithmeticError) as each:
        faulty, other = await each.open(), await each.open()
        turn = HubConnection.turn

        def fail(connection: HubConnection, *arguments: Any, **options: Any) -> None:
            if connection is faulty.connection and not each.faults:
                raise ArithmeticError("a bug")
            turn(connection, *arguments, **options)

        monkeypatch.setattr(HubConnection, "turn", fail)
        for listening in (faulty, other):  # without a checkpoint: one turn of the hub finds both
            assert os.write(listening.peer.socket.fileno(), listening.sealing.frames(b"one")) > 0
        await other.receiver.until(lambda: other.receiver.messages == [b"one"])
        with trio.fail_after(PATIENCE_S):
            await faulty.over.wait()
            with suppress(trio.BrokenResourceError):  # what it said was not read
                await read_all(faulty.peer)
        await other.peer_says(b"two")
        await other.receiver.until(lambda: other.receiver.messages == [b"one", b"two"])
