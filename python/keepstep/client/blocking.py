"""The device library for scripts that know nothing of Trio: the same calls, waiting.

::

    from keepstep.client import blocking

    with blocking.open_device(path) as device:
        device.publish("notes", b"hello")  # returns when the server has it on its disk
        for event in device.events("notes", quiet_s=1):
            print(event.seq, event.data)

The device runs in a thread of its own, connected for as long as the ``with`` block runs. Any thread may call it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Final, Literal, TypeVar, overload

import outcome
import trio

from keepstep.client import accounts, device, linking, recovering, restdevice, server
from keepstep.client.recovery import COST
from keepstep.client.store import open_store
from keepstep.client.worker import leaves
from keepstep.errors import ClientError
from keepstep.model import Capability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from keepstep.client.device import Device
    from keepstep.client.follower import Start
    from keepstep.client.listing import DeviceInfo
    from keepstep.client.live import DevicePresence, ReceivedSignal
    from keepstep.client.notices import Notice
    from keepstep.client.publication import Publication, Receipt
    from keepstep.client.recovery import Cost
    from keepstep.client.restdevice import RestDevice
    from keepstep.client.server import Server
    from keepstep.client.snapshots import Snapshot
    from keepstep.client.store import Alarm
    from keepstep.client.subscription import Event
    from keepstep.model import Policy, Position

T = TypeVar("T")

READS_AND_WRITES: Final = Capability.PUBLISH | Capability.SUBSCRIBE


def find_server(address: str = server.DEFAULT_REST_URL, *, rest_url: str | None = None) -> Server:
    """As ``keepstep.client.find_server``."""
    return trio.run(functools.partial(server.find_server, address, rest_url=rest_url))


def create_user(
    at: Server,
    *,
    path: Path,
    name: str,
    recovery_path: Path,
    passphrase: str,
    cost: Cost = COST,
    invite: str | None = None,
) -> None:
    """As ``keepstep.client.create_user``."""
    trio.run(
        functools.partial(
            accounts.create_user,
            at,
            path=path,
            name=name,
            recovery_path=recovery_path,
            passphrase=passphrase,
            cost=cost,
            invite=invite,
        )
    )


def recover(
    recovery_path: Path,
    passphrase: str,
    *,
    path: Path,
    name: str,
    new_recovery_path: Path,
    keep: Collection[bytes] = (),
    server: Server | None = None,
    cost: Cost = COST,
) -> None:
    """As ``keepstep.client.recover``."""
    trio.run(
        functools.partial(
            recovering.recover,
            recovery_path,
            passphrase,
            path=path,
            name=name,
            new_recovery_path=new_recovery_path,
            keep=keep,
            server=server,
            cost=cost,
        )
    )


def accept_link(
    invitation: str, *, path: Path, name: str, show_code: Callable[[str], None], at: Server | None = None
) -> None:
    """As ``keepstep.client.accept_link``."""
    trio.run(functools.partial(linking.accept_link, invitation, path=path, name=name, show_code=show_code, at=at))


class BlockingDevice:
    """An open device; ``open_device`` makes it."""

    def __init__(self, opened: Device, token: trio.lowlevel.TrioToken) -> None:
        self._device = opened
        self._token = token

    def _run(self, function: Callable[[], Awaitable[T]]) -> T:
        return trio.from_thread.run(function, trio_token=self._token)

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""
        return self._device.connected

    @property
    def waiting(self) -> int:
        """Events that the server has not acknowledged."""
        return self._device.waiting

    @overload
    def publish(
        self,
        stream: str,
        data: bytes,
        *,
        key: str | None = None,
        ttl_s: int | None = None,
        expects: Position | Literal["own"] | None = None,
        wait_s: None = None,
    ) -> Receipt: ...

    @overload
    def publish(
        self,
        stream: str,
        data: bytes,
        *,
        key: str | None = None,
        ttl_s: int | None = None,
        expects: Position | Literal["own"] | None = None,
        wait_s: float,
    ) -> Receipt | None: ...

    def publish(
        self,
        stream: str,
        data: bytes,
        *,
        key: str | None = None,
        ttl_s: int | None = None,
        expects: Position | Literal["own"] | None = None,
        wait_s: float | None = None,
    ) -> Receipt | None:
        """Publish, and wait until the server has it on its disk.

        Args:
            stream: as in ``Device.publish``.
            data: likewise.
            key: likewise.
            ttl_s: likewise.
            expects: likewise.
            wait_s: wait no longer than this for the server, seconds; ``None``: as long as it takes.

        Returns:
            the receipt; ``None`` where it did not come in time: the event is safe here and goes out by itself.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``Device.publish`` and ``Publication.accepted``.
        """

        async def put() -> list[Publication]:
            return [await self._device.publish(stream, data, key=key, ttl_s=ttl_s, expects=expects)]

        receipts = self._publish(put, wait_s)
        return None if receipts is None else receipts[0]

    @overload
    def publish_many(self, stream: str, data: Sequence[bytes], *, wait_s: None = None) -> list[Receipt]: ...

    @overload
    def publish_many(self, stream: str, data: Sequence[bytes], *, wait_s: float) -> list[Receipt] | None: ...

    def publish_many(self, stream: str, data: Sequence[bytes], *, wait_s: float | None = None) -> list[Receipt] | None:
        """Publish in order, all or none, and wait until the server has all of them. As ``publish``."""
        return self._publish(lambda: self._device.publish_many(stream, data), wait_s)

    def set_policy(
        self, stream: str, policy: Policy, *, ttl_max_s: int | None = None, stream_bytes_max: int | None = None
    ) -> None:
        """As ``Device.set_policy``; returns when the server has it on its disk."""

        async def put() -> list[Publication]:
            bounds = {"ttl_max_s": ttl_max_s, "stream_bytes_max": stream_bytes_max}
            return [await self._device.set_policy(stream, policy, **bounds)]

        self._publish(put, None)

    def erase(self, stream: str, events: Iterable[Event]) -> None:
        """As ``Device.erase``; returns when the server has it on its disk."""

        async def put() -> list[Publication]:
            return [await self._device.erase(stream, events)]

        self._publish(put, None)

    def snapshot(self, stream: str, state: bytes, *, seq: int | None = None) -> Receipt:
        """As ``Device.snapshot``; returns when the server has it on its disk. The receipt has the snapshot's seq."""

        async def put() -> list[Publication]:
            return [await self._device.snapshot(stream, state, seq=seq)]

        return self._published(put)

    def confirm(self, stream: str, snapshot_seq: int) -> Receipt:
        """As ``Device.confirm``; returns when the server has it on its disk."""

        async def put() -> list[Publication]:
            return [await self._device.confirm(stream, snapshot_seq)]

        return self._published(put)

    def snapshots(self, stream: str) -> list[Snapshot]:
        """As ``Device.snapshots``."""
        return self._run(lambda: self._device.snapshots(stream))

    def start_from_snapshot(self, stream: str) -> Snapshot | None:
        """The state to begin with; give ``covers.seq`` as ``after`` to ``events``. ``None``: read from the first event.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``Device.subscribe`` with ``start="snapshot"``.
        """
        return self._run(lambda: self._device.subscribe(stream, start="snapshot")).snapshot

    def inbox_of(self, device: bytes | str | None = None) -> str:
        """As ``Device.inbox_of``."""

        async def find() -> str:
            return self._device.inbox_of(device)

        return self._run(find)

    def position(self, stream: str) -> Position:
        """As ``Device.position``."""
        return self._device.position(stream)

    def _published(self, put: Callable[[], Awaitable[Sequence[Publication]]]) -> Receipt:
        receipts = self._publish(put, None)
        assert receipts is not None
        return receipts[0]

    def _publish(
        self, put: Callable[[], Awaitable[Sequence[Publication]]], wait_s: float | None
    ) -> list[Receipt] | None:
        async def publish() -> list[Receipt] | None:
            with trio.move_on_after(float("inf") if wait_s is None else wait_s) as patience:
                await self._device.wait_until_ready()
            if patience.cancelled_caught:
                raise ClientError("nothing is published: this device has to reach its server once before it can")
            # The disk is waited for in any case: a cancellation would leave it open what is in the outbox.
            publications = await put()
            with trio.CancelScope(deadline=patience.deadline):
                return [await publication.accepted() for publication in publications]
            return None

        return self._run(publish)

    def events(
        self,
        stream: str,
        *,
        start: Start = "start",
        after: int | None = None,
        cursor: str | None = None,
        quiet_s: float | None = None,
    ) -> Iterator[Event]:
        """Verified, decrypted events in order, from a position on.

        Args:
            stream: as in ``Device.subscribe``.
            start: likewise.
            after: likewise.
            cursor: likewise; the caller commits with ``commit``.
            quiet_s: end when nothing came for so long, seconds, and all that is here is given out; ``None``: never.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``Device.subscribe`` and ``Subscription``.
        """
        subscription = self._run(lambda: self._device.subscribe(stream, start=start, after=after, cursor=cursor))

        async def take() -> Event | None:
            with trio.move_on_after(float("inf") if quiet_s is None else quiet_s):
                return await anext(subscription)
            return await subscription.take_here()  # to wait for the disk, or for its turn at it, is not quiet

        while (event := self._run(take)) is not None:
            yield event

    def commit(self, stream: str, cursor: str, seq: int, *, state: bytes = b"") -> None:
        """Keep under a name that everything up to ``seq`` is done with. As ``Subscription.commit``."""

        async def commit() -> None:
            subscription = await self._device.subscribe(stream, cursor=cursor)
            await subscription.commit(seq, state=state)

        self._run(commit)

    def wait_until_caught_up(self, stream: str) -> None:
        """As ``Device.wait_until_caught_up``."""
        self._run(lambda: self._device.wait_until_caught_up(stream))

    def devices(self) -> list[DeviceInfo]:
        """As ``Device.devices``."""
        return self._run(self._device.devices)

    def alarms(self) -> list[Alarm]:
        """As ``Device.alarms``."""
        return self._run(self._device.alarms)

    def set_presence(self, state: bytes | None) -> None:
        """As ``Device.set_presence``."""
        self._run(lambda: self._device.set_presence(state))

    def presences(self, *, quiet_s: float | None = None) -> Iterator[DevicePresence]:
        """As ``Device.presences``; ends when nothing changed for ``quiet_s`` seconds, ``None``: never."""
        return self._each(self._device.presences, quiet_s)

    def signal(self, to: bytes, data: bytes) -> None:
        """As ``Device.signal``."""
        self._run(lambda: self._device.signal(to, data))

    def signals(self, *, quiet_s: float | None = None) -> Iterator[ReceivedSignal]:
        """As ``Device.signals``, from this call on; ends when none came for ``quiet_s`` seconds, ``None``: never."""
        return self._each(self._device.signals, quiet_s)

    def _each(self, begin: Callable[[], AsyncIterator[T]], quiet_s: float | None) -> Iterator[T]:
        """What an iterator of the device gives, beginning at this call."""
        iterator = trio.from_thread.run_sync(begin, trio_token=self._token)

        async def take() -> list[T]:
            with trio.move_on_after(float("inf") if quiet_s is None else quiet_s):
                return [await anext(iterator)]
            return []

        def give() -> Iterator[T]:
            while taken := self._run(take):
                yield from taken

        return give()

    def warnings(self, *, after: int = 0) -> list[Notice]:
        """As ``Device.warnings``."""
        return self._run(lambda: self._device.warnings(after=after))

    def revoke(self, device: bytes | str) -> None:
        """As ``Device.revoke``."""

        async def revoke() -> None:
            await self._device.wait_until_ready()
            await self._device.revoke(device)

        self._run(revoke)

    def enrol(self, path: Path, name: str, *, capabilities: Capability = READS_AND_WRITES) -> None:
        """As ``Device.enrol``."""
        self._run(lambda: self._device.enrol(path, name, capabilities=capabilities))


