"""How a device makes another one of the same user: here on this machine, or one that is linked (``linking``)."""

from __future__ import annotations

import abc
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.accounts import make_device
from keepstep.client.keys import seal_label, wrap
from keepstep.client.locallog import LocalLog
from keepstep.client.outbox import Draft
from keepstep.client.payload import NONCE_BYTES
from keepstep.client.server import Server
from keepstep.client.store import create_store, open_store
from keepstep.client.worker import CLEANUP_S
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Capability, DeviceEntry, Kind
from keepstep.protocol.account_payloads import encode_enrol, entry_to_wire
from keepstep.protocol.codec import encode
from keepstep.protocol.linking import HANDOVER_BYTES_MAX, Handover
from keepstep.protocol.streamstate import state_at_start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Follower
    from keepstep.client.keys import Keyring
    from keepstep.client.outbox import Outbox
    from keepstep.client.store import Identity, Store
    from keepstep.client.worker import Worker
    from keepstep.protocol.linking import Introduction
    from keepstep.protocol.messages import SignedHead

READS_AND_WRITES: Final = Capability.PUBLISH | Capability.SUBSCRIBE
HEADS_FRAMING_BYTES: Final = 8
"""The map of a handover's heads beside its entries, bytes at most."""


class EnrolCalls(abc.ABC):
    """What makes other devices, of a ``Device``."""

    _store: Store
    _worker: Worker
    _environment: Environment
    _log: LocalLog
    _keyring: Keyring
    _outbox: Outbox
    _follower: Follower

    @property
    @abc.abstractmethod
    def identity(self) -> Identity:
        """Who this device is."""

    @abc.abstractmethod
    async def wait_until_caught_up(self, stream: str) -> None:
        """Wait until everything of a stream is here."""

    @abc.abstractmethod
    async def _change_account(self, drafts: Sequence[Draft]) -> None:
        """Publish, and wait until it is stored and read back."""

    @abc.abstractmethod
    def _managers(self) -> str:
        """The devices that manage, in words."""

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
        self.check_enrols(capabilities)
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
        await self._worker.run(lambda: self._hand_over(path, new.identity))
        try:
            await self._change_account(self._drafts(new.entry))
        except ProtocolError:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await self._worker.run(path.unlink)
            raise
        await self._worker.run(lambda: self._pin(path))

    def check_enrols(self, capabilities: Capability) -> None:
        """Whether this device may enrol one with these capabilities. Raises ClientError."""
        if Capability.MANAGE not in self.identity.capabilities:
            raise ClientError(f"{self.identity.name} may not enrol devices: {self._managers()} may")
        if Capability.SUBSCRIBE not in capabilities:
            raise ClientError("a device has to read, at least who else there is")

    async def enrol_linked(self, introduced: Introduction, *, capabilities: Capability) -> Handover:
        """Enrol a device that was linked: sign its entry, and wrap every content key for it.

        Args:
            introduced: who it is, proven by its code.
            capabilities: what it may do.

        Returns:
            what it checks the server against.

        Raises:
            ClientError: this device may not.
            ProtocolError: the server refuses.

        After a cancellation it may be enrolled or not.
        """
        self.check_enrols(capabilities)
        await self.wait_until_caught_up(DEVICES_STREAM)
        user_key = self.identity.user_key
        entry = DeviceEntry(
            device_id=introduced.device_id,
            device_key=introduced.device_key,
            box_key=introduced.box_key,
            capabilities=capabilities,
            issued_at_ms=self._environment.now_ms(),
            expires_at_ms=None,
            sealed_label=seal_label(
                self._keyring.current(),
                user_key=user_key,
                device_id=introduced.device_id,
                name=introduced.name,
                nonce=self._environment.random_bytes(NONCE_BYTES),
            ),
        )
        await self._change_account(self._drafts(entry))
        return await self._worker.run(lambda: self._handover(entry))

    def _drafts(self, entry: DeviceEntry) -> list[Draft]:
        """A device's entry, and every content key wrapped for it."""
        box_keys = {entry.device_id: entry.box_key}
        keys = [Draft(KEYS_STREAM, wrap(key, box_keys), kind=Kind.KEYS) for key in self._keyring.all()]
        return [Draft(DEVICES_STREAM, encode_enrol(entry), kind=Kind.ACCOUNT), *keys]

    def _handover(self, entry: DeviceEntry) -> Handover:
        """The position in $devices, and the latest signed heads: as many as fit, the reserved streams' first.

        What does not fit is in the next checkpoint.
        """
        self._outbox.settle()
        position = self._store.receipt(DEVICES_STREAM)
        streams = self._log.streams()
        heads: dict[str, SignedHead] = {}
        handover = Handover(entry_to_wire(entry), (position.seq, position.chain), heads)
        room = HANDOVER_BYTES_MAX - len(encode(handover)) - HEADS_FRAMING_BYTES
        for stream in sorted(streams, key=lambda name: (not name.startswith("$"), name)):
            if streams[stream].heads:
                head = streams[stream].heads[-1]
                room -= len(encode([stream, head]))
                if room < 0:
                    break
                heads[stream] = head
        return handover

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
