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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from keepstep.client.accounts import register
from keepstep.client.enrolling import EnrolCalls
from keepstep.client.environment import SYSTEM
from keepstep.client.follower import Follower
from keepstep.client.healing import HealCalls, Healer
from keepstep.client.keeper import Keeper
from keepstep.client.keys import Keyring, open_label
from keepstep.client.link import Link
from keepstep.client.listing import DeviceInfo, list_devices
from keepstep.client.live import Live, LiveCalls
from keepstep.client.locallog import LocalLog
from keepstep.client.notices import Notices
from keepstep.client.outbox import Draft, Outbox
from keepstep.client.publisher import Publisher
from keepstep.client.rest import RestClient
from keepstep.client.sightings import Sightings
from keepstep.client.snapshots import SnapshotCalls
from keepstep.client.store import check_live, open_store
from keepstep.client.subscription import EventSource, Subscription, check_readable
from keepstep.client.survey import Survey
from keepstep.client.worker import CLEANUP_S, open_nursery
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Kind, Position, inbox_of, is_inbox
from keepstep.protocol.account_payloads import encode_revoke
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.snapshot import ERASE_EVENTS_MAX, encode_erase

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Start
    from keepstep.client.notices import Notice
    from keepstep.client.publication import Publication
    from keepstep.client.store import Alarm, Identity, Store
    from keepstep.client.subscription import Event
    from keepstep.client.worker import Worker
    from keepstep.model import Policy


@dataclass(frozen=True, slots=True)
class Backup:
    """What a recovery file holds beside its root keys: see ``recovery.Recovery``."""

    heads: dict[str, tuple[int, bytes]]
    content_keys: list[tuple[bytes, int, bytes, bytes]]

    def __repr__(self) -> str:
        return f"Backup({len(self.heads)} streams)"


