"""What to do about each answer that is no acceptance: resend, sign anew, wait, or find that this device was copied.

protocol.md section 3, "Author number". A stream in trouble is held back until nothing of it is on its way any more;
only then is it clear what the server has.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from keepstep.client.publication import Receipt
from keepstep.client.rewinds import Restoration
from keepstep.client.sending import UNCHECKED
from keepstep.client.store import Alarm
from keepstep.errors import ERRORS, ProtocolError, Retry, VerificationError
from keepstep.protocol.messages import Subscribe, Unsubscribe

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.client.environment import Environment
    from keepstep.client.outbox import Entry, Outbox
    from keepstep.client.rewinds import Rewinds
    from keepstep.client.sending import Held, Sending, Trouble
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker

HASH_BYTES: Final = 32
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 60.0
"""Waiting after an answer that names no time, doubled each time, seconds."""
DOUBLINGS_MAX: Final = 10
AUTHOR_N_MAX: Final = 2**62
"""Largest author number that a server is believed to hold: no outbox goes from there beyond the protocol's integers."""
FRUITLESS_MAX: Final = 3
"""How often a stream is sent again from its first unacknowledged event without getting further."""


class Mender:
    """Puts streams right for one device.

    Args:
        store: keeps alarms.
        outbox: what is to be sent.
        worker: for calls that block.
        environment: clock and jitter.
        done: called with an entry that has left the outbox, and what became of it.
        rewinds: what restores of the server explain.
        queued: told how many events entered the outbox again.

    Attributes:
        postponed: why the server last asked for something again later, in plain words; empty where it never did.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        worker: Worker,
        environment: Environment,
        done: Callable[[Entry, Receipt | Exception], None],
        rewinds: Rewinds,
        queued: Callable[[int], None],
    ) -> None:
        self.postponed = ""
        self._rewinds = rewinds
        self._queued = queued
        self._store = store
        self._outbox = outbox
        self._worker = worker
        self._environment = environment
        self._done = done

    async def release(self, session: Sending) -> bool:
        """Let go of streams whose time has come, after putting right what was wrong with them.

        Returns:
            whether any was: the outbox has to be read again.

        Raises:
            ProtocolError: ``cloned``, or the server's answers make no sense.
            VerificationError: the server lost what it had acknowledged.
        """
        released = False
        for stream, held in list(session.held.items()):
            if session.per_stream[stream] > 0:
                continue
            if held.trouble is not None:
                trouble, held.trouble = held.trouble, None
                await self._put_right(session, held, trouble)
            if held.author is not None:
                author, held.author = held.author, None
                await self._reconcile(session, stream, *author, floor_n=held.floor_n)
                if stream in session.asking and stream not in session.followed:
                    await session.connection.send(Unsubscribe([stream]))
                session.asking.discard(stream)
            if held.until_s <= trio.current_time():
                del session.held[stream]
                released = True
        return released

    async def _put_right(self, session: Sending, held: Held, trouble: Trouble) -> None:
        """After this the stream goes on at ``held.until_s``, or when its subscription is answered."""
        entry, stream = trouble.entry, trouble.entry.stream
        row = ERRORS.get(trouble.code, ERRORS["internal"])
        if trouble.code == UNCHECKED:
            await self._ask(session, held, stream)
        elif trouble.code == "id_reused":
            seq, hash_ = _position_detail(trouble)
            if await self._stored_instead(stream, entry.n, hash_, seq):
                held.until_s = 0
            else:
                await self._ask(session, held, stream)
        elif trouble.code == "out_of_order":
            last_n, last_hash = _position_detail(trouble)
            if stream not in session.followed and await self._worker.run(lambda: self._asks_for_rewind(stream, last_n)):
                await self._ask(session, held, stream)
                return
            session.fruitless[stream] += 1
            if session.fruitless[stream] > FRUITLESS_MAX:
                raise ProtocolError("out_of_order", "the server refuses the event that it asks for")
            await self._reconcile(session, stream, last_n, last_hash)
            held.until_s = 0
        elif trouble.code == "unknown_position":
            # The server was set back behind what the event says its author had seen: say what it has seen since.
            session.fruitless[stream] += 1
            if session.fruitless[stream] > FRUITLESS_MAX:
                raise ProtocolError("unknown_position", "the server does not know the streams that this device knows")
            await self._worker.run(lambda: self._sign_again(stream))
            held.until_s = trio.current_time() + self._pause_s(session, stream, trouble)
        elif row.retry is Retry.NEVER:
            await self._worker.run(lambda: self._outbox.refuse(entry))
            self._done(entry, ProtocolError(row.code, f"event {entry.n} of {stream} was refused"))
            held.until_s = 0
        else:
            self.postponed = row.meaning
            held.until_s = trio.current_time() + self._pause_s(session, stream, trouble)

    def _asks_for_rewind(self, stream: str, last_n: int) -> bool:
        """Whether the server has less of this device than it acknowledged in an earlier epoch: it has to say why."""
        is_behind = last_n < self._outbox.own(stream).accepted_n
        return is_behind and self._store.own_epoch(stream) < self._store.epoch()

    def _set_back(self, stream: str, last_n: int, last_hash: bytes, *, is_read: bool) -> int | None:
        """Where a restore explains what is missing, go on from what the server has; how many are published again.

        ``None``: no restore explains it. Of a stream that it does not read nobody else counts what was acknowledged to
        it and is missing.
        """
        floor = self._rewinds.floor(stream, since=self._store.own_epoch(stream))
        if floor is None:
            return None
        with self._store.transaction():
            before, again = self._outbox.set_back_within(stream, last_n, last_hash)
            missing = before.accepted_n - last_n
            if missing > 0 and not is_read:
                at_ms, held_seq = self._environment.now_ms(), max(before.receipt.seq, floor)
                lost = max(missing - again, 0)
                self._rewinds.add(Restoration(stream, at_ms, floor, held_seq, 0, again, lost))
        return again

    def _sign_again(self, stream: str) -> None:
        own = self._outbox.own(stream)
        self._outbox.adopt(stream, own.accepted_n, own.accepted_hash)

    def _pause_s(self, session: Sending, stream: str, trouble: Trouble) -> float:
        named_ms = trouble.detail[0] if trouble.detail else None
        if isinstance(named_ms, int):
            return min(named_ms / 1000, RETRY_S_MAX) + self._environment.jitter(RETRY_S)
        doubled = RETRY_S * 2.0 ** min(session.retries[stream], 10)
        session.retries[stream] += 1
        return self._environment.jitter(min(doubled, RETRY_S_MAX))

    async def _ask(self, session: Sending, held: Held, stream: str) -> None:
        """Somebody else has written as this device: learn where the server is, from the answer to a subscription."""
        if stream in session.adopted or stream in session.followed:
            raise ProtocolError("cloned", f"another device writes {stream} with this device's key")
        held.until_resumed = True
        session.asking.add(stream)
        await session.connection.send(Subscribe({stream: "end"}))

    async def _reconcile(
        self, session: Sending, stream: str, last_n: int, last_hash: bytes, *, floor_n: int | None = None
    ) -> None:
        """Make the outbox follow the last event that the server has of this device."""
        if last_n > AUTHOR_N_MAX:
            raise ProtocolError("malformed", "the server leaves this device no author number")
        own, known = await self._worker.run(lambda: (self._outbox.own(stream), self._outbox.hash_of(stream, last_n)))
        floor_n = own.accepted_n if floor_n is None else floor_n
        if last_n < floor_n or (last_n == own.accepted_n and last_hash != own.accepted_hash):
            is_read = stream in session.followed
            again = await self._worker.run(partial(self._set_back, stream, last_n, last_hash, is_read=is_read))
            if again is None:
                raise VerificationError("the server lost events that it had acknowledged", stream=stream)
            self._queued(again)
            return
        if last_n < own.accepted_n:
            return  # what was on its way when the server answered has been acknowledged since
        if known == last_hash:
            await self._worker.run(lambda: self._outbox.confirm(stream))
            return
        if await self._stored_instead(stream, last_n, last_hash, None):
            return
        if stream in session.adopted:
            raise ProtocolError("cloned", f"another device writes {stream} with this device's key")
        session.adopted.add(stream)
        reason = f"this device's store was copied or set back: the server has its events up to {last_n} already"
        await self._worker.run(lambda: self._adopt(stream, last_n, last_hash, reason))

    def _adopt(self, stream: str, last_n: int, last_hash: bytes, reason: str) -> None:
        self._outbox.adopt(stream, last_n, last_hash)
        with self._store.transaction():
            self._store.add_alarm(Alarm(self._environment.now_ms(), stream, None, reason))

    async def _stored_instead(self, stream: str, n: int, hash_: bytes, seq: int | None) -> bool:
        """Whether the server's event ``n`` is an earlier signing of ours; then all up to it are accepted."""
        accepted = await self._worker.run(lambda: self._outbox.stored_instead(stream, n, hash_))
        for entry in accepted or ():
            self._done(entry, Receipt(stream, entry.n, seq if entry.n == n else None, None))
        return accepted is not None


def _position_detail(trouble: Trouble) -> tuple[int, bytes]:
    """The number and hash that an answer must come with."""
    match trouble.detail:
        case [int(number), bytes(hash_), *_] if number >= 0 and len(hash_) == HASH_BYTES:
            return number, hash_
    raise ProtocolError("malformed", "an answer does not say what is stored")
