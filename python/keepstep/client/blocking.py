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
from typing import TYPE_CHECKING, Final, TypeVar

import outcome
import trio

from keepstep.client import accounts, device, server
from keepstep.client.recovery import COST
from keepstep.client.worker import leaves
from keepstep.model import Capability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from keepstep.client.device import Device, DeviceInfo
    from keepstep.client.follower import Start
    from keepstep.client.publication import Receipt
    from keepstep.client.recovery import Cost
    from keepstep.client.server import Server
    from keepstep.client.store import Alarm
    from keepstep.client.subscription import Event

T = TypeVar("T")

READS_AND_WRITES: Final = Capability.PUBLISH | Capability.SUBSCRIBE


def find_server(address: str = server.DEFAULT_REST_URL, *, rest_url: str | None = None) -> Server:
    """As ``keepstep.client.find_server``."""
    return trio.run(functools.partial(server.find_server, address, rest_url=rest_url))


def create_user(at: Server, *, path: Path, name: str, recovery_path: Path, passphrase: str, cost: Cost = COST) -> None:
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
        )
    )


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

    def publish(
        self, stream: str, data: bytes, *, key: str | None = None, ttl_s: int | None = None, wait_s: float | None = None
    ) -> Receipt | None:
        """Publish, and wait until the server has it on its disk.

        Args:
            stream: as in ``Device.publish``.
            data: likewise.
            key: likewise.
            ttl_s: likewise.
            wait_s: wait no longer than this for the server, seconds; ``None``: as long as it takes.

        Returns:
            the receipt; ``None`` where it did not come in time: the event is safe here and goes out by itself.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``Device.publish`` and ``Publication.accepted``.
        """
        receipts = self._publish(stream, [data], key=key, ttl_s=ttl_s, wait_s=wait_s)
        return None if receipts is None else receipts[0]

    def publish_many(self, stream: str, data: Sequence[bytes], *, wait_s: float | None = None) -> list[Receipt] | None:
        """Publish in order, all or none, and wait until the server has all of them. As ``publish``."""
        return self._publish(stream, data, key=None, ttl_s=None, wait_s=wait_s)

    def _publish(
        self, stream: str, data: Sequence[bytes], *, key: str | None, ttl_s: int | None, wait_s: float | None
    ) -> list[Receipt] | None:
        async def publish() -> list[Receipt] | None:
            await self._device.wait_until_ready()
            publications = [await self._device.publish(stream, each, key=key, ttl_s=ttl_s) for each in data[:1]]
            publications += await self._device.publish_many(stream, data[1:])
            with trio.move_on_after(float("inf") if wait_s is None else wait_s):
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
            quiet_s: end when nothing came for so long, seconds; ``None``: never end.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``Device.subscribe`` and ``Subscription``.
        """
        subscription = self._run(lambda: self._device.subscribe(stream, start=start, after=after, cursor=cursor))

        async def take() -> Event | None:
            with trio.move_on_after(float("inf") if quiet_s is None else quiet_s):
                return await anext(subscription)
            return None

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
