"""What a device has to tell its user about the user's devices (protocol.md section 1).

A notice is no lie that was found (that is an ``Alarm``): it is something that the user should know of, because whoever
has not done it himself has to act on it.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import trio

    from keepstep.client.listing import DeviceInfo
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker


class NoticeKind(enum.Enum):
    """What happened."""

    ENROLLED = "enrolled"
    """A new device reads and writes."""
    MANAGE_PENDING = "manage_pending"
    """A device will be allowed to enrol and revoke others, unless it is revoked until then."""
    REVOKED = "revoked"
    """A device was revoked."""
    REVOKED_WITH = "revoked_with"
    """A device ended because the one that had enrolled it was revoked."""
    ROTATED = "rotated"
    """The recovery file was used; its new device is named."""
    ENDED_BY_RECOVERY = "ended_by_recovery"
    """A device ended because a recovery did not keep it."""
    RETURNED = "returned"
    """A recovery made a device live again."""
    CLONED = "cloned"
    """Two programs use a device's key: its file was copied."""
    NO_CHECKPOINT = "no_checkpoint"
    """No device has compared histories for a week."""
    UNSEEN = "unseen"
    """A device was not connected for ninety days, as the server says; once, until it comes back."""
    RESTORED = "restored"
    """The server was restored from a backup; ``Device.restorations`` says what came of what it had lost."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice.

    Attributes:
        kind: what happened.
        at_ms: when, unix milliseconds, by the server's clock where an event says it.
        device_id: the device it is about, 16 bytes; ``None`` where it is about none.
        until_ms: unix milliseconds, of ``MANAGE_PENDING``: when it takes effect.
        number: in this device's file, ascending; 0 before it is kept.
    """

    kind: NoticeKind
    at_ms: int
    device_id: bytes | None = None
    until_ms: int | None = None
    number: int = 0


_LATEST_MS: Final = 253_402_214_400_000
"""The last day of the year 9999: a calendar ends there, a server's clock need not."""
_WORDS: Final = {
    NoticeKind.ENROLLED: "{name} is a device of yours now. If that was not you: {program} device revoke {name}",
    NoticeKind.MANAGE_PENDING: "{name} may enrol and revoke devices from {until} on, unless it is revoked before",
    NoticeKind.REVOKED: "{name} was revoked",
    NoticeKind.REVOKED_WITH: "{name} ended, because the device that had enrolled it was revoked",
    NoticeKind.ROTATED: "the recovery file was used, and made the device {name}",
    NoticeKind.ENDED_BY_RECOVERY: "{name} ended, because the recovery did not keep it",
    NoticeKind.RETURNED: "{name} is a device of yours again, because the recovery keeps it",
    NoticeKind.CLONED: "{name} connects from more than one place: was its file copied? Then revoke it",
    NoticeKind.UNSEEN: (
        "the server says that {name} has not been connected for ninety days. If it is lost or given away: "
        "{program} device revoke {name}"
    ),
    NoticeKind.RESTORED: (
        "the server was restored from a backup, and went back: what this device held was handed in again. "
        "What came of it: {program} device restorations"
    ),
    NoticeKind.NO_CHECKPOINT: (
        "none of your devices that manage has compared histories for a week: connect one, so that a server that shows "
        "different things to different devices is found out"
    ),
}


def describe_notice(notice: Notice, devices: Sequence[DeviceInfo], program: str) -> str:
    """One line for a person.

    Args:
        notice: what happened.
        devices: names.
        program: how the command line is called.
    """
    names = [each.name for each in devices if each.device_id == notice.device_id]
    name = (names[0] if names else None) or (notice.device_id or b"").hex()
    at, until = (describe_time(at_ms) for at_ms in (notice.at_ms, notice.until_ms or 0))
    return f"{at}  {_WORDS[notice.kind].format(name=name, program=program, until=until)}"


def describe_time(at_ms: int) -> str:
    """A moment for a person, where he is."""
    return f"{_local(at_ms):%Y-%m-%d %H:%M}"


def describe_day(at_ms: int) -> str:
    """A day for a person, where he is."""
    return f"{_local(at_ms):%Y-%m-%d}"


def _local(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(min(at_ms, _LATEST_MS) / 1000).astimezone()


class Notices:
    """Iterate it: ``async for notice in device.notices()``. It ends only with an error or a cancellation.

    Args:
        store: the device's file.
        worker: for calls that block.
        after: the number of the last one that is known.
        changed: gives an event that is set once something changes.
        failure: why there will be no more.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        *,
        after: int,
        changed: Callable[[], trio.Event],
        failure: Callable[[], Exception | None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._after = after
        self._changed = changed
        self._failure = failure
        self._ready: list[Notice] = []

    def __aiter__(self) -> Notices:
        return self

    async def __anext__(self) -> Notice:
        """The next notice; waits for it.

        Raises:
            ClientError, ProtocolError, VerificationError: there is no more, and why.

        A cancellation loses none.
        """
        while not self._ready:
            changed = self._changed()
            self._ready = await self._worker.run(lambda: self._store.notices(after=self._after))
            if self._ready:
                break
            failure = self._failure()
            if failure is not None:
                raise failure
            await changed.wait()
        notice = self._ready.pop(0)
        self._after = notice.number
        return notice
