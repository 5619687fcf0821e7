"""The caller's account and its devices (protocol.md section 1)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, Literal

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, Capability
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import Base64url, DeviceId, Hex32, Milliseconds, Seq, UserId
from keepstep.rest.paging import PageQuery, cut_page, number_key
from keepstep.validation import format_base64url

if TYPE_CHECKING:
    from keepstep.interfaces import ListedDevice
    from keepstep.model import Position

CapabilityName = Literal["publish", "subscribe", "manage"]


class StreamPosition(AnswerBody, frozen=True, kw_only=True):
    """A place in a stream: everything up to and including `seq`; `chain` is the hash chain there."""

    seq: Seq
    chain: Hex32


class Device(AnswerBody, frozen=True, kw_only=True):
    """A device as `$devices` lists it.

    `manage_from_ms`: from when on it manages, 0 for at once. `revoked_seq`: the event that ended it; null: it is live.
    `last_seen_ms`: when it was last connected, to some ten minutes, or got tokens; null: never. Nobody signs that: it
    is the server's word.
    """

    device_id: DeviceId
    device_key: Hex32
    box_key: Hex32
    capabilities: list[CapabilityName]
    issued_at_ms: Milliseconds
    expires_at_ms: Milliseconds | None
    sealed_label: Base64url
    manage_from_ms: Milliseconds
    revoked_at_ms: Milliseconds | None
    revoked_seq: Seq | None
    last_seen_ms: Milliseconds | None


class DevicePage(AnswerBody, frozen=True, kw_only=True):
    """Devices in the order in which they were enrolled."""

    devices: list[Device]
    next_cursor: str | None


class Account(AnswerBody, frozen=True, kw_only=True):
    """The caller's account; `devices` are the live ones.

    `stored_bytes`: headers, signatures and payloads outside `$devices` and `$keys`, of which there may be `bytes_max`;
    null: no bound. `reserved_bytes`: those in them.
    """

    user_id: UserId
    device_id: DeviceId
    capabilities: list[CapabilityName]
    devices: int
    devices_head: StreamPosition
    stored_bytes: Seq
    bytes_max: Seq | None
    reserved_bytes: Seq


class DevicePath(RequestBody, frozen=True, kw_only=True):
    """Which device."""

    device_id: DeviceId


def format_device_id(device_id: bytes) -> str:
    """As it stands in paths and answers."""
    return str(uuid.UUID(bytes=device_id))


def capability_names(capabilities: Capability) -> list[CapabilityName]:
    """What a device may do, in words."""
    names: tuple[tuple[Capability, CapabilityName], ...] = (
        (Capability.PUBLISH, "publish"),
        (Capability.SUBSCRIBE, "subscribe"),
        (Capability.MANAGE, "manage"),
    )
    return [name for capability, name in names if capabilities & capability]


def position(at: Position) -> StreamPosition:
    """A position as it is answered."""
    return StreamPosition(seq=at.seq, chain=at.chain.hex())


def _device(listed: ListedDevice) -> Device:
    entry = listed.entry
    revoked_at_ms, revoked_seq = listed.revoked or (None, None)
    return Device(
        device_id=format_device_id(entry.device_id),
        device_key=entry.device_key.hex(),
        box_key=entry.box_key.hex(),
        capabilities=capability_names(entry.capabilities),
        issued_at_ms=entry.issued_at_ms,
        expires_at_ms=entry.expires_at_ms,
        sealed_label=format_base64url(entry.sealed_label),
        manage_from_ms=listed.manage_from_ms,
        revoked_at_ms=revoked_at_ms,
        revoked_seq=revoked_seq,
        last_seen_ms=listed.last_seen_ms,
    )


async def _account(call: Call[NoParameters, NoParameters, None]) -> Reply:
    principal = call.principal
    devices = await call.services.accounts.devices(principal.user_pk)
    info = await call.services.log.stream(principal.user_pk, DEVICES_STREAM)
    listed = await call.services.administration.user(principal.user_key)
    if listed is None:
        raise ProtocolError("not_found")  # deleted since the token was checked
    default = call.services.policy.bytes_per_user_max
    return Reply(
        Account(
            user_id=principal.user_key.hex(),
            device_id=format_device_id(principal.device_id),
            capabilities=capability_names(principal.capabilities),
            devices=sum(device.revoked is None for device in devices),
            devices_head=position(info.head),
            stored_bytes=listed.stored_bytes,
            bytes_max=default if listed.quota.bytes_max is None else listed.quota.bytes_max,
            reserved_bytes=listed.reserved_bytes,
        )
    )


async def _devices(call: Call[NoParameters, PageQuery, None]) -> Reply:
    listed = await call.services.accounts.devices(call.principal.user_pk)
    numbered = list(enumerate(listed))  # none ever leaves the list
    page, next_cursor = cut_page(numbered, call.query, key=lambda item: number_key(item[0]))
    return Reply(DevicePage(devices=[_device(device) for _, device in page], next_cursor=next_cursor))


async def _one_device(call: Call[DevicePath, NoParameters, None]) -> Reply:
    device_id = uuid.UUID(call.path.device_id).bytes
    for listed in await call.services.accounts.devices(call.principal.user_pk):
        if listed.entry.device_id == device_id:
            return Reply(_device(listed))
    raise ProtocolError("not_found")


EXAMPLE_KEY: Final = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
EXAMPLE_DEVICE_ID: Final = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXAMPLE_POSITION: Final = {"seq": 17, "chain": EXAMPLE_KEY}
_EXAMPLE_DEVICE: Final = {
    "device_id": EXAMPLE_DEVICE_ID,
    "device_key": EXAMPLE_KEY,
    "box_key": EXAMPLE_KEY,
    "capabilities": ["publish", "subscribe"],
    "issued_at_ms": 1_767_225_600_000,
    "expires_at_ms": None,
    "sealed_label": "q6urq6urq6s",
    "manage_from_ms": 0,
    "revoked_at_ms": None,
    "revoked_seq": None,
    "last_seen_ms": 1_767_312_000_000,
}

ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/account",
        access=Access.DEVICE,
        summary="The account of the calling device",
        handler=_account,
        answers={200: Account},
        errors=("not_found",),
        etag=True,
        example=Example(
            answer={
                "user_id": EXAMPLE_KEY,
                "device_id": EXAMPLE_DEVICE_ID,
                "capabilities": ["publish", "subscribe", "manage"],
                "devices": 2,
                "devices_head": EXAMPLE_POSITION,
                "stored_bytes": 1048576,
                "bytes_max": 1073741824,
                "reserved_bytes": 8192,
            }
        ),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/devices",
        access=Access.DEVICE,
        summary="The account's devices",
        description=(
            "As the server has reduced them from `$devices`; read that stream to check it, all but `last_seen_ms`. "
            "Devices are enrolled and "
            "revoked by signed events (`POST /api/v1/events`)."
        ),
        handler=_devices,
        answers={200: DevicePage},
        query_type=PageQuery,
        etag=True,
        example=Example(query={"limit": 10}, answer={"devices": [_EXAMPLE_DEVICE], "next_cursor": None}),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/devices/{device_id}",
        access=Access.DEVICE,
        summary="One device of the account",
        handler=_one_device,
        answers={200: Device},
        path_type=DevicePath,
        errors=("not_found",),
        etag=True,
        example=Example(path={"device_id": EXAMPLE_DEVICE_ID}, answer=_EXAMPLE_DEVICE),
    ),
)
