"""Who is woken by which commit: sessions pull, hints wake (protocol.md section 4).

A commit marks the streams it moved for the subscribers of that user only; what each is sent, it reads from the log
after its own position (``subscriber``). Two slow timers make up for hints that never came and have heads signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keepstep.errors import Unavailable
from keepstep.model import DEVICES_STREAM, UserPk
from keepstep.subscriber import Subscriber
from keepstep.subscription import Addition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep._keepstep import Run
    from keepstep.eventlog.store import StreamKey
    from keepstep.interfaces import EventLog, StreamInfo
    from keepstep.model import StreamPk


class Relay:
    """Every subscriber of this process, by user.

    Args:
        log: the log; its commits are the hints.
        head_interval_s: how often a moving stream gets a signed head.
        reread_interval_s: how often the heads of every user with a session are read anew.
    """

    def __init__(self, log: EventLog, *, head_interval_s: float, reread_interval_s: float) -> None:
        self._log = log
        self._head_interval_s = head_interval_s
        self._reread_interval_s = reread_interval_s
        self._by_user: dict[int, dict[Subscriber, Watcher]] = {}
        log.subscribe_commits(self._committed)

    @property
    def users(self) -> int:
        """Users with a session."""
        return len(self._by_user)

    def add(self, subscriber: Subscriber, *, devices_pk: StreamPk, devices_changed: Callable[[int], None]) -> None:
        """Wake a subscriber from now on.

        Args:
            subscriber: a session's.
            devices_pk: ``$devices`` of its user.
            devices_changed: told the new head of ``$devices`` where the session does not follow that itself.
        """
        watchers = self._by_user.setdefault(subscriber.principal.user_pk, {})
        watchers[subscriber] = Watcher(devices_pk, devices_changed)

    def remove(self, subscriber: Subscriber) -> None:
        """Wake it no more; it is closed."""
        subscriber.close()
        watchers = self._by_user[subscriber.principal.user_pk]
        del watchers[subscriber]
        if not watchers:
            del self._by_user[subscriber.principal.user_pk]

    def _committed(self, runs: Sequence[tuple[StreamKey, Run]]) -> None:
        for (user_pk, name), run in runs:
            # protocol.md section 0.7: only this user's sessions can ever hear of it
            watchers = self._by_user.get(user_pk)
            if watchers is None:
                continue
            addition = Addition(name, run)
            for subscriber, watcher in watchers.items():
                subscriber.committed(addition)
                if addition.stream_pk == watcher.devices_pk and not subscriber.follows(DEVICES_STREAM):
                    watcher.devices_changed(addition.last_seq)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The timers, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sign_heads)
            nursery.start_soon(self._reread)
            task_status.started()

    async def _sign_heads(self) -> None:
        """All of them at one moment would have as many sessions ask the database, and hold up everybody's answers."""
        await self._look_at_users(self._head_interval_s, Subscriber.head_tick, where=lambda each: each.needs_heads)

    async def _reread(self) -> None:
        await self._look_at_users(self._reread_interval_s, Subscriber.reread, where=lambda _: True)

    async def _look_at_users(
        self,
        interval_s: float,
        tell: Callable[[Subscriber, Sequence[StreamInfo]], None],
        *,
        where: Callable[[Subscriber], bool],
    ) -> None:
        """Read the streams of one user after the other, spread over the interval: it never crowds out anything."""
        while True:
            users = [UserPk(user_pk) for user_pk in self._by_user]
            pause_s = interval_s / max(1, len(users))
            await trio.sleep(pause_s)
            for user_pk in users:
                if any(map(where, self._by_user.get(user_pk, ()))):
                    await self._look_at_user(user_pk, tell)
                if user_pk in self._by_user:
                    await trio.sleep(pause_s)

    async def _look_at_user(self, user_pk: UserPk, tell: Callable[[Subscriber, Sequence[StreamInfo]], None]) -> None:
        try:
            streams = await self._log.streams(user_pk)
        except Unavailable:
            return  # the next round asks again; readers of the log notice by themselves
        for subscriber in tuple(self._by_user.get(user_pk, ())):
            tell(subscriber, streams)
            await trio.lowlevel.checkpoint()


class Watcher:
    """What a session wants to know of ``$devices`` without following it."""

    __slots__ = ("devices_changed", "devices_pk")

    def __init__(self, devices_pk: StreamPk, devices_changed: Callable[[int], None]) -> None:
        self.devices_pk = devices_pk
        self.devices_changed = devices_changed
