"""Administration of the server: sessions, invites, the audit trail, what it holds, its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.identity import INVITE_BYTES
from keepstep.model import SESSION_ID_BYTES
from keepstep.rest.account import EXAMPLE_DEVICE_ID, EXAMPLE_KEY, format_device_id
from keepstep.rest.admin import TAG
from keepstep.rest.endpoints import (
    Access,
    AnswerBody,
    BadRequest,
    Call,
    Endpoint,
    Example,
    NoParameters,
    Reply,
    RequestBody,
)
from keepstep.rest.fields import Base64url, DeviceId, Hex32, Milliseconds, Seq, UserId
from keepstep.rest.paging import PageQuery, after_key, first_page, key_number, number_key
from keepstep.validation import format_base64url

if TYPE_CHECKING:
    from keepstep.administration import AuditEntry, ListedInvite, ListedSession
    from keepstep.protocol.succession import Succession
    from keepstep.telemetry import Metrics

DAY_S: Final = 24 * 60 * 60
NOTE_CHARACTERS_MAX: Final = 128
INVITE_LIFETIME_S_DEFAULT: Final = 7 * DAY_S
INVITE_LIFETIME_S_MAX: Final = 365 * DAY_S
DAYS_MAX: Final = 3_650
"""Longest time until a key takes over, and longest overlap."""

SessionId = Annotated[
    str,
    Meta(
        min_length=2 * SESSION_ID_BYTES,
        max_length=2 * SESSION_ID_BYTES,
        pattern="^[0-9a-f]{32}$",
        description="A session's id: 16 bytes as lower-case hexadecimal digits",
        examples=["8f14e45fceea167a5a36dedd4bea2543"],
    ),
]


class OpenSession(AnswerBody, frozen=True, kw_only=True):
    """A session that is open as far as the database knows; that of a node which died stays until its device's next."""

    session_id: SessionId
    user_id: UserId
    device_id: DeviceId
    session_no: int
    opened_at_ms: Milliseconds


class SessionPage(AnswerBody, frozen=True, kw_only=True):
    """Open sessions, by id."""

    sessions: list[OpenSession]
    next_cursor: str | None


class SessionQuery(PageQuery, frozen=True, kw_only=True):
    """Which page of the sessions, of one account or of all."""

    user_id: UserId | None = None


class SessionPath(RequestBody, frozen=True, kw_only=True):
    """Which session."""

    session_id: SessionId


class Invite(AnswerBody, frozen=True, kw_only=True):
    """An invite to register, by the BLAKE3 hash of its code. `used_by`: who registered with it; null: nobody yet."""

    invite_id: Hex32
    note: str
    created_at_ms: Milliseconds
    expires_at_ms: Milliseconds
    used_at_ms: Milliseconds | None
    used_by: UserId | None


class NewInvite(AnswerBody, frozen=True, kw_only=True):
    """An invite with its code, which is shown this once: header `Keepstep-Invite` of `POST /api/v1/accounts`."""

    invite_id: Hex32
    code: Base64url
    note: str
    expires_at_ms: Milliseconds


class InviteRequest(RequestBody, frozen=True, kw_only=True):
    """An invite to make: how long it is good for, and a reminder whom it is for."""

    lifetime_s: Annotated[int, Meta(ge=60, le=INVITE_LIFETIME_S_MAX)] = INVITE_LIFETIME_S_DEFAULT
    note: Annotated[str, Meta(max_length=NOTE_CHARACTERS_MAX)] = ""


class InvitePage(AnswerBody, frozen=True, kw_only=True):
    """Invites, by their hash."""

    invites: list[Invite]
    next_cursor: str | None


class InvitePath(RequestBody, frozen=True, kw_only=True):
    """Which invite."""

    invite_id: Hex32


class AuditLine(AnswerBody, frozen=True, kw_only=True):
    """A call of an administrator: `action` is the endpoint's name, `target` its path parameters as JSON."""

    audit_no: int
    at_ms: Milliseconds
    request_id: str
    address: str
    action: str
    target: str
    status: int


class AuditPage(AnswerBody, frozen=True, kw_only=True):
    """Calls of administrators, the newest first."""

    entries: list[AuditLine]
    next_cursor: str | None


class ServerStatistics(AnswerBody, frozen=True, kw_only=True):
    """What the server holds. `events`: ever accepted, of the accounts that are there."""

    users: Seq
    disabled_users: Seq
    devices: Seq
    streams: Seq
    events: Seq
    open_sessions: Seq
    database_bytes: Seq | None


class BackupState(AnswerBody, frozen=True, kw_only=True):
    """The newest backup that this server made, and the newest that it restored and verified; null: none yet."""

    at_ms: Milliseconds
    verified_at_ms: Milliseconds | None


