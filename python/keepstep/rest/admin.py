"""Administration of users: who is here, what they have and may have, and letting them in or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from keepstep.administration import RETENTION_DAYS_MAX, Quota
from keepstep.errors import ProtocolError
from keepstep.rest.account import (
    EXAMPLE_DEVICE_ID,
    EXAMPLE_KEY,
    EXAMPLE_POSITION,
    CapabilityName,
    StreamPosition,
    capability_names,
    format_device_id,
    position,
)
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply, RequestBody
from keepstep.rest.fields import DeviceId, Milliseconds, Seq, StreamName, UserId
from keepstep.rest.paging import PageQuery, after_key, cut_page, first_page, key_number, number_key
from keepstep.rest.streams import POLICY_NAMES, RETENTION_NAMES, PolicyName, RetentionName

if TYPE_CHECKING:
    from keepstep.administration import ListedUser
    from keepstep.interfaces import ListedDevice

TAG: Final = "admin"
StreamsQuota = Annotated[int, Meta(ge=2, le=1_000_000, description="Streams, `$devices` and `$keys` among them")]
DevicesQuota = Annotated[int, Meta(ge=1, le=1_024, description="Live devices")]
BytesQuota = Annotated[
    int, Meta(ge=0, le=2**53 - 1, description="Headers, signatures and payloads outside `$devices` and `$keys`")
]

RetentionDays = Annotated[
    int,
    Meta(ge=1, le=RETENTION_DAYS_MAX, description="Days for which events stay, where that is shorter than in general"),
]


class UserQuota(AnswerBody, frozen=True, kw_only=True):
    """What an account may have of its own; null: the server's own limit counts."""

    streams_max: StreamsQuota | None
    devices_max: DevicesQuota | None
    bytes_max: BytesQuota | None
    retention_days: RetentionDays | None


class User(AnswerBody, frozen=True, kw_only=True):
    """An account. `disabled_at_ms`: since when nothing of it is let in; null: it is. `devices`: live ones.

    `stored_bytes`: what its quota counts; `reserved_bytes`: what `$devices` and `$keys` take beside it.
    """

    user_id: UserId
    created_at_ms: Milliseconds
    disabled_at_ms: Milliseconds | None
    devices: int
    streams: int
    stored_bytes: Seq
    reserved_bytes: Seq
    quota: UserQuota


class UserPage(AnswerBody, frozen=True, kw_only=True):
    """Accounts in the order in which they were made."""

    users: list[User]
    next_cursor: str | None


class UserPath(RequestBody, frozen=True, kw_only=True):
    """Which account."""

    user_id: UserId


class UserChange(RequestBody, frozen=True, kw_only=True):
    """What becomes of an account: whether it is disabled."""

    disabled: bool


class QuotaChange(RequestBody, frozen=True, kw_only=True):
    """What an account may have from now on; null: the server's own limit."""

    streams_max: StreamsQuota | None
    devices_max: DevicesQuota | None
    bytes_max: BytesQuota | None = None
    retention_days: RetentionDays | None = None


class AdminDevice(AnswerBody, frozen=True, kw_only=True):
    """A device as its operator sees it; its name is sealed. `revoked_at_ms` is null while it is live.

    `last_seen_ms`: when it was last connected, to some ten minutes, or got tokens; null: never.
    """

    device_id: DeviceId
    capabilities: list[CapabilityName]
    issued_at_ms: Milliseconds
    expires_at_ms: Milliseconds | None
    revoked_at_ms: Milliseconds | None
    last_seen_ms: Milliseconds | None


class AdminDevicePage(AnswerBody, frozen=True, kw_only=True):
    """Devices of one account in the order in which they were enrolled."""

    devices: list[AdminDevice]
    next_cursor: str | None


class AdminStream(AnswerBody, frozen=True, kw_only=True):
    """A stream as its operator sees it. `stored_bytes`: headers, signatures and payloads that are there now."""

    stream: StreamName
    policy: PolicyName
    retention_class: RetentionName
    ttl_max_s: int | None
    head: StreamPosition
    stored_bytes: Seq
    stream_bytes_max: Seq | None


