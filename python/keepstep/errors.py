"""Every error keepstep can answer, in one table: code, meaning, retry rule, close code, HTTP status.

The table is the single source for the wire (protocol.md section 4 "Errors and closing"), for REST and for
``docs/reference/errors.md``. A peer only ever sees a code and its fixed text, never internals.

Close codes 4000-4499 tell a device to reconnect (after ``retry_after_ms`` where given), 4500-4999 tell it
not to by itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal


class Retry(enum.Enum):
    """What a peer does after an error."""

    NEVER = "never"
    """The same bytes will never be accepted."""
    LATER = "later"
    """The same bytes may be accepted after ``retry_after_ms``."""
    RECOVER = "recover"
    """Accepted once the peer has done what the error's details name (for example resend from last_n + 1)."""


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row of the error table.

    Attributes:
        code: the stable name on the wire, at most 32 ASCII characters.
        meaning: the fixed text a peer is given.
        retry: what the peer does next.
        close_code: the WebSocket close code when the error ends a connection.
        http_status: the status when REST answers it.
    """

    code: str
    meaning: str
    retry: Retry
    close_code: int
    http_status: int


_ROWS: Final = (
    # -- the peer's bytes are at fault: the same bytes are never accepted
    ErrorCode("malformed", "the message does not have the documented form", Retry.NEVER, 4500, 400),
    ErrorCode("too_large", "the message or event is above a documented size limit", Retry.NEVER, 4501, 413),
    ErrorCode("bad_signature", "a signature does not verify", Retry.NEVER, 4502, 422),
    ErrorCode("auth_failed", "the device could not be authenticated", Retry.NEVER, 4503, 401),
    ErrorCode("forbidden", "the device may not do this", Retry.NEVER, 4504, 403),
    ErrorCode(
        "unsupported", "this server does not support that version, suite, kind or message", Retry.NEVER, 4505, 501
    ),
    ErrorCode("unexpected", "that message is not allowed in this state", Retry.NEVER, 4506, 409),
    ErrorCode("id_reused", "another event is stored under this author number", Retry.NEVER, 4508, 409),
    ErrorCode("conflict", "the stream's head is not the base the event names", Retry.NEVER, 4509, 409),
    ErrorCode("unprocessable", "the event could not be stored as it is", Retry.NEVER, 4510, 422),
    ErrorCode("unknown_stream", "there is no such stream", Retry.NEVER, 4511, 404),
    ErrorCode("revoked", "this device has been revoked", Retry.NEVER, 4512, 401),
    ErrorCode("replaced", "the same device connected again; do not reconnect by yourself", Retry.NEVER, 4513, 409),
    ErrorCode("cloned", "this device connects from more than one place", Retry.NEVER, 4514, 409),
    ErrorCode("registration_closed", "this server does not register new accounts", Retry.NEVER, 4515, 403),
    ErrorCode(
        "invalid_token", "the access token is missing, expired, revoked or not of this server", Retry.NEVER, 4516, 401
    ),
    ErrorCode("not_found", "there is no such thing here", Retry.NEVER, 4517, 404),
    ErrorCode(
        "user_id_header",
        "X-User-ID proves nothing and is refused; send the device's access token as Authorization: Bearer",
        Retry.NEVER,
        4518,
        400,
    ),
    ErrorCode(
        "unsupported_version", "this server does not speak that version of the interface", Retry.NEVER, 4519, 400
    ),
    ErrorCode("key_reused", "the Idempotency-Key was used for another request; take a new key", Retry.NEVER, 4522, 422),
    ErrorCode("invite_invalid", "the invite is missing, unknown, expired or used", Retry.NEVER, 4520, 403),
    ErrorCode("account_disabled", "this account has been closed or disabled here", Retry.NEVER, 4523, 403),
    ErrorCode("account_deleted", "this account has been deleted; it does not begin again", Retry.NEVER, 4524, 410),
    ErrorCode("link_taken", "another device has taken this link; show a new invitation", Retry.NEVER, 4525, 409),
    ErrorCode("quota_exceeded", "a quota of the account is used up", Retry.NEVER, 4521, 403),
    # -- the peer can mend it
    ErrorCode("out_of_order", "the author number does not follow the author's last one", Retry.RECOVER, 4000, 409),
    ErrorCode("unknown_position", "the log does not hold that position", Retry.RECOVER, 4001, 409),
    ErrorCode("pruned", "the events asked for are gone; the stream begins later", Retry.RECOVER, 4003, 410),
    # One damaged record must not keep a device away for good: whoever can touch the wire can damage one.
    ErrorCode("bad_record", "a record did not open: lost, replayed, reordered or forged", Retry.RECOVER, 4002, 400),
    # -- the server's state: the same bytes may be accepted later
    ErrorCode("unavailable", "the server cannot do this right now", Retry.LATER, 4100, 503),
    ErrorCode("rate_limited", "too many requests", Retry.LATER, 4101, 429),
    ErrorCode("too_many_connections", "the server or this address has too many connections", Retry.LATER, 4102, 503),
    ErrorCode("timeout", "the peer did not act within the documented time", Retry.LATER, 4103, 408),
    ErrorCode("draining", "the server is going down; reconnect after the given time", Retry.LATER, 4104, 503),
    ErrorCode("device_away", "that device is not connected now, or takes nothing", Retry.LATER, 4108, 409),
    ErrorCode("limit_exceeded", "a documented limit of the account or session is reached", Retry.LATER, 4105, 429),
    ErrorCode("session_cut", "the server's operator ended this session", Retry.LATER, 4107, 503),
    ErrorCode("internal", "the server met an error of its own", Retry.LATER, 4106, 500),
)

ERRORS: Final[dict[str, ErrorCode]] = {row.code: row for row in _ROWS}


def reference() -> str:
    """``docs/reference/errors.md``: the whole table, from this file."""
    lines = [
        "# Errors",
        "",
        "Every error a peer can be given: in a result, in an `error` message, as a WebSocket close code, or as the",
        "HTTP status of a problem document. To the peer goes the code and its fixed text, nothing else.",
        "",
        "- `never`: the same bytes will never be accepted.",
        "- `recover`: accepted once the peer has done what the error's details name.",
        "- `later`: may be accepted after the time given.",
        "",
        "Close codes 4000-4499 ask a device to reconnect, 4500-4999 tell it not to by itself.",
        "",
        "| code | meaning | retry | close code | HTTP |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.code}` | {row.meaning} | {row.retry.value} | {row.close_code} | {row.http_status} |" for row in _ROWS
    ]
    return "\n".join(lines) + "\n"


class KeepstepError(Exception):
    """Base of every error keepstep raises on purpose."""


class ProtocolError(KeepstepError):
    """The peer sent something the protocol does not allow, or the server refuses it (remote's fault).

    Attributes:
        code: a key of ``ERRORS``.
        detail: a fixed, internals-free sentence for logs and the local user; never sent to the peer.
        retry_after_ms: when to try again, for ``Retry.LATER`` codes; ``None`` where unknown.
    """

    def __init__(self, code: str, detail: str = "", *, retry_after_ms: int | None = None) -> None:
        assert code in ERRORS, code
        super().__init__(f"{code}: {detail or ERRORS[code].meaning}")
        self.code = code
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    @property
    def row(self) -> ErrorCode:
        """The row of the error table this error carries."""
        return ERRORS[self.code]


class Pruned(ProtocolError):
    """The events asked for are gone with their stream's beginning (protocol.md section 3, Pruning).

    Attributes:
        after: the position that was asked for.
        to_seq: what is left begins after it.
    """

    def __init__(self, after: int, to_seq: int) -> None:
        super().__init__("pruned", f"the stream begins after {to_seq}")
        self.after = after
        self.to_seq = to_seq


class DeviceRevoked(ProtocolError):
    """The server shows a device the event of ``$devices`` that ended it, in place of a session.

    Attributes:
        event: the row of that event (``messages.EventRow``); not verified.
    """

    def __init__(self, event: tuple[int, bytes, int, bytes, bytes, bytes | None, bytes | None]) -> None:
        super().__init__("revoked", "the server shows the end of this device")
        self.event = event


class Unavailable(ProtocolError):
    """A part the server depends on is away; nothing was stored that was not answered as stored."""

    def __init__(self, detail: str = "", *, retry_after_ms: int | None = 1_000) -> None:
        super().__init__("unavailable", detail, retry_after_ms=retry_after_ms)


class ArchiveUnavailable(Unavailable):
    """Events that are asked for are in the archive alone, which does not answer or whose answer does not verify."""


class ArchiveError(KeepstepError):
    """What is in the archive is not what was written there, or cannot be used; the message says why.

    Attributes:
        code: what it is, as ``keepstep archive verify`` names it.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ConfigError(KeepstepError):
    """The configuration cannot be used; the message lists every problem (exit code 78)."""


class StartupError(KeepstepError):
    """The server cannot start as asked; the message says what to do in plain words (exit code 1)."""


class BackupError(KeepstepError):
    """A backup cannot be made, read, verified or restored; the message says why, and what to do, in plain words."""


class DamagedBackupError(BackupError):
    """A backup is not what it was when it was made: other bytes, or a database that does not start or verify."""


class BackupBusyError(BackupError):
    """The same is being done already, by another process or another node."""


class ClientError(KeepstepError):
    """The device library cannot do what it was asked to; the message says why, and what to do, in plain words."""


class EventsPruned(ClientError):
    """Events that an application has not read are gone on the server; what it reads next comes after them.

    It is told once; a subscription that is read on goes on after them. Where a confirmed snapshot stands for them, a
    subscription from ``"snapshot"`` has their state.

    Attributes:
        stream: in which they were.
        first_seq: of what is gone.
        last_seq: likewise.
    """

    def __init__(self, stream: str, first_seq: int, last_seq: int) -> None:
        super().__init__(f"{stream}: the events from {first_seq} to {last_seq} are gone on the server")
        self.stream = stream
        self.first_seq = first_seq
        self.last_seq = last_seq


class EventsRewound(ClientError):
    """A restore of the server took events away that an application was given; what it reads next follows ``seq``.

    It is told once; a subscription that is read on goes on after ``seq``. What the application derived from the events
    in between it has to undo: those that come back come again, in their places or in others.

    Attributes:
        stream: in which they were.
        seq: up to here everything is as it was.
        last_seq: of what was given out.
    """

    def __init__(self, stream: str, seq: int, last_seq: int) -> None:
        super().__init__(f"{stream}: a restore of the server took the events from {seq + 1} to {last_seq} away")
        self.stream = stream
        self.seq = seq
        self.last_seq = last_seq


class SessionNeeded(ClientError):
    """A device that is used over REST met what only a session over WebSocket deals with: open it with it once.

    Nothing of what the device holds or waits to publish is touched.

    Attributes:
        stream: in which it was met.
        reason: ``restored``: a restore of the server set the stream back behind what this device holds; ``pruned``: the
            next events are gone on the server; ``diverged``: the server has other events of this device than its file,
            which was copied or set back, or the server was restored.
    """

    def __init__(self, stream: str, reason: Literal["restored", "pruned", "diverged"]) -> None:
        super().__init__(f"{stream}: {_SESSION_NEEDED[reason]}")
        self.stream = stream
        self.reason = reason


_SESSION_NEEDED: Final = {
    "restored": (
        "the server was restored from a backup that is older than what this device holds; open it with open_device "
        "once and wait until it has caught up: it hands in what was lost"
    ),
    "pruned": (
        "the events after the last one that this device holds are gone on the server; open it with open_device once "
        "and read the stream: it goes on after them"
    ),
    "diverged": (
        "the server has other events of this device in this stream; open it with open_device once, which finds out why "
        "and mends what can be mended"
    ),
}


class StoreError(ClientError):
    """A device's file cannot be used: the disk is full, the file is damaged, or another process holds it."""


class VerificationError(KeepstepError):
    """A device found that the log, a head or an event does not verify: the server or an author lies.

    Attributes:
        stream: the stream in which it was found.
        seq: the position, where known.
        evidence: the heads, with the server's signatures, that prove it to others; empty where nothing proves it.
    """

    def __init__(
        self, reason: str, *, stream: str, seq: int | None = None, evidence: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        where = f"{stream}#{seq}" if seq is not None else stream
        super().__init__(f"{where}: {reason}")
        self.reason = reason
        self.stream = stream
        self.seq = seq
        self.evidence = evidence