class RetentionState(AnswerBody, frozen=True, kw_only=True):
    """What this server removes, and whether it makes backups.

    `events_days`: how long events are kept unless the account or the stream says shorter; null: for ever. `audit_days`:
    how long calls of administrators are. `backup`: null where this server has made none; back up its database by other
    means then.
    """

    events_days: int | None
    audit_days: int
    backup: BackupState | None


class KeyRotation(RequestBody, frozen=True, kw_only=True):
    """`stolen`: refuse everything signed with the old keys at once; otherwise tokens go on until they run out."""

    stolen: bool = False


class TokenKey(AnswerBody, frozen=True, kw_only=True):
    """The key that signs access tokens now."""

    kid: str


class Successor(AnswerBody, frozen=True, kw_only=True):
    """The next identity key: takes over at the first start from `from_ms` on; devices accept both until `until_ms`."""

    server_key: Hex32
    from_ms: Milliseconds
    until_ms: Milliseconds


class Keys(AnswerBody, frozen=True, kw_only=True):
    """The server's keys. `successor`: null where none is announced. `token_keys`: the one that signs first."""

    server_key: Hex32
    successor: Successor | None
    token_keys: list[str]


class Announcing(RequestBody, frozen=True, kw_only=True):
    """When the next identity key may take over, from now on, and how long devices then accept both, days."""

    from_days: Annotated[int, Meta(ge=0, le=DAYS_MAX)] = 7
    overlap_days: Annotated[int, Meta(ge=1, le=DAYS_MAX)] = 90


def _session(listed: ListedSession) -> OpenSession:
    return OpenSession(
        session_id=listed.session_id.hex(),
        user_id=listed.user_key.hex(),
        device_id=format_device_id(listed.device_id),
        session_no=listed.session_no,
        opened_at_ms=listed.opened_at_ms,
    )


async def _sessions(call: Call[NoParameters, SessionQuery, None]) -> Reply:
    query, administration = call.query, call.services.administration
    user_pk = None
    if query.user_id is not None:
        user = await administration.user(bytes.fromhex(query.user_id))
        if user is None:
            raise ProtocolError("not_found")
        user_pk = user.user_pk
    sessions = await administration.sessions(user_pk=user_pk, after=after_key(query), limit=query.limit + 1)
    page, next_cursor = first_page(sessions, query, key=lambda session: session.session_id)
    return Reply(SessionPage(sessions=[_session(each) for each in page], next_cursor=next_cursor))


async def _cut(call: Call[SessionPath, NoParameters, None]) -> Reply:
    services = call.services
    session_id = bytes.fromhex(call.path.session_id)
    if not await services.administration.cut_session(session_id, now_ms=services.clock.now_ms()):
        raise ProtocolError("not_found")
    services.cuts.look_now()
    return Reply(None, status=204)


def _invite(listed: ListedInvite) -> Invite:
    used_at_ms, user_key = listed.used or (None, None)
    return Invite(
        invite_id=listed.code_hash.hex(),
        note=listed.note,
        created_at_ms=listed.created_at_ms,
        expires_at_ms=listed.expires_at_ms,
        used_at_ms=used_at_ms,
        used_by=None if user_key is None else user_key.hex(),
    )


async def _invites(call: Call[NoParameters, PageQuery, None]) -> Reply:
    query = call.query
    invites = await call.services.administration.invites(after=after_key(query), limit=query.limit + 1)
    page, next_cursor = first_page(invites, query, key=lambda invite: invite.code_hash)
    return Reply(InvitePage(invites=[_invite(each) for each in page], next_cursor=next_cursor))


async def _new_invite(call: Call[NoParameters, NoParameters, InviteRequest]) -> Reply:
    services, body = call.services, call.body
    if not body.note.isprintable():
        raise BadRequest("the body: a note is one line of printable text - at `$.note`")
    code = services.randomness.bytes(INVITE_BYTES)
    code_hash, now_ms = _keepstep.blake3(code), services.clock.now_ms()
    expires_at_ms = now_ms + body.lifetime_s * 1000
    await services.administration.add_invite(code_hash, note=body.note, now_ms=now_ms, expires_at_ms=expires_at_ms)
    invite = NewInvite(
        invite_id=code_hash.hex(), code=format_base64url(code), note=body.note, expires_at_ms=expires_at_ms
    )
    return Reply(invite, status=201)


async def _delete_invite(call: Call[InvitePath, NoParameters, None]) -> Reply:
    if not await call.services.administration.delete_invite(bytes.fromhex(call.path.invite_id)):
        raise ProtocolError("not_found")
    return Reply(None, status=204)