@contextlib.contextmanager
def open_device(path: Path, *, device_url: str | None = None) -> Iterator[BlockingDevice]:
    """Open a device's file and keep the device connected, in a thread of its own, until the block ends.

    Args:
        path: the device's file.
        device_url: where the server is reached, if not where it was.

    Raises:
        ClientError: the file is not there, not a device's, or in use by another process.
    """
    thread = _DeviceThread(path, device_url)
    thread.start()
    try:
        yield thread.opened()
    finally:
        thread.finish()


class BlockingRestDevice:
    """A device over REST; ``open_rest_device`` makes it. One thread at a time calls it."""

    def __init__(self, opened: RestDevice) -> None:
        self._device = opened

    def access_token(self) -> str:
        """As ``RestClient.access_token``."""
        return trio.run(self._device.client.access_token)

    def publish(self, stream: str, data: bytes) -> Receipt:
        """As ``RestDevice.publish``."""
        return trio.run(self._device.publish, stream, data)

    def publish_many(self, stream: str, data: Sequence[bytes]) -> list[Receipt]:
        """As ``RestDevice.publish_many``."""
        return trio.run(self._device.publish_many, stream, data)

    def read(self, stream: str, *, after: int = 0, wait_s: int = 0) -> list[Event]:
        """As ``RestDevice.read``."""
        return trio.run(functools.partial(self._device.read, stream, after=after, wait_s=wait_s))


