"""A device as an application uses it: publish, subscribe, enrol others; connected in the background, now or later.

::

    async with open_device(path) as device:
        publication = await device.publish("notes", b"hello")  # safe on this disk
        receipt = await publication.accepted()  # safe on the server's disk
        async for event in await device.subscribe("notes"):
            print(event.seq, event.data)
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.accounts import make_device, register
from keepstep.client.environment import SYSTEM
from keepstep.client.follower import Follower
from keepstep.client.keys import Keyring, open_label, wrap
from keepstep.client.link import Link
from keepstep.client.locallog import LocalLog
from keepstep.client.outbox import Draft, Outbox
from keepstep.client.publisher import Publisher
from keepstep.client.server import Server
from keepstep.client.store import create_store, open_store
from keepstep.client.subscription import EventSource, Subscription
from keepstep.client.worker import CLEANUP_S, open_nursery
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Capability, Kind, Position
from keepstep.protocol.account import encode_enrol
from keepstep.protocol.reader import state_at_start
from keepstep.validation import parse_application_stream

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Start
    from keepstep.client.publication import Publication
    from keepstep.client.store import Alarm, Identity, Store
    from keepstep.client.worker import Worker

READS_AND_WRITES: Final = Capability.PUBLISH | Capability.SUBSCRIBE


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of the user, as ``$devices`` lists it.

    Attributes:
        device_id: 16 bytes.
        name: what its user called it; ``None`` where this device cannot open it.
        capabilities: what it may do.
        enrolled_at_ms: unix milliseconds, by the enrolling device's clock.
    """

    device_id: bytes
    name: str | None
    capabilities: Capability
    enrolled_at_ms: int