def _line(entry: AuditEntry) -> AuditLine:
    return AuditLine(
        audit_no=entry.audit_no,
        at_ms=entry.at_ms,
        request_id=entry.request_id,
        address=entry.address,
        action=entry.action,
        target=entry.target,
        status=entry.status,
    )


async def _audit(call: Call[NoParameters, PageQuery, None]) -> Reply:
    query = call.query
    before = None if query.cursor is None else key_number(after_key(query))
    entries = await call.services.administration.audit(before=before, limit=query.limit + 1)
    page, next_cursor = first_page(entries, query, key=lambda entry: number_key(entry.audit_no))
    return Reply(AuditPage(entries=[_line(each) for each in page], next_cursor=next_cursor))


async def _statistics(call: Call[NoParameters, NoParameters, None]) -> Reply:
    counted = await call.services.administration.statistics()
    return Reply(
        ServerStatistics(
            users=counted.users,
            disabled_users=counted.disabled_users,
            devices=counted.devices,
            streams=counted.streams,
            events=counted.events,
            open_sessions=counted.open_sessions,
            database_bytes=counted.database_bytes,
        )
    )


async def _retention(call: Call[NoParameters, NoParameters, None]) -> Reply:
    policy = call.services.policy
    at_ms = _counted_at_ms(call.services.metrics, "keepstep_backup_last_timestamp_seconds")
    backup = None
    if at_ms is not None:
        verified_at_ms = _counted_at_ms(call.services.metrics, "keepstep_backup_verified_timestamp_seconds")
        backup = BackupState(at_ms=at_ms, verified_at_ms=verified_at_ms)
    return Reply(
        RetentionState(events_days=policy.retention_days, audit_days=policy.audit_retention_days, backup=backup)
    )


def _counted_at_ms(metrics: Metrics, name: str) -> int | None:
    """The moment that a metric holds; ``None`` where it has not come."""
    return int((metrics.registry.get_sample_value(name) or 0) * 1000) or None


async def _keys(call: Call[NoParameters, NoParameters, None]) -> Reply:
    services = call.services
    successor = await services.server_keys.successor()
    return Reply(
        Keys(
            server_key=services.info.server_key.hex(),
            successor=None if successor is None else _successor(successor),
            token_keys=[key["kid"] for key in services.auth.public_keys()],
        )
    )


def _successor(succession: Succession) -> Successor:
    return Successor(server_key=succession.new_key.hex(), from_ms=succession.from_ms, until_ms=succession.until_ms)


async def _announce(call: Call[NoParameters, NoParameters, Announcing]) -> Reply:
    from_ms = call.services.clock.now_ms() + call.body.from_days * DAY_S * 1000
    until_ms = from_ms + call.body.overlap_days * DAY_S * 1000
    return Reply(_successor(await call.services.server_keys.announce(from_ms=from_ms, until_ms=until_ms)), status=201)


async def _rotate_token_key(call: Call[NoParameters, NoParameters, KeyRotation]) -> Reply:
    return Reply(TokenKey(kid=await call.services.auth.rotate_keys(stolen=call.body.stolen)))