@contextlib.contextmanager
def open_rest_device(path: Path, *, rest_url: str | None = None) -> Iterator[BlockingRestDevice]:
    """As ``restdevice.open_rest_device``: nothing runs between calls.

    Raises:
        ClientError: the file is not there, not a device's, or in use by another process.
    """
    store = open_store(path)
    with contextlib.closing(store):
        yield BlockingRestDevice(trio.run(functools.partial(restdevice.make_rest_device, store, rest_url=rest_url)))


class _DeviceThread(threading.Thread):
    """Runs Trio with one open device until it is told to stop."""

    def __init__(self, path: Path, device_url: str | None) -> None:
        super().__init__(name=f"keepstep {path.name}", daemon=True)
        self._path = path
        self._device_url = device_url
        self._opened_or_not = threading.Event()
        self._device: BlockingDevice | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ending: trio.Event | None = None
        self._error: BaseException | None = None

    def opened(self) -> BlockingDevice:
        """The device, once it is open; raises why it could not be opened."""
        self._opened_or_not.wait()
        if self._device is None:
            self.join()
            assert self._error is not None
            raise self._error
        return self._device

    def finish(self) -> None:
        """Close the device and end the thread."""
        if self._token is not None and self._ending is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ending.set)
        self.join()
        if self._device is not None and self._error is not None:
            raise self._error

    def run(self) -> None:
        """The thread."""
        result = outcome.capture(trio.run, self._main)
        if isinstance(result, outcome.Error):
            self._error = next(leaves(result.error))
        self._opened_or_not.set()

    async def _main(self) -> None:
        async with device.open_device(self._path, device_url=self._device_url) as opened:
            self._ending = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._device = BlockingDevice(opened, self._token)
            self._opened_or_not.set()
            await self._ending.wait()
