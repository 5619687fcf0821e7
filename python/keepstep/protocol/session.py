"""A session after the handshake, sans-I/O: records to messages and back, rekeying included (protocol.md section 2).

One WebSocket binary message is one record. The record counters are never sent, so a record that is lost, replayed
or reordered does not open and ends the session.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from keepstep.errors import ProtocolError
from keepstep.protocol.messages import (
    MESSAGE_BYTES_MAX,
    Bye,
    Draining,
    FromDevice,
    FromServer,
    Rekey,
    ServerRekey,
    decode_from_device,
    decode_from_server,
    encode,
)
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.states import State, Step, advance
from keepstep.validation import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Struct

    from keepstep.protocol.primitives import Opener, Primitives, Sealer

Received = TypeVar("Received")

REKEY_RECORDS: Final = 2**20
"""Records under one secret, the rekey record among them; a receiver refuses more."""
REKEY_INTERVAL_S: Final = 3600.0
"""Age of a secret at which its sender replaces it, seconds."""


def seal(sealer: Sealer, prepared: Sequence[bytes | None]) -> list[bytes]:
    """The records of what ``prepare`` returned, in order."""
    records: list[bytes] = []
    plaintexts: list[bytes] = []
    for each in prepared:
        if each is not None:
            plaintexts.append(each)
            continue
        records += sealer.seal_many(plaintexts)
        sealer.rekey()
        plaintexts.clear()
    return records + sealer.seal_many(plaintexts)


class _Session(abc.ABC, Generic[Received]):
    """What both sides share."""

    _REKEY: Struct
    _REKEY_OF_PEER: type[Struct]
    _DRAIN: type[Struct]
    _DRAIN_OF_PEER: type[Struct]

    def __init__(
        self,
        primitives: Primitives,
        *,
        suite: int,
        send_secret: bytes,
        receive_secret: bytes,
        aad: bytes,
        exporter: bytes,
        now_s: float,
    ) -> None:
        self._sealer = primitives.RecordSealer(suite, send_secret, aad)
        self._opener = primitives.RecordOpener(suite, receive_secret, aad)
        self._exporter = exporter
        self._rekeyed_at_s = now_s
        self._sent = 0
        self._state = State.ACTIVE

    @property
    def state(self) -> State:
        """``ACTIVE``, ``DRAINING`` or ``CLOSED``."""
        return self._state

    @property
    def exporter(self) -> bytes:
        """32 secret bytes that only the two ends of this session have."""
        return self._exporter

    @property
    def opener(self) -> Opener:
        """The peer's records: for whoever opens them in place of ``receive``."""
        return self._opener

    def close(self) -> None:
        """Take and give nothing more."""
        self._state = advance(self._state, Step.CLOSE)

    @property
    def sealer(self) -> Sealer:
        """Makes records of what ``prepare`` returns."""
        return self._sealer

    def prepare(self, messages: list[bytes], *, now_s: float) -> Sequence[bytes | None]:
        """What ``sealer`` has to make records of to send encoded messages, in order: they themselves, and rekeys.

        A rekey is put in where 2^20 records or one hour are reached: the message, and ``None`` behind it, where the
        sealer's ``rekey`` is called. All of it counts as sent, so it is to be sealed before anything else.

        Args:
            messages: each at most 2 MiB.
            now_s: monotonic seconds.

        Raises:
            ProtocolError: ``too_large``; ``unexpected`` after the session is closed. Nothing counts then.
        """
        if self._state is State.CLOSED:
            advance(self._state, Step.MESSAGE)
        for message in messages:  # there are one or two: gathering their sizes would cost more
            if len(message) > MESSAGE_BYTES_MAX:
                parse_size(len(message), bytes_max=MESSAGE_BYTES_MAX, what="a message")
        count = self._sent + len(messages)
        if count < REKEY_RECORDS - 1 and now_s - self._rekeyed_at_s < REKEY_INTERVAL_S:
            self._sent = count
            return messages
        return self._with_rekeys(messages, now_s)

    def _with_rekeys(self, messages: list[bytes], now_s: float) -> list[bytes | None]:
        prepared: list[bytes | None] = []
        if messages and now_s - self._rekeyed_at_s >= REKEY_INTERVAL_S:
            prepared += self._rekey(now_s)
        while messages:
            room = REKEY_RECORDS - 1 - self._sent  # the last record under a secret is its rekey
            prepared += messages[:room]
            self._sent += len(messages[:room])
            messages = messages[room:]
            if self._sent == REKEY_RECORDS - 1:
                prepared += self._rekey(now_s)
        return prepared

    def _rekey(self, now_s: float) -> tuple[bytes, None]:
        self._sent = 0
        self._rekeyed_at_s = now_s
        return encode(self._REKEY), None

    def send(self, messages: Sequence[Struct | bytes], *, now_s: float) -> list[bytes]:
        """Seal messages, in order; a rekey record is put in where 2^20 records or one hour are reached.

        Args:
            messages: structs, or messages already encoded; each at most 2 MiB encoded.
            now_s: monotonic seconds.

        Returns:
            one record for each WebSocket message to send, in this order.

        Raises:
            ProtocolError: ``unexpected`` where the session is closed; ``too_large``: nothing was sealed.
        """
        state = advance(self._state, Step.MESSAGE)
        plaintexts: list[bytes] = []
        for message in messages:
            if isinstance(message, self._DRAIN):
                state = advance(state, Step.DRAIN)
            plaintexts.append(message if isinstance(message, bytes) else encode(message))
        prepared = self.prepare(plaintexts, now_s=now_s)
        self._state = state
        return seal(self._sealer, prepared)

    def receive(self, data: bytes) -> Received:
        """Open one record and decode its message; after the peer's rekey the next secret is in place.

        Args:
            data: one WebSocket message.

        Returns:
            the message, a rekey included.

        Raises:
            ProtocolError: ``unsupported`` for an unknown type: to be answered, the session goes on. Every other code
                closes it: ``bad_record``, ``malformed``, ``too_large``, ``unexpected``.
        """
        try:
            return self._receive(data)
        except ProtocolError as error:
            if error.code != "unsupported":
                self.close()
            raise

    def _receive(self, data: bytes) -> Received:
        state = advance(self._state, Step.MESSAGE)
        parse_size(len(data), bytes_max=MESSAGE_BYTES_MAX + RECORD_TAG_BYTES, what="a record")
        last = self._opener.records == REKEY_RECORDS - 1
        message = self._decode(self._opener.open(data))
        if isinstance(message, self._REKEY_OF_PEER):
            self._opener.rekey()
        elif last:
            raise ProtocolError("unexpected", "the peer used a secret for too many records")
        elif isinstance(message, self._DRAIN_OF_PEER):
            state = advance(state, Step.DRAIN)
        self._state = state
        return message

    @abc.abstractmethod
    def _decode(self, plaintext: bytes) -> Received:
        """The peer's message."""


class ServerSession(_Session[FromDevice]):
    """The server's end of a session; ``ServerHandshake.ready`` makes it."""

    _REKEY = ServerRekey()
    _REKEY_OF_PEER = Rekey
    _DRAIN = Draining
    _DRAIN_OF_PEER = Bye

    def seal_ready(self, plaintext: bytes) -> bytes:
        """Ready as the first record under ap_s (counter 0)."""
        assert self._sealer.records == self._sent == 0
        self._sent = 1
        return self._sealer.seal(plaintext)

    def _decode(self, plaintext: bytes) -> FromDevice:
        return decode_from_device(plaintext)


class ClientSession(_Session[FromServer]):
    """The device's end of a session; ``ClientHandshake.receive_ready`` makes it."""

    _REKEY = Rekey()
    _REKEY_OF_PEER = ServerRekey
    _DRAIN = Bye
    _DRAIN_OF_PEER = Draining

    def open_ready(self, record: bytes) -> bytes:
        """Ready's plaintext, from the first record under ap_s. Raises bad_record."""
        assert self._opener.records == 0
        return self._opener.open(record)

    def _decode(self, plaintext: bytes) -> FromServer:
        return decode_from_server(plaintext)