class AdminStreamPage(AnswerBody, frozen=True, kw_only=True):
    """Streams of one account."""

    streams: list[AdminStream]
    next_cursor: str | None


def _quota(quota: Quota) -> UserQuota:
    return UserQuota(
        streams_max=quota.streams_max,
        devices_max=quota.devices_max,
        bytes_max=quota.bytes_max,
        retention_days=quota.retention_days,
    )


def _user(listed: ListedUser) -> User:
    return User(
        user_id=listed.user_key.hex(),
        created_at_ms=listed.created_at_ms,
        disabled_at_ms=listed.disabled_at_ms,
        devices=listed.devices,
        streams=listed.streams,
        stored_bytes=listed.stored_bytes,
        reserved_bytes=listed.reserved_bytes,
        quota=_quota(listed.quota),
    )


async def find_user(call: Call[UserPath, Any, Any]) -> ListedUser:
    """The account that the path names. Raises ``not_found``."""
    user = await call.services.administration.user(bytes.fromhex(call.path.user_id))
    if user is None:
        raise ProtocolError("not_found")
    return user


async def _users(call: Call[NoParameters, PageQuery, None]) -> Reply:
    query = call.query
    users = await call.services.administration.users(after=key_number(after_key(query)), limit=query.limit + 1)
    page, next_cursor = first_page(users, query, key=lambda user: number_key(user.user_pk))
    return Reply(UserPage(users=[_user(user) for user in page], next_cursor=next_cursor))


async def _one_user(call: Call[UserPath, NoParameters, None]) -> Reply:
    return Reply(_user(await find_user(call)))


async def _change_user(call: Call[UserPath, NoParameters, UserChange]) -> Reply:
    user = await find_user(call)
    services = call.services
    await services.administration.set_disabled(
        user.user_pk, disabled=call.body.disabled, now_ms=services.clock.now_ms()
    )
    if call.body.disabled:
        services.cuts.look_now()
    return Reply(_user(await find_user(call)))


async def _set_quota(call: Call[UserPath, NoParameters, QuotaChange]) -> Reply:
    user = await find_user(call)
    wanted = call.body
    quota = Quota(wanted.streams_max, wanted.devices_max, wanted.bytes_max, wanted.retention_days)
    await call.services.administration.set_quota(user.user_pk, quota)
    return Reply(_quota(quota))


def _device(listed: ListedDevice) -> AdminDevice:
    return AdminDevice(
        device_id=format_device_id(listed.entry.device_id),
        capabilities=capability_names(listed.entry.capabilities),
        issued_at_ms=listed.entry.issued_at_ms,
        expires_at_ms=listed.entry.expires_at_ms,
        revoked_at_ms=None if listed.revoked is None else listed.revoked[0],
        last_seen_ms=listed.last_seen_ms,
    )


async def _devices(call: Call[UserPath, PageQuery, None]) -> Reply:
    user = await find_user(call)
    listed = await call.services.accounts.devices(user.user_pk)
    page, next_cursor = cut_page(listed, call.query, key=lambda device: number_key(device.device_pk))
    return Reply(AdminDevicePage(devices=[_device(device) for device in page], next_cursor=next_cursor))


async def _streams(call: Call[UserPath, PageQuery, None]) -> Reply:
    user, services = await find_user(call), call.services
    infos = sorted(await services.log.streams(user.user_pk), key=lambda info: info.stream_pk)
    page, next_cursor = cut_page(infos, call.query, key=lambda info: number_key(info.stream_pk))
    streams = [
        AdminStream(
            stream=info.name,
            policy=POLICY_NAMES[info.policy],
            retention_class=RETENTION_NAMES[info.retention_class],
            ttl_max_s=info.ttl_max_s,
            head=position(info.head),
            stored_bytes=info.stored_bytes,
            stream_bytes_max=info.bytes_max,
        )
        for info in page
    ]
    return Reply(AdminStreamPage(streams=streams, next_cursor=next_cursor))


