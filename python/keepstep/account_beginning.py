"""The beginnings of streams that are gone, as an account file has them: checked before anything is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.account_file import AccountFileError
from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Position, PrunedPrefix
from keepstep.protocol.chain import chain_0, verify_head
from keepstep.protocol.event import decode_header, verify_event
from keepstep.protocol.pruning import KEPT_KINDS

if TYPE_CHECKING:
    from keepstep.account_file import AccountFile
    from keepstep.model import KeptRow, Principal


def read_beginning(file: AccountFile, stream: str) -> tuple[Position, PrunedPrefix | None]:
    """Where the events of a stream in a file begin, and what stands for those before; ``None`` where there are none.

    Raises:
        AccountFileError: it is not what the server that wrote the file signed.
    """
    user_key, gone = file.begin.user_key, file.streams[stream].gone
    if not gone:
        return Position(0, chain_0(_keepstep, user_key, stream)), None
    said = gone[0]
    try:
        head = verify_head(_keepstep, file.begin.server_key, said.head)
    except ProtocolError as exc:
        raise AccountFileError(f"{stream}: the beginning is not signed by the server that wrote the file") from exc
    at = Position(said.to_seq, said.chain)
    if (head.user_key, head.stream, head.seq, head.chain) != (user_key, stream, at.seq, at.chain):
        raise AccountFileError(f"{stream}: the beginning is that of another stream or place")
    if stream in (DEVICES_STREAM, KEYS_STREAM):
        raise AccountFileError(f"{stream}: it is kept for ever, and its beginning is not here")
    if sum(n for n, _ in said.authors.values()) != at.seq:
        raise AccountFileError(f"{stream}: the authors of its beginning did not write as many events as are gone")
    kept = tuple(row[:6] for row in said.kept)
    for row in kept:
        _check_kept(stream, row, said.authors, at.seq)
    return at, PrunedPrefix(at, said.authors, kept)


def _check_kept(stream: str, row: KeptRow, authors: dict[bytes, tuple[int, bytes]], to_seq: int) -> None:
    try:
        header = decode_header(row[3])
    except ProtocolError as exc:
        raise AccountFileError(f"{stream}#{row[0]}: a header does not have its form") from exc
    last_n = authors.get(row[1], (0, b""))[0]
    if header.stream != stream or header.kind not in KEPT_KINDS or not 1 <= row[0] <= to_seq or header.n > last_n:
        raise AccountFileError(f"{stream}#{row[0]}: it was not in the beginning of the stream")


def is_signed(user_key: bytes, author: Principal, row: KeptRow) -> bool:
    """Whether an event is the one that its author signed, with its payload where it has one."""
    _, device_id, _, header, sig, payload = row
    if payload is not None and _keepstep.blake3(payload) != decode_header(header).payload_hash:
        return False
    try:
        verify_event(
            _keepstep,
            device_key=author.device_key,
            user_key=user_key,
            device_id=device_id,
            header=header,
            sig=sig,
        )
    except ProtocolError:
        return False
    return True
