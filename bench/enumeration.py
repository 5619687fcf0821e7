"""Whether the clock tells a stranger who has an account: ``python -m bench.enumeration`` (``make bench-enumeration``).

The answers to known and unknown users are the same; this measures whether they take the same time, in pairs, as a
stranger at the server's own machine would, who has no network's noise in between. How to read the result stands in
``docs/how-to/run-the-benchmarks.md``.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

import trio

from bench.clients import make_account, run
from bench.server import BenchError
from bench.statistics import compare, percentile
from keepstep.client import crypto
from keepstep.client.store import open_store
from keepstep.client.transport import Disconnected, open_transport
from keepstep.errors import ERRORS
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.primitives import SUITE_CHACHA20_POLY1305

if TYPE_CHECKING:
    from pathlib import Path

    from bench.server import Server
    from keepstep.client.store import Identity

PAIRS: Final = 1_000
WARM_UP_PAIRS: Final = 50
CALLS_PER_NETWORK: Final = 100
"""Fewer than the server lets one network make in a minute."""
MICROSECONDS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Timing:
    """One way to ask, in microseconds; differences are known less unknown, within pairs.

    Attributes:
        pairs: of a known and an unknown user, asked one after the other.
        known_p50: answer about a user that there is.
        unknown_p50: answer about one that there is not.
        difference_p50: of the pairs.
        difference_low: of the 95 % confidence interval.
        difference_high: its other end.
        advantage: how much better than by a coin a stranger guesses from one answer of each, 0 to 1.
    """

    pairs: int
    known_p50: float
    unknown_p50: float
    difference_p50: float
    difference_low: float
    difference_high: float
    advantage: float


Ask = Callable[[bytes, bytes], Awaitable[float]]
"""Asks about a user and a device; microseconds until the answer."""


async def measure(server: Server, directory: Path, count: int) -> dict[str, Timing]:
    """Both ways to ask."""
    store = open_store(await make_account(server, directory))
    identity = store.identity
    store.close()
    handshakes = await in_pairs(partial(refused_handshake, identity), identity, count)
    strangers = Strangers(server.rest_url)  # not before: the server closes connections that are idle
    try:
        return {"handshake": handshakes, "challenge": await in_pairs(strangers.challenge, identity, count)}
    finally:
        strangers.close()


async def in_pairs(ask: Ask, identity: Identity, count: int) -> Timing:
    """Known and unknown by turns, whichever first by lot, so that what drifts falls on both."""
    samples: dict[bool, list[float]] = {True: [], False: []}
    lot = random.SystemRandom()
    for pair in range(WARM_UP_PAIRS + count):
        order = [True, False]
        lot.shuffle(order)
        for is_known in order:
            user_key = identity.user_key if is_known else secrets.token_bytes(32)
            took_us = await ask(user_key, identity.device_id)
            if pair >= WARM_UP_PAIRS:
                samples[is_known].append(took_us)
    difference = compare(samples[True], samples[False])
    return Timing(
        pairs=count,
        known_p50=percentile(samples[True], 0.5),
        unknown_p50=percentile(samples[False], 0.5),
        difference_p50=difference.median,
        difference_low=difference.low,
        difference_high=difference.high,
        advantage=difference.advantage,
    )


async def refused_handshake(identity: Identity, user_key: bytes, device_id: bytes) -> float:
    """A device that is none says it is this one: from its last message to the server's refusal."""
    handshake = ClientHandshake(
        crypto,
        server_key=identity.server_key,
        user_key=user_key,
        device_id=device_id,
        device_secret=secrets.token_bytes(32),
        ephemeral_secret=secrets.token_bytes(32),
        nonce=secrets.token_bytes(32),
        suites=(SUITE_CHACHA20_POLY1305,),
        resume="none",
        options={},
    )
    async with open_transport(identity.device_url) as transport:
        await transport.send(handshake.hello())
        proof = handshake.receive_server_hello(await transport.receive())
        began_s = time.perf_counter()
        await transport.send(proof)
        try:
            await transport.receive()
        except Disconnected as closed:
            took_us = (time.perf_counter() - began_s) * MICROSECONDS
            if closed.close_code == ERRORS["auth_failed"].close_code:
                return took_us
            raise BenchError(f"the server closed with {closed.close_code}") from closed
    raise BenchError("the server took a device that is none")


class Strangers:
    """Who asks for challenges over REST: from one network after the other, for the server counts calls by network.

    Args:
        rest_url: of a server on this machine, all of whose loopback addresses lead to it.
    """

    def __init__(self, rest_url: str) -> None:
        parts = urlsplit(rest_url)
        assert parts.hostname is not None
        self._place = parts.hostname, parts.port
        self._calls = 0
        self._connection = self._connect()

    def _connect(self) -> HTTPConnection:
        network = self._calls // CALLS_PER_NETWORK
        source = f"127.{network // 256 + 1}.{network % 256}.1", 0
        connection = HTTPConnection(*self._place, source_address=source)
        connection.connect()
        return connection

    async def challenge(self, user_key: bytes, device_id: bytes) -> float:
        """Ask for one, on a connection that is open already; microseconds until the answer."""
        await trio.lowlevel.checkpoint()
        body = json.dumps({"user_id": user_key.hex(), "device_id": str(UUID(bytes=device_id)), "purpose": "token"})
        began_s = time.perf_counter()
        self._connection.request("POST", "/api/v1/auth/challenge", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        answer.read()
        took_us = (time.perf_counter() - began_s) * MICROSECONDS
        if answer.status != HTTPStatus.OK:
            raise BenchError(f"the server answered {answer.status}")
        self._calls += 1
        if self._calls % CALLS_PER_NETWORK == 0:  # an even number, so between two pairs
            self.close()
            self._connection = self._connect()
        return took_us

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; the exit status."""
    return run(
        "enumeration",
        "known against unknown users, by the time their answers take",
        measure,
        arguments,
        count=PAIRS,
        what="pairs, at least 12",
    )


if __name__ == "__main__":
    sys.exit(main())