class Device:
    """An open device. ``open_device`` makes it and keeps it connected."""

    def __init__(
        self,
        store: Store,
        worker: Worker,
        environment: Environment,
        *,
        device_url: str | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._environment = environment
        self._log = LocalLog(store)
        self._keyring = Keyring(store.content_keys())
        # Each needs the other: what is signed says what was read, and what was acknowledged is compared with it.
        self._outbox = outbox = Outbox(
            store, self._keyring, environment, lambda stream: self._follower.position(stream)
        )
        self._follower = Follower(store, self._log, self._keyring, environment, outbox.settle_within)
        self._publisher = Publisher(store, outbox, worker, environment, outbox.count())
        self._source = EventSource(self._log, self._keyring, worker, store.identity.user_key)
        self._link = Link(
            store,
            worker,
            environment,
            device_url=device_url or store.identity.device_url,
            tls=tls,
            follower=self._follower,
            publisher=self._publisher,
            source=self._source,
        )

    # -- what an application calls --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Who this device is. Holds secrets."""
        return self._store.identity

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""
        return self._link.connected

    def position(self, stream: str) -> Position:
        """How far a stream is verified and on this device's disk; seq 0 where nothing of it is."""
        return self._follower.position(stream)

    @property
    def failure(self) -> Exception | None:
        """Why there will be no further session; ``None`` while there may be."""
        return self._link.failure

    @property
    def last_problem(self) -> str:
        """Why the last session ended or the last attempt failed, in plain words; empty where there was none."""
        return self._link.last_problem

    @property
    def waiting(self) -> int:
        """Events in the outbox that the server has not acknowledged."""
        return self._publisher.waiting

    async def publish(
        self, stream: str, data: bytes, *, key: str | None = None, ttl_s: int | None = None
    ) -> Publication:
        """Encrypt, sign and keep an event; it is on this device's disk when this returns, and goes out by itself.

        Args:
            stream: 1 to 128 of ``A-Z a-z 0-9 . _ : @ / $ -``, not beginning with ``$``; the server sees it.
            data: at most about 256 KiB after compression.
            key: in streams of the policy ``latest``, the name of what is written.
            ttl_s: seconds after which the data may be deleted everywhere; ``None`` for never.

        Returns:
            what tells when the server has it.

        Raises:
            ClientError: it cannot be published like that, or the outbox or the disk is full.

        After a cancellation the event is in the outbox or it is not; the next one's number tells.
        """
        (publication,) = await self._publish([Draft(stream, data, key=key, ttl_s=ttl_s)])
        return publication

    async def publish_many(self, stream: str, data: Sequence[bytes]) -> Sequence[Publication]:
        """Publish events in order, all of them or none; one wait for the disk. Raises and cancels as ``publish``."""
        return await self._publish([Draft(stream, each) for each in data])

    async def _publish(self, drafts: Sequence[Draft]) -> Sequence[Publication]:
        self._raise_failure()
        if not self._is_ready():
            raise ClientError("this device has not read its account yet: connect it once")
        return await self._publisher.publish(drafts)

    def _is_ready(self) -> bool:
        """Others accept what it writes, and can read it."""
        return self.identity.device_id in self._follower.account.devices and bool(self._keyring.all())

    async def subscribe(
        self, stream: str, *, start: Start = "start", after: int | None = None, cursor: str | None = None
    ) -> Subscription:
        """Read a stream from a position on, live; what is there already comes first.

        Args:
            stream: its name; it need not exist yet.
            start: ``"start"``: with the first event that is kept; ``"end"``: with what comes after what this device
                has read, or after now where it has read nothing.
            after: give out events after this seq.
            cursor: give out events after what was committed under this name.

        Raises:
            ClientError: that is no name for a stream.
        """
        self._raise_failure()
        try:
            parse_application_stream(stream)
        except ProtocolError as exc:
            raise ClientError(f"{stream!r} cannot be subscribed to: {exc.detail}") from exc
        known = self._follower.position(stream).seq
        followed = await self._link.follow(stream, start)
        if start == "end" and known and after is None:
            after = known
        state = b""
        if cursor is not None:
            name = cursor
            kept = await self._worker.run(lambda: self._log.cursor(name, stream))
            if kept is not None:
                after, state = kept.seq, kept.state
        return Subscription(
            self._source,
            stream,
            after=after,
            cursor=cursor,
            state=state,
            failure=lambda: followed.failure or self._link.failure,
            now_ms=self._environment.now_ms,
        )

    async def wait_until_connected(self) -> None:
        """Wait for a session. Raises ClientError, ProtocolError, VerificationError: there will be none."""
        await self._until(lambda: self.connected)

    async def wait_until_disconnected(self) -> None:
        """Wait until there is no session; returns at once where there is none, and when there will be none."""
        while self.connected:
            await self._source.changed().wait()

    async def wait_for_problem(self, known: str) -> str:
        """Wait until ``last_problem`` is another one than ``known``, and return it."""
        while self.last_problem == known:
            await self._source.changed().wait()
        return self.last_problem

    async def wait_until_ready(self) -> None:
        """Wait until this device can publish: at once, except before its first connection. Raises likewise."""
        await self._until(self._is_ready)

    async def wait_until_caught_up(self, stream: str) -> None:
        """Wait until everything that the server has of a stream now is on this device's disk.

        Raises:
            VerificationError: something lies about it.
            ClientError, ProtocolError: there will be no session any more.
        """
        followed = await self._link.follow(stream, "start")

        def is_caught_up() -> bool:
            if followed.failure is not None:
                raise followed.failure
            return self._link.is_caught_up(stream)

        await self._until(is_caught_up)

    async def devices(self) -> list[DeviceInfo]:
        """The user's devices, as far as this device has read ``$devices``."""
        return [
            DeviceInfo(
                device_id=device_id,
                name=open_label(
                    self._keyring,
                    user_key=self.identity.user_key,
                    device_id=device_id,
                    sealed_label=each.entry.sealed_label,
                ),
                capabilities=each.entry.capabilities,
                enrolled_at_ms=each.entry.issued_at_ms,
            )
            for device_id, each in self._follower.account.devices.items()
        ]

    async def alarms(self) -> list[Alarm]:
        """What this device has found to be lies, or signs of having been copied or set back; oldest first."""
        return await self._worker.run(self._store.alarms)

    async def enrol(self, path: Path, name: str, *, capabilities: Capability = READS_AND_WRITES) -> None:
        """Make another device of this user, here on this machine; its file is at ``path`` when this returns.

        Signs its entry into ``$devices`` and wraps every content key for it in ``$keys``; both enter the outbox
        together, so that no crash leaves a device without keys.

        Args:
            path: where its file will be.
            name: for its user; sealed before it leaves this machine.
            capabilities: what it may do; reading is necessary. A user has two ``MANAGE`` devices at most.

        Raises:
            ClientError: this device may not, or something is at ``path`` already.
            ProtocolError: the server refuses; no file is left.

        After a cancellation the new device may be enrolled or not; its file stays.
        """
        if Capability.MANAGE not in self.identity.capabilities:
            raise ClientError(f"{self.identity.name} may not enrol devices")
        if Capability.SUBSCRIBE not in capabilities:
            raise ClientError("a device has to read, at least who else there is")
        await self.wait_until_caught_up(DEVICES_STREAM)
        mine = self.identity
        new = make_device(
            Server(mine.device_url, mine.rest_url, mine.server_key),
            self._keyring.current(),
            user_key=mine.user_key,
            name=name,
            capabilities=capabilities,
            environment=self._environment,
        )
        box_keys = {new.identity.device_id: new.entry.box_key}
        drafts = [Draft(DEVICES_STREAM, encode_enrol(new.entry), kind=Kind.ACCOUNT)]
        drafts += [Draft(KEYS_STREAM, wrap(key, box_keys), kind=Kind.KEYS) for key in self._keyring.all()]
        await self._worker.run(lambda: self._hand_over(path, new.identity))
        try:
            for publication in await self._publish(drafts):
                await publication.accepted()
        except ProtocolError:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await self._worker.run(path.unlink)
            raise
        await self._worker.run(lambda: self._pin(path))

    def _pin(self, path: Path) -> None:
        """Tell the new device where $devices lists it."""
        self._outbox.settle()
        store = open_store(path)
        with contextlib.closing(store), store.transaction():
            store.hand_over(self._store.receipt(DEVICES_STREAM))

    def _hand_over(self, path: Path, identity: Identity) -> None:
        """Make the new device's file, with the heads of all streams: nobody can show it an older history."""
        position = self._follower.position(DEVICES_STREAM)
        store = create_store(path, replace(identity, handed_over=position), genesis=None, content_keys=())
        with contextlib.closing(store), store.transaction():
            log = LocalLog(store)
            for stream, known in self._log.streams().items():
                start = state_at_start(crypto, identity.user_key, stream)
                log.save(stream, msgspec.structs.replace(start, heads=known.heads), ())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connected until the block ends; then write down what the server acknowledged."""
        async with open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                self._link.close()
                with trio.move_on_after(CLEANUP_S, shield=True):
                    await self._worker.run(self._outbox.settle)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            changed = self._source.changed()
            self._raise_failure()
            if condition():
                return
            await changed.wait()

    def _raise_failure(self) -> None:
        if self._link.failure is not None:
            raise self._link.failure


@contextlib.asynccontextmanager
async def open_device(
    path: Path,
    *,
    device_url: str | None = None,
    environment: Environment = SYSTEM,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Device]:
    """Open a device's file and keep the device connected until the block ends.

    Nothing waits for a connection: publishing works without one. When there is a reason not to connect again (the
    device is revoked, replaced or copied, the server lies or is another one), every call raises it.

    Args:
        path: the device's file.
        device_url: where the server is reached, if not where it was; its key stays the pinned one.
        environment: clock and randomness.
        tls: for ``wss`` and ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: the file is not there, not a device's, or in use by another process.
    """
    worker = environment.make_worker()
    store = await worker.run(lambda: open_store(path))
    try:
        if store.genesis() is not None:
            await register(store, environment, tls=tls)
        device = await worker.run(lambda: Device(store, worker, environment, device_url=device_url, tls=tls))
        async with device.running():
            yield device
    finally:
        store.close()
