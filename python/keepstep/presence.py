"""Who of a user is here, and short messages between those who are; nothing of it is kept (protocol.md section 4).

The bytes are sealed under the user's content key: this server hands them on and cannot read them. Presence pulls like
everything else in a session: a change marks the device for the user's other sessions, and each writes its latest
state when its turn comes. So a slow device costs one mark for each device, never a queue.

It knows the sessions of this process. Where a user's devices are connected to different nodes, each sees those of its
own node.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.protocol.messages import PresenceFrom, SignalFrom, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.interfaces import Clock
    from keepstep.model import DevicePk, Principal
    from keepstep.protocol.messages import PresenceState

PRESENCE_INTERVAL_S: Final = 1.0
"""A device's state is told to the others once in so long, the last one that was set."""
PRESENCES_PER_MESSAGE_MAX: Final = 64
"""States in one message, at most 260 KiB; the others follow in the next."""
SIGNALS_BURST: Final = 64
"""Signals that one session may send at once."""
SIGNALS_PER_S: Final = 16.0
"""Signals that one session may send in the long run: a gesture followed by hand, and no more than 256 KiB a second."""


@dataclass(frozen=True, slots=True)
class PresentDevice:
    """A device that has told its state and is connected.

    Attributes:
        device_id: 16 bytes.
        sealed: its state, as sealed for the user's other devices.
        at_ms: when it told, unix milliseconds.
    """

    device_id: bytes
    sealed: bytes
    at_ms: int


@dataclass(eq=False, slots=True)
class _Place:
    """A device of a user who has a session.

    ``told_at_s``: when the others were last told; ``due``: whether they will be told anew.
    """

    device_id: bytes
    at_ms: int
    sealed: bytes | None = None
    session: LiveSession | None = None
    told_at_s: float = -math.inf
    due: bool = False


@dataclass(eq=False, slots=True)
class _User:
    """The devices and sessions of one user."""

    places: dict[DevicePk, _Place] = field(default_factory=dict)
    sessions: set[LiveSession] = field(default_factory=set)


