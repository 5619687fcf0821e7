"""Devices that publish without pause, the keystrokes of a real editing session for payloads, many frames in flight."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client.http import raise_for_problem, request
from keepstep.client.transport import open_transport
from keepstep.model import DEVICES_STREAM, Capability
from keepstep.protocol import messages
from tests.chaos.device import EVENTS_PER_FRAME_MAX, FRAMES_IN_FLIGHT_MAX, ChaosDevice, shake_hands
from tests.chaos.load import Progress
from tests.chaos.process import TRACE
from tests.support.events import DeviceFixture, UserFixture, wire_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.observations import ObservationWriter
    from tests.chaos.process import ServerProcess

USERS: Final = 2
DEVICES_PER_USER: Final = 3
FINISH_TIMEOUT_S: Final = 120
"""Until everything is acknowledged and delivered in the end."""


class Writers:
    """Two users with three devices each, all publishing into one stream of their user and reading it."""

    in_flight = USERS * DEVICES_PER_USER * FRAMES_IN_FLIGHT_MAX * EVENTS_PER_FRAME_MAX

    def __init__(self, seeded: random.Random, observed: ObservationWriter) -> None:
        self._users: list[list[ChaosDevice]] = []
        self._late: list[DeviceFixture] = []
        self._random = seeded
        self._observed = observed
        self._progress = Progress()
        self._url = ""
        self._nursery: trio.Nursery | None = None

    @property
    def _devices(self) -> list[ChaosDevice]:
        return [device for devices in self._users for device in devices]

    async def prepare(self, server: ServerProcess) -> None:
        """As ``Load.prepare``."""
        self._url = server.device_url
        payloads = _payloads()
        for number in range(USERS):
            user = UserFixture(f"{self._random.random()} {number}")
            fixtures = [DeviceFixture(user, "first")]
            fixtures += [
                DeviceFixture(user, f"device {index}", Capability.PUBLISH | Capability.SUBSCRIBE)
                for index in range(1, DEVICES_PER_USER + 1)
            ]
            await _create_account(server, fixtures, self._random)
            # The last one comes only at the end, and reads everything from the start.
            self._late.append(fixtures.pop())
            self._users.append([self._device(fixture, payloads) for fixture in fixtures])

    def _device(self, fixture: DeviceFixture, payloads: Iterator[bytes]) -> ChaosDevice:
        seeded = random.Random(self._random.getrandbits(64))
        return ChaosDevice(fixture, self._url, self._observed, seeded, payloads, self._progress)

    async def run(self) -> None:
        """As ``Load.run``."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for device in self._devices:
                nursery.start_soon(device.run)

    async def progress(self, events: int) -> None:
        """As ``Load.progress``."""
        await self._progress.until(self._progress.count + events)

    async def refused(self, code: str) -> None:
        """Wait until every device had an event refused with that code. Cancel-safe."""
        for device in self._devices:
            await device.wait_until(partial(_is_refused, device, code))

    async def finish(self) -> None:
        """As ``Load.finish``."""
        assert self._nursery is not None
        for device in self._devices:
            device.stop_publishing()
        with trio.move_on_after(FINISH_TIMEOUT_S):
            for device in self._devices:
                await device.wait_until(partial(_is_answered, device))
        for devices, fixture in zip(self._users, self._late, strict=True):
            late = self._device(fixture, iter(()))
            late.stop_publishing()
            self._nursery.start_soon(late.run)
            last_seq = max(device.acknowledged_seq for device in devices)
            for device in [*devices, late]:
                with trio.move_on_after(FINISH_TIMEOUT_S):
                    await device.wait_until(partial(_has_read, device, last_seq))
                device.complete()

    def observe(self) -> None:
        """As ``Load.observe``: each device wrote down everything as it happened."""

    def problems(self) -> list[str]:
        """As ``Load.problems``: the observations show everything."""
        return []

    def summary(self) -> str:
        """As ``Load.summary``."""
        disconnections = sum(device.disconnections for device in self._devices)
        refusals: dict[str, int] = {}
        for device in self._devices:
            for code, count in device.refusals.items():
                refusals[code] = refusals.get(code, 0) + count
        return f"{disconnections} disconnections, refused {refusals or 'nothing'}"


def _is_answered(device: ChaosDevice) -> bool:
    return device.unanswered == 0


def _is_refused(device: ChaosDevice, code: str) -> bool:
    return code in device.refusals


def _has_read(device: ChaosDevice, seq: int) -> bool:
    return device.seq >= seq


async def _create_account(server: ServerProcess, fixtures: list[DeviceFixture], seeded: random.Random) -> None:
    """Genesis by REST, then the other devices by events of the first one."""
    first, *others = fixtures
    genesis = first.genesis()
    body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
    url = f"{server.rest_url}/api/v1/accounts"
    response = await request("POST", url, body=body, content_type="application/msgpack")
    raise_for_problem(response)
    seq, _, chain, _ = msgspec.msgpack.decode(response.body)
    device_url, _, key = server.device_url.partition("#")
    async with open_transport(device_url) as transport:
        session = await shake_hands(transport, first, bytes.fromhex(key), seeded)
        for rid, other in enumerate(others):
            first.seen[DEVICES_STREAM] = (seq, chain)
            event, _ = first.enrol(other)
            publish = messages.Publish(rid, msgspec.Raw(wire_events(event)))
            for record in session.send([publish], now_s=trio.current_time()):
                await transport.send(record)
            while not isinstance(answer := session.receive(await transport.receive()), messages.Accepted):
                pass
            (result,) = answer.results
            assert isinstance(result, messages.ResultAccepted), result
            seq, chain = result.first_seq, result.chain
    for fixture in fixtures:
        fixture.seen[DEVICES_STREAM] = (seq, chain)


def _payloads() -> Iterator[bytes]:
    """The keystrokes of a real editing session, over and over."""
    transactions = json.loads(gzip.decompress(TRACE.read_bytes()))["txns"]
    return (msgspec.msgpack.encode(each) for each in itertools.cycle(transactions))
