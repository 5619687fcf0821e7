"""Events of ``$devices`` stored again at the time at which they were received, so that they come to the same place.

What the journal holds, and what devices hand in after a restore (protocol.md section 4, Exact heal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.errors import ProtocolError, Unavailable
from keepstep.identity import Identity, Registrations
from keepstep.journal import NO_JOURNAL, AccountJournal, AccountRecord
from keepstep.model import DEVICES_STREAM, Position
from keepstep.protocol.account_payloads import (
    ACCOUNT_PAYLOAD_BYTES_MAX,
    FULL_CAPABILITIES,
    RotatePayload,
    decode_account,
)
from keepstep.protocol.chain import chain_next, event_hash, start_of_devices
from keepstep.protocol.event import encode_events
from keepstep.protocol.messages import EventRow, ResultError

if TYPE_CHECKING:
    from keepstep.interfaces import Accounts, EventLog

DEVICES_MAX: Final = 1_024
"""As the setting ``devices_per_user_max`` at its largest: what was let be is let be again."""
_UNBOUNDED: Final = 2**31
_NOWHERE: Final = ""
"""The address of what nobody sends."""


_ROW: Final = msgspec.msgpack.Decoder(EventRow)


class ReplayClock:
    """The time at which the next event was received."""

    def __init__(self) -> None:
        self.at_ms = 0

    def now_ms(self) -> int:
        """See ``interfaces.Clock``."""
        return self.at_ms

    def monotonic_s(self) -> float:
        """See ``interfaces.Clock``."""
        return trio.current_time()


class AccountReplay:
    """Puts events of ``$devices`` in their places again, one after the other.

    Args:
        log: where to.
        accounts: of the same storage.
        journal: takes what is put back.
    """

    def __init__(self, log: EventLog, accounts: Accounts, *, journal: AccountJournal = NO_JOURNAL) -> None:
        self._journal = journal
        self._one_at_a_time = trio.Lock()
        self._log = log
        self._accounts = accounts
        self._clock = ReplayClock()
        registrations = Registrations("open", per_address_hour=_UNBOUNDED, per_hour=_UNBOUNDED, clock=self._clock)
        self._identity = Identity(log, accounts, registrations, self._clock, devices_per_user_max=DEVICES_MAX)

    async def head(self, user_key: bytes) -> Position:
        """Of the user's ``$devices``; the start where there is no such user. Raises Unavailable."""
        return (await self._head(user_key))[0]

    async def _head(self, user_key: bytes) -> tuple[Position, int]:
        """The head, and when it was received."""
        user_pk = await self._accounts.user(user_key)
        if user_pk is None:
            return start_of_devices(_keepstep, user_key), 0
        head = (await self._log.stream(user_pk, DEVICES_STREAM)).head
        page = await self._log.read(
            user_pk, DEVICES_STREAM, after=head.seq - 1, events_max=1, bytes_max=1, now_ms=self._clock.now_ms()
        )
        return head, _ROW.decode(page.rows)[2]

    async def place(self, user_key: bytes, row: EventRow) -> Position:
        """Store the event that follows the head; its place and the chain there.

        Raises:
            ProtocolError: it may not come next, or does not come to its place.
            Unavailable: the database is away.
        """
        async with self._one_at_a_time:  # the clock shows one event's time
            return await self._place(user_key, row)

    async def _place(self, user_key: bytes, row: EventRow) -> Position:
        seq, device_id, received_at_ms, header, sig, payload, _ = row
        self._clock.at_ms = received_at_ms
        before, before_ms = await self._head(user_key)
        if seq != before.seq + 1 or payload is None or received_at_ms < before_ms:
            raise ProtocolError("conflict", "the event does not follow the account log")
        expected = chain_next(_keepstep, before.chain, seq, received_at_ms, event_hash(_keepstep, header, sig))
        body = msgspec.msgpack.encode([header, sig, payload])
        if seq == 1:
            await self._identity.register(body, address=_NOWHERE)
        elif isinstance(decode_account(payload), RotatePayload):
            await self._identity.rotate(user_key, body, address=_NOWHERE)
        else:
            await self._publish(user_key, device_id, header, sig, payload, received_at_ms)
        after = await self.head(user_key)
        if after != Position(seq, expected):
            raise ProtocolError("internal", "an account event did not come to its place")
        await self._journal.keep(AccountRecord(user_key, seq, received_at_ms, device_id, header, sig, payload))
        return after

    async def _publish(
        self, user_key: bytes, device_id: bytes, header: bytes, sig: bytes, payload: bytes, received_at_ms: int
    ) -> None:
        known = await self._accounts.device(user_key, device_id)
        if known is None:
            raise ProtocolError("forbidden", "the author is no device of this account")
        author = known.principal
        events = Events.parse(
            encode_events([(header, sig, payload)]), events_max=1, payload_bytes_max=ACCOUNT_PAYLOAD_BYTES_MAX
        )
        self._identity.forget(author.user_pk)
        change = await self._identity.check_account_event(author, events.event(0), now_ms=received_at_ms)
        submission = Submission(
            user_pk=author.user_pk,
            user_key=user_key,
            device_pk=author.device_pk,
            device_id=device_id,
            device_key=DeviceKey(author.device_key),
            capabilities=int(FULL_CAPABILITIES),  # the account log has decided
            events=events,
        )
        appended = await self._log.append([submission], now_ms=received_at_ms, account_change=change)
        (result,) = appended.results[0]
        if isinstance(result, ResultError):
            if result.code == "unavailable":
                raise Unavailable("an account event could not be stored now")
            raise ProtocolError(result.code)
