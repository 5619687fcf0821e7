"""Snapshots of a stream: an application's state that stands for the events before it (protocol.md section 3).

A device that starts takes the server's word for where a confirmed snapshot begins, and for nothing else: it verifies
the stream from there, finds the snapshot and its confirmation in it, and only then gives the state out.
"""

from __future__ import annotations

import abc
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from keepstep.client import crypto
from keepstep.client.http import raise_for_problem
from keepstep.client.outbox import Covers, Draft
from keepstep.client.payload import PayloadError, Place
from keepstep.client.rest import decode_answer
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import KEYS_STREAM, Capability, Kind, Position
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.event import decode_header
from keepstep.protocol.snapshot import SnapshotPayload, decode_confirm, decode_snapshot, encode_confirm

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Follower
    from keepstep.client.keys import Keyring
    from keepstep.client.link import Link
    from keepstep.client.locallog import LocalLog, StoredEvent
    from keepstep.client.publication import Publication
    from keepstep.client.rest import RestClient
    from keepstep.client.store import Identity
    from keepstep.client.worker import Worker


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that this device has verified and can read.

    Attributes:
        stream: the stream.
        seq: its own place.
        covers: the last event that ``state`` holds.
        device_id: its author, 16 bytes.
        received_at_ms: unix milliseconds, by the server's clock.
        state: what the author's application gave.
        authors: the last author number of each device up to ``covers``.
        confirmed_by: a device that found the same state, 16 bytes; the author itself only where it was the user's only
            one that writes. ``None`` where there is none yet.
    """

    stream: str
    seq: int
    covers: Position
    device_id: bytes
    received_at_ms: int
    state: bytes
    authors: dict[bytes, int]
    confirmed_by: bytes | None


class _Covers(msgspec.Struct, frozen=True):
    seq: Annotated[int, Meta(ge=1)]
    chain: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Confirmed(msgspec.Struct, frozen=True):
    seq: int


class _Listed(msgspec.Struct, frozen=True):
    covers: _Covers
    confirmed: _Confirmed | None


class _List(msgspec.Struct, frozen=True):
    """The server's list, the newest first."""

    snapshots: list[_Listed]


