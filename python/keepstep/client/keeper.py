"""What a device that manages owes the others: content keys for all of them, and a checkpoint a day.

After a revocation or a recovery the devices that stay get a new content epoch (protocol.md section 5), by whoever made
the change, or, where that one did not come to it, by any device that manages and finds it missing. Likewise every
content key is wrapped for every live device and for the recovery file. Checkpoints let all devices compare what they
were shown (section 1); every device tells its user when none came for a week.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.keys import generate_content_key, recovery_box, wrap
from keepstep.client.notices import Notice, NoticeKind
from keepstep.client.outbox import Draft
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Capability, Kind
from keepstep.protocol.account_payloads import encode_checkpoint, encode_server_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Follower
    from keepstep.client.keys import Keyring
    from keepstep.client.link import Link
    from keepstep.client.outbox import Outbox
    from keepstep.client.payload import ContentKey
    from keepstep.client.publisher import Publisher
    from keepstep.client.store import Store
    from keepstep.client.subscription import EventSource
    from keepstep.client.worker import Worker
    from keepstep.protocol.account_state import EnrolledDevice

KEYS_WAIT_S: Final = 10.0
"""How long a device waits for the one whose turn it is to hand out content keys, and again as long, spread, seconds."""
CHECKPOINT_EVERY_MS: Final = 24 * 60 * 60 * 1000
CHECKPOINT_SPREAD_S: Final = 600.0
"""Devices that manage do not all publish their checkpoint at the same moment, seconds."""
CHECKPOINT_STREAMS_MAX: Final = 1024
"""Streams in a checkpoint, the first by name; more would not fit into an account event."""
NO_CHECKPOINT_MS: Final = 7 * 24 * 60 * 60 * 1000
"""Without a checkpoint for this long a device tells its user."""
RETRY_S: Final = 60.0
"""After a refusal, seconds."""
LOOK_EVERY_S: Final = 3600.0
"""How often clocks are looked at where nothing else happens, seconds."""


class Keeper:
    """Does it for one device. ``run`` is its one task."""

    def __init__(
        self,
        store: Store,
        worker: Worker,
        environment: Environment,
        *,
        follower: Follower,
        keyring: Keyring,
        outbox: Outbox,
        publisher: Publisher,
        link: Link,
        source: EventSource,
    ) -> None:
        self._store = store
        self._worker = worker
        self._environment = environment
        self._follower = follower
        self._keyring = keyring
        self._outbox = outbox
        self._publisher = publisher
        self._link = link
        self._source = source
        self._began_ms: int | None = None
        self._looked_at: tuple[object, ...] = ()
        self._look_again_s = -math.inf
        self._keys_since_s: float | None = None
        self._checkpoint_at_s: float | None = None

    async def run(self) -> None:
        """Look after every change, for ever: without a session nothing is due."""
        while True:
            changed = self._source.changed()
            if self._has_changed():
                try:
                    self._look_again_s = trio.current_time() + await self._look()
                except (ClientError, ProtocolError):
                    # Refused, or the disk is full: the device itself says so, and this is tried again.
                    self._look_again_s = trio.current_time() + RETRY_S
            with trio.move_on_at(self._look_again_s):
                await changed.wait()

    def _has_changed(self) -> bool:
        """Whether to look: every event announces itself here, and most mean nothing."""
        streams = (DEVICES_STREAM, KEYS_STREAM)
        known = len(self._keyring.all())
        now = (
            known,
            self._link.announced,
            *map(self._follower.position, streams),
            *map(self._link.is_caught_up, streams),
        )
        before, self._looked_at = self._looked_at, now
        return now != before or trio.current_time() >= self._look_again_s

    async def _look(self) -> float:
        """Do what is due; returns when to look again, seconds from now."""
        if not (self._link.is_caught_up(DEVICES_STREAM) and self._link.is_caught_up(KEYS_STREAM)):
            return LOOK_EVERY_S
        now_ms = self._environment.now_ms()
        mine = self._follower.account.devices.get(self._store.identity.device_id)
        manages = mine is not None and mine.manages(now_ms)
        waits = [LOOK_EVERY_S, await self._look_at_checkpoint(now_ms, manages=manages)]
        if manages:
            await self._pass_on_announcement()
        if manages and self._keyring.all():
            waits.append(await self._look_at_keys(now_ms))
        return min(waits)

    async def _pass_on_announcement(self) -> None:
        """Tell the others of the server's next identity key, in ``$devices``, where nobody has."""
        announced = self._link.announced
        if announced is None or announced in self._follower.account.announcements:
            return
        self._link.announced = None
        payload = encode_server_key(announced)
        (publication,) = await self._publisher.publish([Draft(DEVICES_STREAM, payload, kind=Kind.ACCOUNT)])
        await publication.accepted()

    # -- content keys -----------------------------------------------------------------------------------------------

    async def _look_at_keys(self, now_ms: int) -> float:
        if not self._owed(now_ms) or await self._worker.run(self._keys_are_on_their_way):
            self._keys_since_s = None
            return LOOK_EVERY_S
        now_s = trio.current_time()
        if self._keys_since_s is None:
            patience_s = 0.0 if self._is_my_turn() else KEYS_WAIT_S + self._environment.jitter(KEYS_WAIT_S)
            self._keys_since_s = now_s + patience_s
        if now_s < self._keys_since_s:
            return self._keys_since_s - now_s
        self._keys_since_s = None
        drafts = [Draft(KEYS_STREAM, payload, kind=Kind.KEYS) for payload in self._owed(now_ms)]
        for publication in await self._publisher.publish(drafts):
            await publication.accepted()
        return LOOK_EVERY_S

    def _keys_are_on_their_way(self) -> bool:
        """Whether this device has handed out keys that it has not read back: they would be handed out twice."""
        own = self._outbox.own(KEYS_STREAM)
        return own.last_n > own.accepted_n or own.receipt.seq > self._follower.position(KEYS_STREAM).seq

    def _receivers(self, now_ms: int) -> dict[bytes, bytes]:
        """Box keys by device id: of every live device that reads, and of the recovery file."""
        account = self._follower.account
        receivers = {
            device_id: each.entry.box_key
            for device_id, each in account.devices.items()
            if each.ended is None and not each.is_expired(now_ms) and Capability.SUBSCRIBE in each.entry.capabilities
        }
        with contextlib.suppress(ProtocolError):  # a root key that its holder has made unfit to receive anything
            receivers |= [recovery_box(account.root_key)]
        return receivers

    def _owed(self, now_ms: int) -> list[bytes]:
        """Payloads for ``$keys``: the epoch that is missing, and every key that somebody does not have."""
        receivers = self._receivers(now_ms)
        keys = self._keyring.all()
        owed = []
        ended_seq = max((seq for seq, _ in self._ends()), default=0)
        if self._keyring.current().after < ended_seq:
            owed.append(wrap(self._next_key(ended_seq), receivers))
        for key in keys:
            missing = self._follower.wraps.missing(key.content_epoch, receivers)
            if missing:
                owed.append(wrap(key, {each: receivers[each] for each in missing}))
        return owed

    def _next_key(self, after: int) -> ContentKey:
        return generate_content_key(self._environment, after=after, index_key=self._keyring.current().index_key)

    def _ends(self) -> Iterator[tuple[int, bytes]]:
        """(seq, author) of what in ``$devices`` takes a device away: revocations and rotations."""
        for device_id, device in self._follower.account.devices.items():
            if device.ended is not None:
                yield device.ended.seq, device.ended.by
            if _is_of_rotation(device):
                yield device.seq, device_id

    def _is_my_turn(self) -> bool:
        """Whether this device made the latest such change; the others wait for it."""
        return max(self._ends(), default=(0, b""))[1] == self._store.identity.device_id

    # -- checkpoints ------------------------------------------------------------------------------------------------

    async def _look_at_checkpoint(self, now_ms: int, *, manages: bool) -> float:
        latest_ms = await self._latest_checkpoint_ms()
        due_ms = latest_ms + (CHECKPOINT_EVERY_MS if manages else NO_CHECKPOINT_MS)
        if now_ms < due_ms:
            self._checkpoint_at_s = None
            return (due_ms - now_ms) / 1000
        if not manages:
            await self._worker.run(lambda: self._tell_of_no_checkpoint(now_ms))
            self._source.announce()
            return LOOK_EVERY_S
        now_s = trio.current_time()
        if self._checkpoint_at_s is None:
            self._checkpoint_at_s = now_s + self._environment.jitter(CHECKPOINT_SPREAD_S)
        if now_s < self._checkpoint_at_s:
            return self._checkpoint_at_s - now_s
        self._checkpoint_at_s = None
        held = sorted(self._follower.positions().items())[:CHECKPOINT_STREAMS_MAX]
        payload = encode_checkpoint({stream: (position.seq, position.chain) for stream, position in held})
        (publication,) = await self._publisher.publish([Draft(DEVICES_STREAM, payload, kind=Kind.ACCOUNT)])
        await publication.accepted()
        return LOOK_EVERY_S

    async def _latest_checkpoint_ms(self) -> int:
        """When the latest one came; the account's beginning where there is none."""
        checkpoint = self._follower.account.checkpoint
        if checkpoint is not None:
            return checkpoint[1]
        if self._began_ms is None:
            self._began_ms = await self._worker.run(self._read_beginning)
        return self._began_ms

    def _read_beginning(self) -> int:
        row = self._store.row("SELECT received_at_ms FROM events WHERE stream = ? AND seq = 1", DEVICES_STREAM)
        return self._environment.now_ms() if row is None else int(row[0])

    def _tell_of_no_checkpoint(self, now_ms: int) -> None:
        """Once a week."""
        told = [each.at_ms for each in self._store.notices() if each.kind is NoticeKind.NO_CHECKPOINT]
        if not told or now_ms - told[-1] >= NO_CHECKPOINT_MS:
            with self._store.transaction():
                self._store.add_notice(Notice(NoticeKind.NO_CHECKPOINT, now_ms))


def _is_of_rotation(device: EnrolledDevice) -> bool:
    """Whether a rotation made it: the root key answers for it, and it is not the first device."""
    return device.enrolled_by is None and device.seq > 1