class Presences:
    """Every session of this process, by user: by the key, for row numbers are others' when the log becomes another one.

    Args:
        clock: the one ``received_at`` follows.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._users: dict[bytes, _User] = {}
        self._due: list[tuple[float, int, bytes, DevicePk]] = []
        self._turns = itertools.count()
        self._news = trio.Event()

    @property
    def users(self) -> int:
        """Users with a session."""
        return len(self._users)

    def join(self, principal: Principal, *, wake: Callable[[], None], offer: Callable[[bytes], bool]) -> LiveSession:
        """A session begins; an earlier one of the device has no part in it any more.

        Args:
            principal: whose.
            wake: called when there is something to ``pull``.
            offer: sends the session a message unless too much waits for it already; whether it was taken.
        """
        user = self._users.setdefault(principal.user_key, _User())
        place = user.places.get(principal.device_pk)
        if place is None:
            place = user.places[principal.device_pk] = _Place(principal.device_id, self._clock.now_ms())
        session = LiveSession(self, principal, wake, offer)
        place.session = session
        self._set(principal, place, None)
        user.sessions.add(session)
        for device_pk, other in user.places.items():
            if other.sealed is not None:
                session.mark(device_pk)
        return session

    def leave(self, session: LiveSession) -> None:
        """The session is over: its device is away, unless it has connected again."""
        session.close()
        principal = session.principal
        user = self._users[principal.user_key]
        user.sessions.remove(session)
        if not user.sessions:
            del self._users[principal.user_key]
            return
        place = user.places[principal.device_pk]
        if place.session is session:
            place.session = None
            self._set(principal, place, None)

    def present(self, user_key: bytes) -> list[PresentDevice]:
        """The devices of a user that have told their state and are connected, to this process."""
        user = self._users.get(user_key)
        places = [] if user is None else user.places.values()
        return [
            PresentDevice(place.device_id, place.sealed, place.at_ms) for place in places if place.sealed is not None
        ]

    def announce(self, session: LiveSession, sealed: bytes) -> None:
        """A device tells its state; nobody is told of one that has connected again meanwhile."""
        place = self._users[session.principal.user_key].places[session.principal.device_pk]
        if place.session is session:
            self._set(session.principal, place, sealed)

    def session_of(self, user_key: bytes, device_id: bytes) -> LiveSession | None:
        """The session of a device of that user, where it is connected and reads."""
        user = self._users.get(user_key)
        for place in () if user is None else user.places.values():
            if place.device_id == device_id:
                return place.session
        return None

    def pull(self, session: LiveSession) -> list[bytes]:
        """The states that changed for a session, encoded; at most one message."""
        places = self._users[session.principal.user_key].places
        told: list[PresenceState] = []
        while session.marked and len(told) < PRESENCES_PER_MESSAGE_MAX:
            device_pk, _ = session.marked.popitem()
            place = places[device_pk]
            told.append((place.device_id, place.sealed, place.at_ms))
        return [encode(PresenceFrom(told))] if told else []

    def _set(self, principal: Principal, place: _Place, sealed: bytes | None) -> None:
        """A device has another state: tell the others, at once or when its interval is over."""
        if sealed is None and place.sealed is None:
            return
        place.sealed = sealed
        place.at_ms = self._clock.now_ms()
        if place.due:
            return
        due_s = place.told_at_s + PRESENCE_INTERVAL_S
        if due_s <= trio.current_time():
            self._tell(principal.user_key, principal.device_pk, place)
        else:
            place.due = True
            heapq.heappush(self._due, (due_s, next(self._turns), principal.user_key, principal.device_pk))
            self._news.set()

    def _tell(self, user_key: bytes, device_pk: DevicePk, place: _Place) -> None:
        place.told_at_s = trio.current_time()
        # protocol.md section 0.7: only this user's sessions can ever hear of it
        for session in self._users[user_key].sessions:
            session.mark(device_pk)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell what is due, until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            now_s = trio.current_time()
            while self._due and self._due[0][0] <= now_s:
                _, _, user_key, device_pk = heapq.heappop(self._due)
                user = self._users.get(user_key)
                place = None if user is None else user.places.get(device_pk)
                if place is not None and place.due:  # else the user has left meanwhile
                    place.due = False
                    self._tell(user_key, device_pk, place)
            with trio.move_on_at(self._due[0][0] if self._due else math.inf):
                await self._news.wait()


def _refuse(_message: bytes) -> bool:
    return False


class LiveSession:
    """One session's part: what it tells, what it is to be told, and the signals it sends. Live; made by ``join``.

    Attributes:
        principal: whose.
        marked: devices whose state it has not been told.
    """

    __slots__ = ("_presences", "_signalled_at_s", "_signals", "_wake", "marked", "offer", "principal")

    def __init__(
        self, presences: Presences, principal: Principal, wake: Callable[[], object], offer: Callable[[bytes], bool]
    ) -> None:
        self.principal = principal
        self.marked: dict[DevicePk, None] = {}
        self.offer = offer
        self._presences = presences
        self._wake = wake
        self._signals = float(SIGNALS_BURST)
        self._signalled_at_s = trio.current_time()

    @property
    def reads(self) -> bool:
        """Whether its device may be told anything of the others."""
        return Capability.SUBSCRIBE in self.principal.capabilities

    def close(self) -> None:
        """Wake nobody and offer nothing any more: who does holds this, and would wait for the garbage collector."""
        self._wake, self.offer = bool, _refuse

    def mark(self, device_pk: DevicePk) -> None:
        """A device has another state."""
        if self.reads and device_pk != self.principal.device_pk:
            self.marked[device_pk] = None
            self._wake()

    def pull(self) -> list[bytes]:
        """The next message about other devices, encoded; empty where there is nothing to tell."""
        return self._presences.pull(self) if self.marked else []

    def announce(self, sealed: bytes) -> None:
        """Tell the user's other devices a state. Raises ProtocolError: ``forbidden``."""
        self._check_writes()
        self._presences.announce(self, sealed)

    def signal(self, to: bytes, sealed: bytes) -> None:
        """Hand a signal to another device of the user.

        Raises:
            ProtocolError: ``forbidden``; ``rate_limited``: too many from this session; ``device_away``: no such device
                of this user is connected, or it takes nothing at the moment.
        """
        self._check_writes()
        self._count_signal()
        session = self._presences.session_of(self.principal.user_key, to)
        message = SignalFrom(self.principal.device_id, sealed)
        if session is None or not session.reads or not session.offer(encode(message)):
            raise ProtocolError("device_away")

    def _check_writes(self) -> None:
        if Capability.PUBLISH not in self.principal.capabilities:
            raise ProtocolError("forbidden")

    def _count_signal(self) -> None:
        now_s = trio.current_time()
        self._signals = min(float(SIGNALS_BURST), self._signals + (now_s - self._signalled_at_s) * SIGNALS_PER_S)
        self._signalled_at_s = now_s
        if self._signals < 1:
            raise ProtocolError("rate_limited", retry_after_ms=math.ceil((1 - self._signals) / SIGNALS_PER_S * 1000))
        self._signals -= 1