_EXAMPLE_KID: Final = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
_EXAMPLE_SUCCESSOR: Final = {
    "server_key": EXAMPLE_KEY,
    "from_ms": 1_767_830_400_000,
    "until_ms": 1_775_606_400_000,
}
_EXAMPLE_SESSION_ID: Final = "8f14e45fceea167a5a36dedd4bea2543"
_EXAMPLE_INVITE: Final = {
    "invite_id": EXAMPLE_KEY,
    "note": "for Ada",
    "created_at_ms": 1_767_225_600_000,
    "expires_at_ms": 1_767_830_400_000,
    "used_at_ms": None,
    "used_by": None,
}
_SESSIONS: Final = (
    Endpoint(
        method="GET",
        path="/admin/sessions",
        access=Access.ADMIN,
        summary="Open sessions of devices",
        handler=_sessions,
        answers={200: SessionPage},
        query_type=SessionQuery,
        tag=TAG,
        example=Example(
            query={"limit": 10},
            answer={
                "sessions": [
                    {
                        "session_id": _EXAMPLE_SESSION_ID,
                        "user_id": EXAMPLE_KEY,
                        "device_id": EXAMPLE_DEVICE_ID,
                        "session_no": 12,
                        "opened_at_ms": 1_767_225_600_000,
                    }
                ],
                "next_cursor": None,
            },
        ),
    ),
    Endpoint(
        method="DELETE",
        path="/admin/sessions/{session_id}",
        access=Access.ADMIN,
        summary="Cut a session",
        description="Its socket closes within a second, on whichever node it is. The device may connect again.",
        handler=_cut,
        answers={204: None},
        path_type=SessionPath,
        tag=TAG,
        example=Example(path={"session_id": _EXAMPLE_SESSION_ID}),
    ),
)
_INVITES: Final = (
    Endpoint(
        method="GET",
        path="/admin/invites",
        access=Access.ADMIN,
        summary="Invites to register",
        handler=_invites,
        answers={200: InvitePage},
        query_type=PageQuery,
        tag=TAG,
        example=Example(query={"limit": 10}, answer={"invites": [_EXAMPLE_INVITE], "next_cursor": None}),
    ),
    Endpoint(
        method="POST",
        path="/admin/invites",
        access=Access.ADMIN,
        summary="Make an invite",
        description="Good for one account. Its code is shown this once; the server keeps its hash.",
        handler=_new_invite,
        answers={201: NewInvite},
        body_type=InviteRequest,
        idempotent=True,
        tag=TAG,
        example=Example(
            body={"lifetime_s": 604_800, "note": "for Ada"},
            answer={
                "invite_id": EXAMPLE_KEY,
                "code": "AQIDBAUGBwgJCgsMDQ4PEA",
                "note": "for Ada",
                "expires_at_ms": 1_767_830_400_000,
            },
        ),
    ),
    Endpoint(
        method="DELETE",
        path="/admin/invites/{invite_id}",
        access=Access.ADMIN,
        summary="Take an invite back",
        description="Of one that was used the record goes, and nothing else.",
        handler=_delete_invite,
        answers={204: None},
        path_type=InvitePath,
        tag=TAG,
        example=Example(path={"invite_id": EXAMPLE_KEY}),
    ),
)
_SERVER: Final = (
    Endpoint(
        method="GET",
        path="/admin/audit",
        access=Access.ADMIN,
        summary="What administrators did, the newest first",
        handler=_audit,
        answers={200: AuditPage},
        query_type=PageQuery,
        tag=TAG,
        example=Example(
            query={"limit": 10},
            answer={
                "entries": [
                    {
                        "audit_no": 17,
                        "at_ms": 1_767_225_600_000,
                        "request_id": "0f8fad5bd9cb469f",
                        "address": "192.0.2.1",
                        "action": "get_admin_users",
                        "target": "{}",
                        "status": 200,
                    }
                ],
                "next_cursor": None,
            },
        ),
    ),
    Endpoint(
        method="GET",
        path="/admin/statistics",
        access=Access.ADMIN,
        summary="What the server holds",
        description="Counted when asked for; the metrics are for asking often.",
        handler=_statistics,
        answers={200: ServerStatistics},
        concurrency_max=1,
        tag=TAG,
        example=Example(
            answer={
                "users": 12,
                "disabled_users": 1,
                "devices": 31,
                "streams": 204,
                "events": 1_204_331,
                "open_sessions": 17,
                "database_bytes": 8_214_233_088,
            }
        ),
    ),
    Endpoint(
        method="GET",
        path="/admin/retention",
        access=Access.ADMIN,
        summary="What is removed when, and the state of backups",
        handler=_retention,
        answers={200: RetentionState},
        tag=TAG,
        example=Example(answer={"events_days": None, "audit_days": 365, "backup": None}),
    ),
    Endpoint(
        method="GET",
        path="/admin/keys",
        access=Access.ADMIN,
        summary="The server's keys",
        handler=_keys,
        answers={200: Keys},
        tag=TAG,
        example=Example(
            answer={"server_key": EXAMPLE_KEY, "successor": _EXAMPLE_SUCCESSOR, "token_keys": [_EXAMPLE_KID]}
        ),
    ),
    Endpoint(
        method="POST",
        path="/admin/keys/server/announce",
        access=Access.ADMIN,
        summary="Make the server's next identity key and announce it",
        description=(
            "Connected devices are told at once, others when they connect or at `GET /api/v1/server`; at the first "
            "start from `from_ms` on it takes the old one's place."
        ),
        handler=_announce,
        answers={201: Successor},
        body_type=Announcing,
        errors=("unexpected",),
        idempotent=True,
        tag=TAG,
        example=Example(body={"from_days": 7, "overlap_days": 90}, answer=_EXAMPLE_SUCCESSOR),
    ),
    Endpoint(
        method="POST",
        path="/admin/keys/tokens/rotate",
        access=Access.ADMIN,
        summary="Let a new key sign access tokens",
        description="Published at `/.well-known/jwks.json` at once, together with those that still verify.",
        handler=_rotate_token_key,
        answers={200: TokenKey},
        body_type=KeyRotation,
        errors=("limit_exceeded",),
        idempotent=True,
        tag=TAG,
        example=Example(body={"stolen": False}, answer={"kid": _EXAMPLE_KID}),
    ),
)
ENDPOINTS: Final = (*_SESSIONS, *_INVITES, *_SERVER)
