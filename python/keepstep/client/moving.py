"""How a device goes on at another server, to which its account was moved (docs/how-to/move-an-account.md).

A device believes no server but the one it pins, so nobody but its user can say so, on each device. And the other
server has to have the account as this device knows it: everything that it has verified, that was acknowledged to it,
and that the first server signed. Where it has not, the device stays where it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.environment import SYSTEM
from keepstep.client.http import raise_for_problem
from keepstep.client.locallog import LocalLog
from keepstep.client.rest import RestClient, decode_answer
from keepstep.client.restdevice import EventPage, StreamPlace, signed_head, to_row
from keepstep.client.store import check_live, open_store
from keepstep.errors import ClientError, ProtocolError, VerificationError
from keepstep.model import Position
from keepstep.protocol.chain import chain_next, decode_head, event_hash, verify_head
from keepstep.protocol.streamstate import state_at_start

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.server import Server
    from keepstep.client.store import Store
    from keepstep.protocol.messages import SignedHead
    from keepstep.protocol.streamstate import StreamState

PAGE_EVENTS: Final = 500
"""Events asked for at a time."""


async def move_device(
    path: Path, server: Server, *, environment: Environment = SYSTEM, tls: ssl.SSLContext | None = None
) -> None:
    """Have a device belong to another server from now on, which has its account.

    Args:
        path: the device's file; no process has it open.
        server: from ``find_server``; its key is the one that the user trusts.
        environment: clock and randomness.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: the file is not there, not a device's, or in use; the server cannot be reached, does not know the
            device, lacks something that the device knows of, or cannot show any more that its history is this one.
        VerificationError: the server has another history of the account.

    In every case of these, and after a cancellation, the device belongs where it did, or to the other server.
    """
    worker = environment.make_worker()
    store = await worker.run(lambda: open_store(path))
    try:
        check_live(store)
        if store.genesis() is not None:
            raise ClientError("the first server has not taken this device's account yet: connect the device there once")
        identity = replace(
            store.identity, device_url=server.device_url, rest_url=server.rest_url, server_key=server.server_key
        )
        client = RestClient(identity, environment=environment, tls=tls)
        log = LocalLog(store)
        states = await worker.run(lambda: _states(store, log))
        pending = await worker.run(lambda: store.healed_epoch() < store.epoch())
        await _sign_in(client, server)
        for stream, state in states.items():
            receipt = await trio.to_thread.run_sync(store.receipt, stream)
            await _Comparison(client, server, identity.user_key, stream, pending=pending).compare(state, receipt)
        await worker.run(lambda: _move(store, log, server))
    finally:
        store.close()


async def _sign_in(client: RestClient, server: Server) -> None:
    try:
        await client.access_token()
    except ProtocolError as exc:
        if exc.code != "auth_failed":
            raise
        raise ClientError(
            f"the server at {server.rest_url} does not know this device: import its account there first"
        ) from exc


def _states(store: Store, log: LocalLog) -> dict[str, StreamState]:
    """How far the device has read each stream that it has read or written."""
    user_key = store.identity.user_key
    written = {stream: state_at_start(crypto, user_key, stream) for stream in store.own_streams()}
    return written | log.streams()


def _move(store: Store, log: LocalLog, server: Server) -> None:
    with store.transaction():
        store.belong_to(server.device_url, server.rest_url, server.server_key)
        for stream, state in log.streams().items():
            # What the first server signed was compared; the other one counts its epochs for itself.
            log.save(stream, msgspec.structs.replace(state, heads=[]), ())


class _Comparison:
    """One stream as the other server has it, against what a device knows of it.

    ``pending``: a restore set the first server back, and the device has not handed in what it holds yet. Nothing of
    that is lost, because the device goes only where all of it is.
    """

    def __init__(self, client: RestClient, server: Server, user_key: bytes, stream: str, *, pending: bool) -> None:
        self._pending = pending
        self._client = client
        self._server = server
        self._user_key = user_key
        self._stream = stream

    async def compare(self, state: StreamState, receipt: Position) -> None:
        """Raises as ``move_device``."""
        places = [receipt, *(_place(signed) for signed in state.heads)]
        known = {at.seq: at.chain for at in places if at.seq > state.seq} | {state.seq: state.chain}
        last = max(known)
        if last == 0:
            return
        head = await self._head(last)
        if head.seq < last:
            raise self._behind(head.seq, last)
        self._check(head.seq, head.chain, known)
        seq, chain = state.seq, state.chain
        # One page even where nothing more is known: it shows that the events there join on to this device's.
        while seq < min(max(last, state.seq + 1), head.seq):
            seq, chain = await self._page(seq, chain, known)

    def _check(self, seq: int, chain: bytes, known: dict[int, bytes]) -> None:
        if known.get(seq, chain) != chain:
            raise VerificationError("the other server has another history", stream=self._stream, seq=seq)

    async def _head(self, last: int) -> Position:
        response = await self._client.request("GET", f"/api/v1/streams/{quote(self._stream, safe='/$@:')}")
        if response.status == 404:
            raise self._behind(0, last)
        raise_for_problem(response)
        try:
            head = verify_head(
                crypto, self._server.server_key, signed_head(decode_answer(response, StreamPlace).signed_head)
            )
        except ProtocolError as exc:
            raise VerificationError("a head does not verify", stream=self._stream) from exc
        if (head.user_key, head.stream) != (self._user_key, self._stream):
            raise VerificationError("a head is of another stream", stream=self._stream)
        return Position(head.seq, head.chain)

    async def _page(self, seq: int, chain: bytes, known: dict[int, bytes]) -> tuple[int, bytes]:
        """Read on, and compare; where it led to."""
        query = urlencode({"stream": self._stream, "after": seq, "limit": PAGE_EVENTS})
        response = await self._client.request("GET", f"/api/v1/events?{query}")
        try:
            raise_for_problem(response)
        except ProtocolError as exc:
            if exc.code != "pruned":
                raise
            raise ClientError(
                f"the server at {self._server.rest_url} has only later events of {self._stream} left, and this device "
                f"has read up to #{seq}: connect the device where it was until it has read on, and move it then"
            ) from exc
        page = decode_answer(response, EventPage)
        before = seq
        for event in page.events:
            at, _, received_at_ms, header, sig, _, _ = to_row(event)
            if at != seq + 1:
                break
            seq, chain = at, chain_next(crypto, chain, at, received_at_ms, event_hash(crypto, header, sig))
            self._check(seq, chain, known)
        if seq == before or chain.hex() != page.chain:
            raise VerificationError("the other server has another history", stream=self._stream, seq=seq)
        return seq, chain

    def _behind(self, has: int, last: int) -> ClientError:
        first = "connect the device where it was until it has handed in what a restore took there, then "
        return ClientError(
            f"the server at {self._server.rest_url} has {self._stream} up to #{has}, and this device knows of #{last}: "
            f"{first if self._pending else ''}export the account again where it was, and import it there"
        )


def _place(signed: SignedHead) -> Position:
    head = decode_head(signed[0])
    return Position(head.seq, head.chain)
