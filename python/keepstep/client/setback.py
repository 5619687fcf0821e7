"""What a follower does where a restore set the server's log back: believe it only if it is signed, then go back too.

protocol.md section 4, "After a restore". Calls block on the disk.
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from keepstep.client import crypto
from keepstep.client.settingback import account_at, heads_up_to, set_back
from keepstep.errors import VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Position
from keepstep.protocol.chain import chain_0, decode_head
from keepstep.protocol.streamstate import state_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Followed
    from keepstep.client.locallog import LocalLog
    from keepstep.client.rewinds import Restoration, Rewinds
    from keepstep.client.store import Store
    from keepstep.protocol.account import AccountLog
    from keepstep.protocol.messages import Rewound, SignedRewind
    from keepstep.protocol.reader import StreamVerifier
    from keepstep.protocol.streamstate import StreamState


class SetBack(abc.ABC):
    """The part of a ``Follower`` that is about restores."""

    _store: Store
    _log: LocalLog
    _environment: Environment
    _states: dict[str, StreamState]
    account: AccountLog
    followed: dict[str, Followed]
    rewinds: Rewinds

    @abc.abstractmethod
    def _verifier(self, stream: str, state: StreamState) -> StreamVerifier:
        """Of a stream, to go on from a state."""

    @abc.abstractmethod
    def _promises(self, stream: str) -> list[Position]:
        """What the server has acknowledged to this device, and what its enroller knew."""

    @abc.abstractmethod
    def _read_wraps(self) -> None:
        """Learn anew for whom content keys are wrapped, from what is kept of ``$keys``."""

    def _floor(self, state: StreamState, stream: str) -> int | None:
        """How far back restores may have set a stream since the server last signed a head of it, if there were any."""
        known = max((decode_head(signed[0]).epoch for signed in state.heads), default=0)
        return self.rewinds.floor(stream, since=known)

    def _forget_dead(self, followed: Followed, verifier: StreamVerifier) -> StreamVerifier:
        """Forget what the server said of a branch that a restore ended; what this device has verified is not of it.

        The log holds this device's position.
        """
        stream, state = followed.name, verifier.state
        receipts = self.rewinds.floor(stream, since=self._store.own_epoch(stream))
        if receipts is not None and self._store.receipt(stream).seq > max(receipts, state.seq):
            self._store.forget_receipt(stream)
        floor = self._floor(state, stream)
        end = state.seq if floor is None else max(floor, state.seq)
        if stream == DEVICES_STREAM and floor is not None and self._store.identity.handed_over.seq > end:
            self._hand_over(state.position)
        followed.promised_seq = min(followed.promised_seq, max(each.seq for each in self._promises(stream)))
        if floor is None:
            return verifier
        heads = [signed for signed in state.heads if decode_head(signed[0]).seq <= end]
        followed.verifier = self._verifier(stream, msgspec.structs.replace(state, heads=heads, claimed=None))
        return followed.verifier

    def _hand_over(self, position: Position) -> None:
        self._store.hand_over(position)
        self._store.identity = replace(self._store.identity, handed_over=position)

    def _rewound(self, followed: Followed, message: Rewound) -> int:
        """The server does not hold this device's position: how far back its restores explain that.

        Raises:
            VerificationError: they do not.
        """
        stream = followed.name
        self.rewinds.take(stream, message.rewinds)
        verifier = followed.verifier
        floor = None if verifier is None else self._floor(verifier.state, stream)
        if verifier is None or floor is None:
            raise VerificationError("the log went back, and no restore explains it", stream=stream)
        return min(floor, verifier.position.seq)

    def take_rewinds(self, stream: str, signed: Sequence[SignedRewind]) -> None:
        """Keep the rewinds of a stream that is written and not read. Raises VerificationError, StoreError."""
        with self._store.transaction():
            self.rewinds.take(stream, signed)

    def chain_of(self, stream: str, seq: int) -> bytes | None:
        """The chain of a stream at a seq, where this device holds it."""
        if seq == 0:
            return chain_0(crypto, self._store.identity.user_key, stream)
        state = self._states.get(stream)
        return state.chain if state is not None and state.seq == seq else self._log.chain_at(stream, seq)

    def state_of(self, stream: str) -> StreamState:
        """What verification carries of a stream that this device reads."""
        return self._states[stream]

    def set_back(self, restoration: Restoration) -> None:
        """Drop what is beyond ``common_seq``, and remember why; one transaction.

        Raises:
            StoreError: the disk is full: nothing was changed.
        """
        stream, seq = restoration.stream, restoration.common_seq
        chain = self.chain_of(stream, seq)
        to = Position(seq, self.rewinds.chain_at(stream, seq) if chain is None else chain)
        with self._store.transaction():
            if chain is None:  # what was there has left this device's log: it begins anew where the server says
                state = msgspec.structs.replace(state_at(to), heads=heads_up_to(self._states[stream], seq))
            else:
                state = set_back(self._log, stream, self._states[stream], to)
            if stream == DEVICES_STREAM:
                self.account.adopt(account_at(self._log, self._store.identity.user_key, to))
                self._store.save_account(self.account.state.encode())
                if self._store.identity.handed_over.seq > seq:
                    self._hand_over(to)
            if self._store.receipt(stream).seq > seq:
                self._store.forget_receipt(stream)
            self._log.set_back(stream, state)
            self._states[stream] = state
            if stream in self.followed:
                self.followed[stream].verifier = self._verifier(stream, state)
                self.followed[stream].promised_seq = 0
            if stream == KEYS_STREAM:
                self._read_wraps()
            self.rewinds.add(restoration)

    def remember(self, restoration: Restoration) -> None:
        """Keep what came of a restore where this device drops nothing."""
        with self._store.transaction():
            self.rewinds.add(restoration)

    def set_healed(self, epoch: int) -> None:
        """Everything was handed in that a restore had lost."""
        with self._store.transaction():
            self._store.set_healed(epoch)
