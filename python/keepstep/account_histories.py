"""What is stored of an account against its file, before anything of the file is stored: two histories never mix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from keepstep import _keepstep
from keepstep.account_beginning import read_beginning
from keepstep.account_file import PAGE_EVENTS_MAX, AccountFileError
from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, Position
from keepstep.protocol.chain import chain_next, decode_head, event_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.account_file import AccountFile
    from keepstep.interfaces import EventLog, StreamInfo
    from keepstep.model import UserPk


async def stored_positions(file: AccountFile, log: EventLog, user_pk: UserPk) -> dict[str, int]:
    """Up to which seq each stream of a file is stored already, as the file has it. Cancel-safe; stores nothing.

    Raises:
        AccountFileError: another history of the account is stored; the message says where they part.
        Unavailable: the database is away; it may be repeated.
    """
    stored = {info.name: info for info in await log.streams(user_pk)}
    ends = {name: _end(file, name) for name in file.streams}
    comparison = _Comparison(file, log, user_pk)
    for name in sorted(ends, key=lambda name: name != DEVICES_STREAM):
        if name in stored:
            await comparison.compare(stored[name], ends[name])
    _check_devices(ends, {name: info.head.seq for name, info in stored.items()})
    return {name: min(end, stored[name].head.seq) for name, end in ends.items() if name in stored}


def _end(file: AccountFile, name: str) -> int:
    """The last seq of a stream, as the file says; its signature is verified when the events have led there."""
    try:
        return decode_head(file.streams[name].head[0]).seq
    except ProtocolError as exc:
        raise AccountFileError(f"{name}: the head is not signed by the server that wrote the file") from exc


def _check_devices(ends: Mapping[str, int], heads: Mapping[str, int]) -> None:
    """Where the devices changed on one side only, nothing was written on the other one since.

    Whether a device may have written is a matter of order, and between two servers there was none.
    """
    for longer, shorter, ahead, behind in ((ends, heads, "in the file", "here"), (heads, ends, "here", "in the file")):
        if longer[DEVICES_STREAM] > shorter[DEVICES_STREAM]:
            for name, seq in shorter.items():
                if seq > longer.get(name, 0):
                    raise AccountFileError(
                        f"{name}: another history of this account is here: "
                        f"the devices changed {ahead}, and this stream went on {behind}"
                    )


class _Comparison:
    """A file and what is stored of its account."""

    def __init__(self, file: AccountFile, log: EventLog, user_pk: UserPk) -> None:
        self._file = file
        self._log = log
        self._user_pk = user_pk

    async def compare(self, stored: StreamInfo, end: int) -> None:
        """Raises AccountFileError where a stream is another one in the file, or does not join on."""
        name = stored.name
        begins, _ = read_beginning(self._file, name)
        if begins.seq > stored.head.seq:
            raise AccountFileError(
                f"{name}: the file has it after #{begins.seq}, and it ends at #{stored.head.seq} here: "
                "what lies between is gone"
            )
        first = max(begins.seq, 0 if stored.tail is None else stored.tail.seq)
        last = min(end, stored.head.seq)
        if first > last or await self._is_same(stored, last):
            return  # of what is gone here the file brings nothing
        while first < last:
            middle = (first + last) // 2
            if await self._is_same(stored, middle):
                first = middle + 1
            else:
                last = middle
        raise AccountFileError(f"{name}#{last}: another history of this account is here")

    async def _is_same(self, stored: StreamInfo, seq: int) -> bool:
        known = {at.seq: at.chain for at in (stored.head, stored.tail) if at is not None}
        chain = known.get(seq) or await self._log.chain_at(self._user_pk, stored.name, seq)
        return chain == await self._chain(stored.name, seq)

    async def _chain(self, name: str, seq: int) -> bytes | None:
        """The chain of a stream in the file; ``None`` where its events do not lead there."""
        at, _ = read_beginning(self._file, name)
        if at.seq == seq:
            return at.chain
        for index, (next_seq, _, received_at_ms, header, sig, _, _) in enumerate(self._file.rows(name)):
            if index % PAGE_EVENTS_MAX == 0:
                await trio.lowlevel.checkpoint()
            hash_ = event_hash(_keepstep, header, sig)
            at = Position(at.seq + 1, chain_next(_keepstep, at.chain, at.seq + 1, received_at_ms, hash_))
            if next_seq != at.seq:
                return None
            if at.seq == seq:
                return at.chain
        return None
