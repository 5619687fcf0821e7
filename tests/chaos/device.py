"""A device that never gives up, and writes down all it does and sees for the checker.

Its outbox and position live as long as the test: it is the server that is killed. After every disconnection it
reconnects, resumes from its position and sends again what was not acknowledged, byte for byte.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from bench.observations import (
    Accepted,
    Complete,
    Device,
    Duplicate,
    Published,
    Received,
    Refused,
    Subscribed,
)
from keepstep.client import crypto
from keepstep.client.transport import Disconnected, Transport, open_transport
from keepstep.errors import ERRORS, Retry
from keepstep.protocol import messages
from keepstep.protocol.chain import event_hash
from keepstep.protocol.event import decode_header
from keepstep.protocol.handshake import ClientHandshake
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from tests.support.events import wire_events

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from bench.observations import ObservationWriter
    from keepstep.protocol.messages import FromServer, Result
    from keepstep.protocol.session import ClientSession
    from tests.chaos.load import Progress
    from tests.support.events import DeviceFixture, SignedEvent

STREAM: Final = "chaos"
FRAMES_IN_FLIGHT_MAX: Final = 4
EVENTS_PER_FRAME_MAX: Final = 5
RECONNECT_S: Final = 0.05
"""Pause between attempts, seconds: the server may be starting for seconds."""
RETRY_MS_MAX: Final = 200
"""Longest pause before a refused publish is sent again, whatever the server asks for: the test is to be over soon."""
PAGES_PER_ACK: Final = 10
HANDSHAKE_TIMEOUT_S: Final = 20
SUITES: Final = (2,)


@dataclass(slots=True)
class _Frame:
    """A publish message that waits for its answer."""

    first: int
    events: list[SignedEvent]


async def shake_hands(
    transport: Transport, fixture: DeviceFixture, server_key: bytes, seeded: random.Random
) -> ClientSession:
    """Authenticate a device on a new connection.

    Raises:
        Disconnected: the connection ended.
        trio.TooSlowError: the server does not answer.
    """
    handshake = ClientHandshake(
        crypto,
        server_key=server_key,
        user_key=fixture.user.user_key,
        device_id=fixture.device_id,
        device_secret=fixture.device_secret,
        ephemeral_secret=seeded.randbytes(32),
        nonce=seeded.randbytes(32),
        suites=SUITES,
        resume="none",
        options={},
    )
    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
        await transport.send(handshake.hello())
        await transport.send(handshake.receive_server_hello(await transport.receive()))
        _, session = handshake.receive_ready(await transport.receive(), now_s=trio.current_time())
    return session


class ChaosDevice:
    """One device at work.

    Attributes:
        acknowledged: its events 1 … n are acknowledged.
        acknowledged_seq: the highest seq at which one of them is.
        seq: how far it has read.
        disconnections: how often it lost its connection.
        refusals: how often each error code answered one of its events.
    """

    def __init__(
        self,
        fixture: DeviceFixture,
        url: str,
        observed: ObservationWriter,
        seeded: random.Random,
        payloads: Iterator[bytes],
        progress: Progress,
    ) -> None:
        """A device that is enrolled already.

        Args:
            fixture: its keys; it signs this device's events.
            url: where it connects, with the server's key.
            observed: where it writes.
            seeded: decides sizes.
            payloads: what it has to say, without end.
            progress: counts acknowledged events.
        """
        self.acknowledged = 0
        self.acknowledged_seq = 0
        self.seq = 0
        self.disconnections = 0
        self.refusals: dict[str, int] = {}
        self._fixture = fixture
        self._url, _, key = url.partition("#")
        self._server_key = bytes.fromhex(key)
        self._observed = observed
        self._random = seeded
        self._payloads = payloads
        self._progress = progress
        self._chain = fixture.user.chain_0(STREAM)
        self._outbox: list[SignedEvent] = []
        self._publishing = True
        self._changed = trio.Event()
        self._in_flight: dict[int, _Frame] = {}
        self._rid = 0
        self._retry_ms: int | None = None
        self._pages = 0
        observed.write(Device(fixture.device_id, fixture.user.user_key))

    @property
    def unanswered(self) -> int:
        """Events made and not acknowledged yet."""
        return len(self._outbox) - self.acknowledged

    def stop_publishing(self) -> None:
        """Make no new events; what there is goes on being sent until it is acknowledged."""
        self._publishing = False
        self._notify()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something about this device to become true. Cancel-safe."""
        while not condition():
            await self._changed.wait()

    def complete(self) -> None:
        """Write down that it has waited for everything."""
        self._observed.write(Complete(self._fixture.device_id, STREAM))

    async def run(self) -> None:
        """Connect, work, and connect again, until cancelled."""
        while True:
            with contextlib.suppress(Disconnected, trio.TooSlowError):
                async with open_transport(self._url) as transport:
                    session = await shake_hands(transport, self._fixture, self._server_key, self._random)
                    await self._work(transport, session)
            self.disconnections += 1
            await trio.sleep(RECONNECT_S)

    async def _work(self, transport: Transport, session: ClientSession) -> None:
        """One session, until it is cut."""
        self._in_flight.clear()
        self._retry_ms = None
        self._observed.write(Subscribed(self._fixture.device_id, STREAM, self.seq, self._chain))
        await self._send(transport, session, messages.Subscribe({STREAM: (self.seq, self._chain)}))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, transport, session)
                nursery.start_soon(self._publish, transport, session)
        except* Disconnected:
            pass

    async def _send(self, transport: Transport, session: ClientSession, message: messages.FromDevice) -> None:
        for record in session.send([message], now_s=trio.current_time()):
            await transport.send(record)

    # -- publishing ---------------------------------------------------------------------------------------------

    async def _publish(self, transport: Transport, session: ClientSession) -> None:
        sent = self.acknowledged
        while True:
            if self._retry_ms is not None and not self._in_flight:
                # Something was refused: all that followed it was too, so go back to what is acknowledged.
                await trio.sleep(min(self._retry_ms, RETRY_MS_MAX) / 1_000)
                self._retry_ms = None
                sent = self.acknowledged
            elif self._retry_ms is not None or len(self._in_flight) >= FRAMES_IN_FLIGHT_MAX:
                await self._changed.wait()
            elif events := self._next_events(sent):
                self._rid += 1
                self._in_flight[self._rid] = _Frame(sent + 1, events)
                sent += len(events)
                raw = msgspec.Raw(wire_events(*events))
                await self._send(transport, session, messages.Publish(self._rid, raw))
            else:
                await self._changed.wait()

    def _next_events(self, sent: int) -> list[SignedEvent]:
        """What follows the first ``sent`` events of the outbox; new ones are made where it is used up."""
        count = self._random.randint(1, EVENTS_PER_FRAME_MAX)
        if sent == len(self._outbox) and self._publishing:
            made = [self._fixture.event(STREAM, next(self._payloads)) for _ in range(count)]
            hashes = [event.hash for event in made]
            self._observed.write(Published(self._fixture.device_id, STREAM, made[0].n, hashes))
            self._outbox += made
        return self._outbox[sent : sent + count]

    # -- receiving ----------------------------------------------------------------------------------------------

    async def _receive(self, transport: Transport, session: ClientSession) -> None:
        while True:
            message = session.receive(await transport.receive())
            self._take(message)
            self._notify()
            if isinstance(message, messages.Events) and self._pages % PAGES_PER_ACK == 0:
                await self._send(transport, session, messages.Ack({STREAM: (self.seq, self._chain[:16])}))

    def _take(self, message: FromServer) -> None:
        match message:
            case messages.Accepted():
                self._answered(self._in_flight.pop(message.rid), message.results)
            case messages.Events():
                self._received(message)
            case messages.Resumed():
                # What was delivered or acknowledged once must still be there.
                assert message.answer == "contiguous", message
                assert message.author[0] >= self.acknowledged, message
            case messages.Error() if message.rid is not None:
                frame = self._in_flight.pop(message.rid)
                for offset in range(len(frame.events)):
                    self._refused(frame.first + offset, message.code, message.retry_after_ms)
            case _:
                pass

    def _answered(self, frame: _Frame, results: list[Result]) -> None:
        device_id, n = self._fixture.device_id, frame.first
        for result in results:
            match result:
                case ResultAccepted(count, seq, received_at_ms, chain):
                    self._observed.write(Accepted(device_id, STREAM, n, count, seq, received_at_ms, chain))
                    n += count
                    self._acknowledge(n - 1, seq + count - 1)
                case ResultDuplicate(known_seq, known_chain, known_ms):
                    self._observed.write(Duplicate(device_id, STREAM, n, known_seq, known_chain, known_ms))
                    self._acknowledge(n, known_seq or 0)
                    n += 1
                case ResultError(code, detail):
                    retry_ms = detail[0] if code != "out_of_order" and detail else None
                    self._refused(n, code, retry_ms)
                    n += 1
        assert n == frame.first + len(frame.events), results

    def _acknowledge(self, n: int, seq: int) -> None:
        self._progress.add(max(0, n - self.acknowledged))
        self.acknowledged = max(self.acknowledged, n)
        self.acknowledged_seq = max(self.acknowledged_seq, seq)

    def _refused(self, n: int, code: str, retry_ms: int | None) -> None:
        assert ERRORS[code].retry is not Retry.NEVER, code
        event = self._outbox[n - 1]
        self._observed.write(Refused(self._fixture.device_id, STREAM, n, event.hash, code))
        self.refusals[code] = self.refusals.get(code, 0) + 1
        self._retry_ms = max(self._retry_ms or 0, retry_ms or 0)
        self._notify()

    def _received(self, page: messages.Events) -> None:
        if not page.rows:
            return
        rows = [
            (device_id, decode_header(header).n, received_at_ms, event_hash(crypto, header, sig))
            for _, device_id, received_at_ms, header, sig, _, _ in page.rows
        ]
        self._observed.write(Received(self._fixture.device_id, STREAM, page.rows[0][0], rows, page.chain))
        self.seq, self._chain = page.rows[-1][0], page.chain
        self._pages += 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