class Device(EnrolCalls, HealCalls, LiveCalls, SnapshotCalls):
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
            store,
            self._keyring,
            environment,
            lambda stream: self._follower.position(stream),
            lambda stream: stream in self._follower.followed,
        )
        self._follower = Follower(store, self._log, self._keyring, environment, outbox.settle_within)
        self._publisher = Publisher(store, outbox, worker, environment, outbox.count(), self._follower.rewinds)
        self._source = EventSource(self._log, self._keyring, worker, store.identity.user_key)
        self._live = Live(store, worker, self._keyring, environment, self._is_another)
        self._healer = Healer(
            store,
            self._log,
            worker,
            environment,
            follower=self._follower,
            outbox=outbox,
            queued=self._publisher.queued,
            went_back=self._source.go_back,
        )
        self._link = Link(
            store,
            worker,
            environment,
            healer=self._healer,
            device_url=device_url or store.identity.device_url,
            tls=tls,
            follower=self._follower,
            publisher=self._publisher,
            source=self._source,
            live=self._live,
        )
        self._keeper = Keeper(
            store,
            worker,
            environment,
            follower=self._follower,
            keyring=self._keyring,
            outbox=outbox,
            publisher=self._publisher,
            link=self._link,
            source=self._source,
        )
        self._tls = tls
        self._sightings = Sightings(store, worker, environment, self._rest_client, self._source.announce)

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

    def inbox_of(self, device: bytes | str | None = None) -> str:
        """The stream into which every device of this user may publish and which only that device reads.

        Args:
            device: its id, 16 bytes, or its name; ``None`` for this device itself.

        Raises:
            ClientError: there is no such device or more than one, as far as this device has read ``$devices``.
        """
        return inbox_of(self.identity.device_id if device is None else self._find(device))

    @property
    def failure(self) -> Exception | None:
        """Why there is no session and will be none soon; ``None`` while there may be.

        After a close code that asks to stay away the device tries again once an hour, except after ``replaced``.
        """
        return self._link.failure

    @property
    def last_problem(self) -> str:
        """Why the last session ended or the last attempt failed, in plain words; empty where there was none."""
        return self._link.last_problem

    @property
    def postponed(self) -> str:
        """Why the server last asked for an event again later, in plain words; empty where it never did."""
        return self._publisher.postponed

    @property
    def waiting(self) -> int:
        """Events in the outbox that the server has not acknowledged."""
        return self._publisher.waiting

    async def publish(
        self,
        stream: str,
        data: bytes,
        *,
        key: str | None = None,
        ttl_s: int | None = None,
        expects: Position | Literal["own"] | None = None,
    ) -> Publication:
        """Encrypt, sign and keep an event; it is on this device's disk when this returns, and goes out by itself.

        Args:
            stream: 1 to 128 of ``A-Z a-z 0-9 . _ : @ / $ -``, not beginning with ``$``, or what ``inbox_of`` gives; the
                server sees it.
            data: at most about 256 KiB after compression.
            key: in streams of the policy ``latest``, the name of what is written.
            ttl_s: seconds after which the data may be deleted everywhere; ``None`` for never, as in every inbox.
            expects: what it builds on, a ``position`` of the stream or ``"own"`` for this device's event before it. In
                streams of the policy ``expect`` the event is refused (``conflict``) where that is not the head; in
                those of ``fork`` readers are told what it does not build on.

        Returns:
            what tells when the server has it.

        Raises:
            ClientError: it cannot be published like that, or the outbox or the disk is full.

        After a cancellation the event is in the outbox or it is not; the next one's number tells.
        """
        (publication,) = await self._publish([Draft(stream, data, key=key, ttl_s=ttl_s, expects=expects)])
        return publication

    async def set_policy(
        self, stream: str, policy: Policy, *, ttl_max_s: int | None = None, stream_bytes_max: int | None = None
    ) -> Publication:
        """Say what a stream does with events that do not know of each other; makes the stream where there is none.

        A stream with events goes from ``append`` to another policy only, and from another one nowhere.

        Args:
            stream: its name.
            policy: see ``docs/reference/protocol.md`` section 3.
            ttl_max_s: the longest life of an event, seconds, which every event then has to name; ``None`` for none.
            stream_bytes_max: what the stream may hold at the server, bytes; what is above it is ``quota_exceeded``.

        Raises:
            ClientError: this device does not manage. The publication raises ``unprocessable`` where it may not be.
        """
        mine = self._follower.account.devices.get(self.identity.device_id)
        if mine is not None and not mine.manages(self._environment.now_ms()):
            raise ClientError(f"{self.identity.name} may not set policies: {self._managers()} may")
        payload = encode_policy(policy, ttl_max_s=ttl_max_s, stream_bytes_max=stream_bytes_max)
        (publication,) = await self._publish([Draft(stream, payload, kind=Kind.POLICY)])
        return publication

    async def erase(self, stream: str, events: Iterable[Event]) -> Publication:
        """Have what events hold deleted, on the server and on every device; that they were there stays visible.

        Args:
            stream: theirs.
            events: at most 1024; this device's own, or anybody's where it manages.

        Raises:
            ClientError: they are of another stream, too many, or none. The publication raises ``forbidden``.
        """
        numbers: dict[bytes, list[int]] = {}
        for event in events:
            if event.stream != stream:
                raise ClientError(f"an event of {event.stream} is not erased in {stream}")
            numbers.setdefault(event.device_id, []).append(event.n)
        count = sum(map(len, numbers.values()))
        if not 0 < count <= ERASE_EVENTS_MAX:
            raise ClientError(f"an erasure names 1 to {ERASE_EVENTS_MAX} events, not {count}")
        (publication,) = await self._publish([Draft(stream, encode_erase(numbers), kind=Kind.ERASE)])
        return publication

    async def publish_many(self, stream: str, data: Sequence[bytes]) -> Sequence[Publication]:
        """Publish events in order, all of them or none; one wait for the disk. Raises and cancels as ``publish``."""
        return await self._publish([Draft(stream, each) for each in data])

    async def _publish(self, drafts: Sequence[Draft]) -> Sequence[Publication]:
        self._raise_failure()
        if not self._is_ready():
            raise ClientError("this device has not read its account yet: connect it once")
        publications = await self._publisher.publish(drafts)
        if self._link.failure is not None:  # which came while they were stored, and so told nobody who waits for them
            self._publisher.fail(self._link.failure)
        return publications

    def _is_ready(self) -> bool:
        """Others accept what it writes, and can read it."""
        return self.identity.device_id in self._follower.account.devices and bool(self._keyring.all())

    async def subscribe(
        self,
        stream: str,
        *,
        start: Start | Literal["snapshot"] = "start",
        after: int | None = None,
        cursor: str | None = None,
    ) -> Subscription:
        """Read a stream from a position on, live; what is there already comes first.

        Args:
            stream: its name; it need not exist yet. Of inboxes, this device's own.
            start: ``"start"``: with the first event that is kept; ``"end"``: with what comes after what this device
                has read, or after now where it has read nothing; ``"snapshot"``: with what follows the newest confirmed
                snapshot, which is the subscription's ``snapshot``; as ``"start"`` where there is none. A device that
                has read nothing of the stream asks the server, and this returns once it has read on to the end. Not
                where ``after`` or ``cursor`` name a position.
            after: give out events after this seq.
            cursor: give out events after what was committed under this name.

        Raises:
            ClientError: that is no name for a stream, or another device's inbox. With ``"snapshot"`` also: that is an
                inbox, the server is not reached, or what is kept here begins later, and no snapshot stands for what was
                before.
            ProtocolError, VerificationError: with ``"snapshot"``, as ``wait_until_caught_up``.
        """
        self._raise_failure()
        check_readable(stream, self.identity.device_id)
        if start == "snapshot" and is_inbox(stream):
            raise ClientError("an inbox has no snapshots")
        state = b""
        kept = await self._worker.run(lambda: None if cursor is None else self._log.cursor(cursor, stream))
        if kept is not None:
            after, state = kept.seq, kept.state
        snapshot = await self._beginning(stream) if start == "snapshot" and after is None else None
        known = self._follower.position(stream).seq
        followed = await self._link.follow(stream, "end" if start == "end" else "start")
        if start == "end" and known and after is None:
            after = known
        elif snapshot is not None:
            after = snapshot.covers.seq
        return Subscription(
            self._source,
            stream,
            after=after,
            cursor=cursor,
            state=state,
            snapshot=snapshot,
            failure=lambda: followed.failure or self._link.failure,
            now_ms=self._environment.now_ms,
            rewound_from=None if kept is None else kept.rewound_from,
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
            ClientError: that is another device's inbox.
            ClientError, ProtocolError: there will be no session any more.
        """
        if stream not in (DEVICES_STREAM, KEYS_STREAM):
            check_readable(stream, self.identity.device_id)
        followed = await self._link.follow(stream, "start")

        def is_caught_up() -> bool:
            if followed.failure is not None:
                raise followed.failure
            return self._link.is_caught_up(stream)

        await self._until(is_caught_up)

    async def devices(self) -> list[DeviceInfo]:
        """The user's devices, as far as this device has read ``$devices``."""
        return list_devices(self._follower.account, self._keyring)

    async def alarms(self) -> list[Alarm]:
        """What this device has found to be lies, or signs of having been copied or set back; oldest first."""
        return await self._worker.run(self._store.alarms)

    async def revoke(self, device: bytes | str) -> None:
        """End a device of this user, for good: its sessions, its access, and what it writes from now on.

        What it wrote counts up to where this device has verified it; streams that this device does not follow are read
        once for that. The others get a new content key, so that it cannot read what is written later; what it has read
        it may keep. A device that manages ends any device; any device may end itself (sign out). When this returns,
        what is published next is sealed under the new key; a device that has ended itself has no keys any more.

        Args:
            device: its id, 16 bytes, or its name.

        Raises:
            ClientError: this device may not, there is no such device or more than one, or the server is not reached.
            ProtocolError: the server refuses.
            VerificationError: something lies about a stream.

        After a cancellation the device may be revoked or not; ``devices`` tells.
        """
        await self.wait_until_caught_up(DEVICES_STREAM)
        device_id = self._find(device)
        now_ms = self._environment.now_ms()
        mine = self._follower.account.devices[self.identity.device_id]
        if device_id != self.identity.device_id and not mine.manages(now_ms):
            raise ClientError(f"{self.identity.name} may not revoke devices: {self._managers()} may")
        is_own = device_id == self.identity.device_id
        try:
            await self._revoke([device_id])
            if is_own:
                await self._until(lambda: False)  # the answer may come before the news that wipes this device's file
            await self.wait_for_new_epoch()
        except ProtocolError as error:
            if error.code != "revoked" or not is_own:
                raise

    async def _revoke(self, device_ids: Sequence[bytes]) -> None:
        client = self._rest_client()
        survey = Survey(
            self._store,
            self._follower,
            self._worker,
            client,
            self.wait_until_caught_up,
            lambda seq: self._until(lambda: self._follower.position(DEVICES_STREAM).seq >= seq),
        )
        for device_id, accepted in (await survey.author_numbers(device_ids)).items():
            draft = Draft(DEVICES_STREAM, encode_revoke(device_id, accepted), kind=Kind.ACCOUNT)
            await self._change_account([draft])

    async def last_seen(self) -> dict[bytes, int]:
        """Ask the server when the user's live devices were last connected, unix milliseconds, by id; nobody signs it.

        Raises:
            ClientError: the server cannot be reached.
            ProtocolError: it refuses.

        A cancellation asks no further.
        """
        return await self._sightings.ask()

    def _rest_client(self) -> RestClient:
        """REST as this device, whose pinned server key goes on with the server's."""
        client = RestClient(self.identity, environment=self._environment, tls=self._tls)
        client.follow_server(lambda: self._follower.account.announcements, self._link.repin)
        return client

    async def finish_recovery(self, root_secret: bytes) -> None:
        """On a device that a recovery has made: take every content key, and say what counts of the devices it ended.

        Args:
            root_secret: the one of the recovery file that was used, for which content keys are wrapped.

        Raises:
            ClientError, ProtocolError, VerificationError: as ``revoke``; calling it again goes on.
        """
        await self.wait_until_caught_up(DEVICES_STREAM)
        await self.wait_until_caught_up(KEYS_STREAM)
        await self._worker.run(lambda: self._follower.take_recovered_keys(root_secret))
        self._source.announce()
        devices = self._follower.account.devices.items()
        await self._revoke([each for each, known in devices if known.ended and known.ended.accepted is None])
        await self.wait_for_content_epoch(self._follower.account.devices[self.identity.device_id].seq)

    async def backup(self) -> Backup:
        """What a recovery file holds beside its root keys, as of now."""
        heads = {stream: (at.seq, at.chain) for stream, at in self._follower.positions().items()}
        keys = [(each.content_epoch, each.after, each.content_key, each.index_key) for each in self._keyring.all()]
        return Backup(heads, keys)

    def _find(self, device: bytes | str) -> bytes:
        """The id of a device that is live, or that only a recovery has ended."""
        if isinstance(device, bytes):
            found = [device] if device in self._follower.account.devices else []
        else:
            devices = self._follower.account.devices
            found = [each for each in devices if self._name(each) == device and devices[each].ended is None]
        if len(found) != 1:
            what = device.hex() if isinstance(device, bytes) else device
            raise ClientError(f"there is {'more than one' if found else 'no'} live device {what}")
        return found[0]

    def _managers(self) -> str:
        """Who may enrol and revoke, by name."""
        now_ms = self._environment.now_ms()
        devices = self._follower.account.devices.items()
        names = [self._name(device_id) or device_id.hex()[:8] for device_id, each in devices if each.manages(now_ms)]
        return ", ".join(names) or "no device"

    def _name(self, device_id: bytes) -> str | None:
        sealed_label = self._follower.account.devices[device_id].entry.sealed_label
        return open_label(
            self._keyring, user_key=self.identity.user_key, device_id=device_id, sealed_label=sealed_label
        )

    async def wait_for_new_epoch(self) -> None:
        """Wait until what is published is sealed under a key that no device has that was revoked so far."""
        ends = [each.ended.seq for each in self._follower.account.devices.values() if each.ended is not None]
        await self.wait_for_content_epoch(max(ends, default=0))

    async def wait_for_content_epoch(self, after: int) -> None:
        """Wait until what is published is sealed under a content key of ``$devices`` seq ``after`` or later.

        After a revocation at that seq the revoked device does not read what is published from then on.
        """
        await self._until(lambda: bool(self._keyring.all()) and self._keyring.current().after >= after)

    def notices(self, *, after: int = 0) -> Notices:
        """What this device has to tell its user about devices: kept ones first, then as they come.

        Args:
            after: the number of the last one that is known.
        """
        return Notices(
            self._store,
            self._worker,
            after=after,
            changed=self._source.changed,
            failure=lambda: self._link.failure,
        )

    async def warnings(self, *, after: int = 0) -> list[Notice]:
        """The notices that are kept now, oldest first."""
        return await self._worker.run(lambda: self._store.notices(after=after))

    async def _change_account(self, drafts: Sequence[Draft]) -> None:
        """Publish events, the first one into ``$devices``, and wait until it is stored and read back."""
        publications = await self._publish(drafts)
        receipts = [await publication.accepted() for publication in publications]
        at = receipts[0].seq or 0
        await self._until(lambda: self._follower.position(DEVICES_STREAM).seq >= at)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connected until the block ends; then write down what the server acknowledged."""
        async with open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._sightings.run)
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

    def _is_another(self, device_id: bytes) -> bool:
        """Whether that is another device of the user, and live."""
        known = self._follower.account.devices.get(device_id)
        return known is not None and known.ended is None and device_id != self.identity.device_id

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
        check_live(store)
        if store.genesis() is not None:
            await register(store, environment, tls=tls)
        device = await worker.run(lambda: Device(store, worker, environment, device_url=device_url, tls=tls))
        async with device.running():
            yield device
    finally:
        store.close()