class SnapshotCalls(abc.ABC):
    """What makes, confirms and finds snapshots, of a ``Device``."""

    _environment: Environment
    _follower: Follower
    _keyring: Keyring
    _link: Link
    _log: LocalLog
    _tls: ssl.SSLContext | None
    _worker: Worker

    @property
    @abc.abstractmethod
    def identity(self) -> Identity:
        """Who this device is."""

    @abc.abstractmethod
    async def wait_until_ready(self) -> None:
        """Wait until this device can publish."""

    @abc.abstractmethod
    async def wait_until_caught_up(self, stream: str) -> None:
        """Wait until everything of a stream is here."""

    @abc.abstractmethod
    def _rest_client(self) -> RestClient:
        """REST as this device."""

    @abc.abstractmethod
    async def _publish(self, drafts: Sequence[Draft]) -> Sequence[Publication]:
        """Put events into the outbox."""

    async def snapshot(self, stream: str, state: bytes, *, seq: int | None = None) -> Publication:
        """Publish an application's state, sealed, for devices that start later.

        Args:
            stream: which one the state was made of.
            state: at most about 256 KiB after compression.
            seq: of the last event that the state holds; by default all that this device has verified, which may be more
                than its application has read.

        Raises:
            ClientError: this device does not hold the stream at ``seq``, or began to read it at its end; the state is
                too large; or as ``publish``.
        """
        covers = await self._worker.run(lambda: self._covers(stream, seq))
        (publication,) = await self._publish([Draft(stream, state, kind=Kind.SNAPSHOT, covers=covers)])
        return publication

    async def confirm(self, stream: str, snapshot_seq: int) -> Publication:
        """Say that this device's application has come to the same state: others may start from that snapshot.

        Args:
            stream: its stream.
            snapshot_seq: the snapshot's own seq.

        Raises:
            ClientError: this device has not read such a snapshot, or as ``publish``. The publication raises
                ``forbidden`` for this device's own snapshot, unless no other device of the user writes.
        """
        if all(each.seq != snapshot_seq for each in await self.snapshots(stream)):
            raise ClientError(f"this device has read no snapshot of {stream} at {snapshot_seq}")
        (publication,) = await self._publish([Draft(stream, encode_confirm(snapshot_seq), kind=Kind.CONFIRM)])
        return publication

    async def snapshots(self, stream: str) -> list[Snapshot]:
        """The newest snapshots among what this device has verified of a stream, the newest first.

        Those that it cannot open, and those of a past that it has not read, are not among them.
        """
        return await self._worker.run(lambda: self._snapshots(stream))

    async def _beginning(self, stream: str) -> Snapshot | None:
        """The snapshot to start from; ``None`` where there is none and the stream is read from its first event.

        Raises:
            ClientError: the server is not reached; or what this device keeps begins later, and nothing stands for what
                was before.
            ProtocolError, VerificationError: as ``wait_until_caught_up``.
        """
        newest = await self._newest_confirmed(stream)
        if newest is not None:
            return newest
        if stream not in self._follower.followed and self._follower.position(stream).seq == 0:
            await self.wait_until_ready()
            listed = await self._listed(stream)
            if listed is None:
                return None
            await self._link.follow(stream, listed)
        elif self._follower.is_whole(stream):
            return None
        await self.wait_until_caught_up(KEYS_STREAM)
        await self.wait_until_caught_up(stream)
        newest = await self._newest_confirmed(stream)
        if newest is None:
            raise ClientError(f"no confirmed snapshot that this device can read stands for the beginning of {stream}")
        return newest

    async def _newest_confirmed(self, stream: str) -> Snapshot | None:
        return next((each for each in await self.snapshots(stream) if each.confirmed_by is not None), None)

    async def _listed(self, stream: str) -> Position | None:
        """Where the newest confirmed snapshot begins, as the server says."""
        response = await self._rest_client().request("GET", f"/api/v1/snapshots?{urlencode({'stream': stream})}")
        try:
            raise_for_problem(response)
        except ProtocolError as error:
            if error.code == "unknown_stream":
                return None
            raise
        for each in decode_answer(response, _List).snapshots:
            if each.confirmed is not None:
                return Position(each.covers.seq, bytes.fromhex(each.covers.chain))
        return None

    # -- in the worker thread -------------------------------------------------------------------------------------

    def _covers(self, stream: str, seq: int | None) -> Covers:
        position = self._follower.position(stream)
        if seq is not None and seq != position.seq:
            chain = self._log.chain_at(stream, seq)
            if chain is None:
                raise ClientError(f"this device does not hold {stream} at {seq}")
            position = Position(seq, chain)
        if position.seq == 0:
            raise ClientError(f"this device has read nothing of {stream}")
        later = self._log.counts(stream, after=position.seq)
        authors: dict[bytes, int] = {}
        if not self._follower.is_whole(stream):
            before = [each for each in self._snapshots(stream) if each.covers.seq <= position.seq]
            if not before:
                raise ClientError(f"this device has not read {stream} from its beginning, nor from a snapshot")
            authors.update(before[0].authors)
        for device_id, n in self._follower.author_numbers(stream).items():
            if n > later.get(device_id, 0):
                authors[device_id] = n - later.get(device_id, 0)
        return Covers(position, authors)

    def _snapshots(self, stream: str) -> list[Snapshot]:
        confirmed: defaultdict[int, list[StoredEvent]] = defaultdict(list)
        found: list[Snapshot] = []
        for event in self._log.snapshot_events(stream):  # a confirmation comes after its snapshot, so here before it
            if event.payload is None or event.problem is not None:
                continue
            if decode_header(event.header).kind == Kind.CONFIRM:
                confirmed[decode_confirm(event.payload).snapshot_seq].append(event)
                continue
            payload = decode_snapshot(event.payload)
            covers = Position(payload.covers_seq, payload.covers_chain)
            state = self._open(event, payload)
            if state is None or not self._holds(stream, covers):
                continue
            devices = (self._confirming(event, each) for each in confirmed[event.seq])
            confirmed_by = next((each for each in devices if each is not None), None)
            found.append(
                Snapshot(
                    stream, event.seq, covers, event.device_id, event.received_at_ms, state, payload.authors,
                    confirmed_by,
                )
            )  # fmt: skip
        return found

    def _open(self, event: StoredEvent, payload: SnapshotPayload) -> bytes | None:
        place = Place(self.identity.user_key, event.stream, event.device_id, decode_header(event.header).n)
        try:
            return self._keyring.open(place, payload.sealed)
        except PayloadError:
            return None

    def _holds(self, stream: str, at: Position) -> bool:
        """Whether what is kept of a stream passes through a position, or begins after it."""
        first = self._log.first(stream)
        if at.seq == first.seq - 1:
            hash_ = event_hash(crypto, first.header, first.sig)
            return chain_next(crypto, at.chain, first.seq, first.received_at_ms, hash_) == first.chain
        return self._log.chain_at(stream, at.seq) == at.chain

    def _confirming(self, snapshot: StoredEvent, confirmation: StoredEvent) -> bytes | None:
        """The device that a confirmation counts for; the author's own where no other could have given one."""
        device_id = confirmation.device_id
        if device_id == snapshot.device_id:
            seen = decode_header(confirmation.header).devices_seen[0]
            for other, known in self._follower.account.devices.items():
                is_live = known.seq <= seen and (known.ended is None or known.ended.seq > seen)
                if other != device_id and is_live and Capability.PUBLISH in known.entry.capabilities:
                    return None
        return device_id