_EXAMPLE_QUOTA: Final = {"streams_max": 100, "devices_max": None, "bytes_max": 1073741824, "retention_days": None}
EXAMPLE_USER: Final = {
    "user_id": EXAMPLE_KEY,
    "created_at_ms": 1_767_225_600_000,
    "disabled_at_ms": None,
    "devices": 2,
    "streams": 7,
    "stored_bytes": 1048576,
    "reserved_bytes": 8192,
    "quota": _EXAMPLE_QUOTA,
}
_EXAMPLE_PATH: Final = {"user_id": EXAMPLE_KEY}

ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/admin/users",
        access=Access.ADMIN,
        summary="The accounts of this server",
        handler=_users,
        answers={200: UserPage},
        query_type=PageQuery,
        tag=TAG,
        example=Example(query={"limit": 10}, answer={"users": [EXAMPLE_USER], "next_cursor": None}),
    ),
    Endpoint(
        method="GET",
        path="/admin/users/{user_id}",
        access=Access.ADMIN,
        summary="One account",
        handler=_one_user,
        answers={200: User},
        path_type=UserPath,
        tag=TAG,
        example=Example(path=_EXAMPLE_PATH, answer=EXAMPLE_USER),
    ),
    Endpoint(
        method="PATCH",
        path="/admin/users/{user_id}",
        access=Access.ADMIN,
        summary="Disable an account, or let it in again",
        description=(
            "Of a disabled account nothing is let in on any node: new events are refused from this answer on, its "
            "sessions end within a second, its access tokens are refused within half a second. What it has stays."
        ),
        handler=_change_user,
        answers={200: User},
        path_type=UserPath,
        body_type=UserChange,
        tag=TAG,
        example=Example(
            path=_EXAMPLE_PATH, body={"disabled": True}, answer=EXAMPLE_USER | {"disabled_at_ms": 1_767_312_000_000}
        ),
    ),
    Endpoint(
        method="PUT",
        path="/admin/users/{user_id}/quota",
        access=Access.ADMIN,
        summary="Say what an account may have",
        description=(
            "What is above a new quota stays; the next stream or device above it is refused with `quota_exceeded`. "
            "The server's own limits count beside it."
        ),
        handler=_set_quota,
        answers={200: UserQuota},
        path_type=UserPath,
        body_type=QuotaChange,
        tag=TAG,
        example=Example(path=_EXAMPLE_PATH, body=_EXAMPLE_QUOTA, answer=_EXAMPLE_QUOTA),
    ),
    Endpoint(
        method="GET",
        path="/admin/users/{user_id}/devices",
        access=Access.ADMIN,
        summary="The devices of an account",
        handler=_devices,
        answers={200: AdminDevicePage},
        path_type=UserPath,
        query_type=PageQuery,
        tag=TAG,
        example=Example(
            path=_EXAMPLE_PATH,
            query={"limit": 10},
            answer={
                "devices": [
                    {
                        "device_id": EXAMPLE_DEVICE_ID,
                        "capabilities": ["publish", "subscribe"],
                        "issued_at_ms": 1_767_225_600_000,
                        "expires_at_ms": None,
                        "revoked_at_ms": None,
                        "last_seen_ms": 1_767_312_000_000,
                    }
                ],
                "next_cursor": None,
            },
        ),
    ),
    Endpoint(
        method="GET",
        path="/admin/users/{user_id}/streams",
        access=Access.ADMIN,
        summary="The streams of an account, and how large they are",
        description="What is stored is counted as it comes and goes, not when somebody asks.",
        handler=_streams,
        answers={200: AdminStreamPage},
        path_type=UserPath,
        query_type=PageQuery,
        concurrency_max=2,
        tag=TAG,
        example=Example(
            path=_EXAMPLE_PATH,
            query={"limit": 10},
            answer={
                "streams": [
                    {
                        "stream": "notes/kitchen",
                        "policy": "append",
                        "retention_class": "standard",
                        "ttl_max_s": None,
                        "head": EXAMPLE_POSITION,
                        "stored_bytes": 18_204,
                        "stream_bytes_max": 1_048_576,
                    }
                ],
                "next_cursor": None,
            },
        ),
    ),
)
