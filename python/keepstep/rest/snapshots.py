"""Snapshots of a stream: sealed states that stand for the events before them (protocol.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.model import Capability
from keepstep.rest.account import (
    EXAMPLE_DEVICE_ID,
    EXAMPLE_POSITION,
    StreamPosition,
    format_device_id,
    position,
)
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import DeviceId, Milliseconds, Seq, StreamName
from keepstep.rest.streams import check_readable

if TYPE_CHECKING:
    from keepstep.interfaces import SnapshotInfo


class SnapshotQuery(RequestBody, frozen=True, kw_only=True):
    """Of which stream."""

    stream: StreamName


class Confirmation(AnswerBody, frozen=True, kw_only=True):
    """A device's word that the snapshot is what the stream says: the event at `seq`."""

    seq: Seq
    device_id: DeviceId


class Snapshot(AnswerBody, frozen=True, kw_only=True):
    """A snapshot; its sealed state is the payload of the event at `seq`."""

    seq: Seq
    covers: StreamPosition
    device_id: DeviceId
    received_at_ms: Milliseconds
    confirmed: Confirmation | None


class Snapshots(AnswerBody, frozen=True, kw_only=True):
    """The newest snapshots of a stream, the newest first."""

    stream: StreamName
    snapshots: list[Snapshot]


def _snapshot(info: SnapshotInfo) -> Snapshot:
    confirmed = None
    if info.confirmed is not None:
        seq, device_id = info.confirmed
        confirmed = Confirmation(seq=seq, device_id=format_device_id(device_id))
    return Snapshot(
        seq=info.seq,
        covers=position(info.covers),
        device_id=format_device_id(info.device_id),
        received_at_ms=info.received_at_ms,
        confirmed=confirmed,
    )


async def _snapshots(call: Call[NoParameters, SnapshotQuery, None]) -> Reply:
    name = check_readable(call.principal, call.query.stream)
    infos = await call.services.log.snapshots(call.principal.user_pk, name)
    return Reply(Snapshots(stream=name, snapshots=[_snapshot(info) for info in infos]))


ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/snapshots",
        access=Access.DEVICE,
        summary="The newest snapshots of a stream",
        description=(
            "From one that is confirmed a reader may begin instead of from the first event. Snapshots and "
            "confirmations are signed events (`POST /api/v1/events`)."
        ),
        handler=_snapshots,
        answers={200: Snapshots},
        query_type=SnapshotQuery,
        errors=("unknown_stream",),
        capability=Capability.SUBSCRIBE,
        etag=True,
        example=Example(
            query={"stream": "notes/kitchen"},
            answer={
                "stream": "notes/kitchen",
                "snapshots": [
                    {
                        "seq": 18,
                        "covers": EXAMPLE_POSITION,
                        "device_id": EXAMPLE_DEVICE_ID,
                        "received_at_ms": 1_767_225_600_000,
                        "confirmed": {"seq": 19, "device_id": EXAMPLE_DEVICE_ID},
                    }
                ],
            },
        ),
    ),
)
