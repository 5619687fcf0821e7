"""REST as one device: a token that is got with the device's key and kept fresh (protocol.md section 2, Over REST)."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.environment import SYSTEM
from keepstep.client.http import raise_for_problem, request
from keepstep.client.repinning import read_announcements, successor
from keepstep.errors import ClientError, ProtocolError
from keepstep.model import SIGNATURE_BYTES
from keepstep.protocol.challenge import NONCE_BYTES, Purpose, Statement, sign_statement
from keepstep.protocol.receipt import RECEIPT_BYTES_MAX, verify_receipt
from keepstep.validation import format_base64url, parse_base64url, parse_origin, parse_server_key

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from keepstep.client.environment import Environment
    from keepstep.client.http import Response
    from keepstep.client.store import Identity
    from keepstep.protocol.succession import Announcement

_Answer = TypeVar("_Answer")

MARGIN_MS: Final = 30_000
"""An access token that is good for less is replaced before it is used."""
RESPONSE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest answer taken, bytes: a page of events as large as a server can be configured to send."""
JSON: Final = "application/json"


class _Challenge(msgspec.Struct, frozen=True):
    """The answer to a challenge that was asked for."""

    nonce: str
    server_key: str
    origin: str


class _Deleted(msgspec.Struct, frozen=True):
    """The answer to a deletion."""

    receipt: str
    signature: str


class _Grant(msgspec.Struct, frozen=True):
    """A pair of tokens."""

    access_token: str
    expires_in_s: int
    refresh_token: str
    refresh_expires_in_s: int


class RestClient:
    """Asks REST for one device. Any number of tasks may use it.

    Args:
        identity: the device.
        rest_url: where REST is, if not where the device knows it; it is part of what the device signs.
        environment: its clock.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: that is no address of a REST interface.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        rest_url: str | None = None,
        environment: Environment = SYSTEM,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address = rest_url or identity.rest_url
        try:
            self.origin = parse_origin(address)
        except ProtocolError as exc:
            raise ClientError(f"{address} is not the address of a REST interface: {exc.detail}") from exc
        self._identity = identity
        self._environment = environment
        self._tls = tls
        self._lock = trio.Lock()
        self._grant: _Grant | None = None
        self._got_at_ms = 0
        self._announcements: Callable[[], Iterable[Announcement]] = tuple
        self._repinned: Callable[[bytes], Awaitable[object]] | None = None

    def follow_server(
        self, announcements: Callable[[], Iterable[Announcement]], repinned: Callable[[bytes], Awaitable[object]]
    ) -> None:
        """Have the device pin the key to which the server has gone on.

        Args:
            announcements: those that the device has read in ``$devices``; what REST announces comes to them.
            repinned: told the new key, to which announcements lead from the pinned one.
        """
        self._announcements, self._repinned = announcements, repinned

    async def access_token(self) -> str:
        """A token that is good for a while yet; got or refreshed where there is none.

        Raises:
            ClientError: the server cannot be reached, or is another one than the device knows.
            ProtocolError: the server refuses: ``auth_failed`` where it does not know the device, or has revoked it.

        After a cancellation the next call begins anew.
        """
        async with self._lock:
            now_ms = self._environment.now_ms()
            grant = self._grant
            if grant is None or now_ms > self._got_at_ms + grant.expires_in_s * 1000 - MARGIN_MS:
                grant = await self._renew(grant)
                self._grant, self._got_at_ms = grant, now_ms
            return grant.access_token

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str | None = None,
        sink: Callable[[bytes], Awaitable[object]] | None = None,
    ) -> Response:
        """One request as the device; one more with a new token where the server takes this one no longer.

        Args:
            method: ``GET``, ``POST`` and so on.
            path: from ``/api/v1/`` on, with its query.
            body: the request's body.
            content_type: its media type.
            sink: as for ``http.request``.

        Returns:
            the answer, also where it is an error: see ``http.raise_for_problem``.

        Raises:
            ClientError, ProtocolError: as ``access_token``.

        After a cancellation it is not known whether the server acted on the request.
        """
        token = await self.access_token()
        response = await self._send(token, method, path, body, content_type, sink)
        if response.status == 401:
            # The server does not take it any more, whatever its time: sign a challenge again, unless another task has.
            async with self._lock:
                if self._grant is not None and self._grant.access_token == token:
                    self._grant = None
            response = await self._send(await self.access_token(), method, path, body, content_type, sink)
        return response

    async def _send(
        self,
        token: str,
        method: str,
        path: str,
        body: bytes,
        content_type: str | None,
        sink: Callable[[bytes], Awaitable[object]] | None,
    ) -> Response:
        return await request(
            method,
            f"{self.origin}{path}",
            body=body,
            content_type=content_type,
            headers={"Authorization": f"Bearer {token}"},
            response_bytes_max=RESPONSE_BYTES_MAX,
            sink=sink,
            tls=self._tls,
        )

    async def sign_out(self) -> None:
        """End the tokens of this client on the server. Raises ClientError, ProtocolError."""
        grant = self._grant
        if grant is None:
            return
        response = await self.request(
            "POST", "/api/v1/auth/revoke", body=msgspec.json.encode({"scope": "family"}), content_type=JSON
        )
        raise_for_problem(response)
        self._grant = None

    async def delete_account(self) -> tuple[bytes, bytes]:
        """Delete the account and everything of it on the server, for ever. The device must be one that manages it.

        Returns:
            the server's receipt and its signature, verified (protocol.md section 2, Over REST).

        Raises:
            ClientError, ProtocolError: as ``access_token``; ``forbidden`` for another device. Where the receipt proves
                nothing, ``ClientError``: the server said that the account is deleted, and did not sign it.

        After a cancellation it is not known whether the account is there.
        """
        body = msgspec.json.encode(await self._prove(Purpose.DELETE_ACCOUNT))
        response = await self.request("DELETE", "/api/v1/account", body=body, content_type=JSON)
        raise_for_problem(response)
        self._grant = None
        deleted = decode_answer(response, _Deleted)
        try:
            receipt = parse_base64url(deleted.receipt, bytes_max=RECEIPT_BYTES_MAX, what="a receipt")
            sig = parse_base64url(deleted.signature, bytes_max=SIGNATURE_BYTES, what="a signature")
            signed = verify_receipt(crypto, self._identity.server_key, receipt, sig)
        except ProtocolError as exc:
            raise ClientError("the server says that the account is deleted, and its receipt proves nothing") from exc
        if signed.user_key != self._identity.user_key:
            raise ClientError("the server's receipt is for another account")
        return receipt, sig

    async def _renew(self, grant: _Grant | None) -> _Grant:
        if grant is not None:
            asked = {"user_id": self._identity.user_key.hex(), "refresh_token": grant.refresh_token}
            try:
                return await self._ask("refresh", asked, _Grant)
            except ProtocolError as error:
                # It has run out, or its answer was lost the last time: the device's key is good still.
                if error.code != "auth_failed":
                    raise
        return await self._sign_in()

    async def _sign_in(self) -> _Grant:
        proof = await self._prove(Purpose.TOKEN)
        device_key = crypto.ed25519_public(self._identity.device_secret).hex()
        return await self._ask("token", self._who() | proof | {"device_key": device_key}, _Grant)

    def _who(self) -> dict[str, str]:
        identity = self._identity
        return {"user_id": identity.user_key.hex(), "device_id": str(uuid.UUID(bytes=identity.device_id))}

    async def _prove(self, purpose: Purpose) -> dict[str, str]:
        """A challenge of the server, and the device's signature over it; good once."""
        identity = self._identity
        challenge = await self._ask("challenge", self._who() | {"purpose": purpose.value}, _Challenge)
        if challenge.server_key != identity.server_key.hex():
            identity = await self._follow(challenge.server_key)
        if challenge.origin != self.origin:
            raise ClientError(
                f"the server at {self.origin} says that it is at {challenge.origin}: use that address, or set "
                "KEEPSTEP_PUBLIC_REST_URL on the server to the one that its devices use"
            )
        # What is signed is this device's own idea of the server: nobody in between can use the signature elsewhere.
        statement = Statement(
            server_key=identity.server_key,
            origin=self.origin,
            user_key=identity.user_key,
            device_id=identity.device_id,
            nonce=parse_base64url(challenge.nonce, bytes_max=NONCE_BYTES, what="a nonce"),
            purpose=purpose,
        )
        signature = sign_statement(crypto, identity.device_secret, statement)
        return {"nonce": challenge.nonce, "signature": format_base64url(signature)}

    async def _follow(self, shown: str) -> Identity:
        """The device as it knows the server by the key that it shows; ``repinning`` says which one it may be."""
        pinned = self._identity.server_key
        _, told = await read_announcements(self.origin, tls=self._tls)
        server_key = successor(pinned, [*self._announcements(), *told], shown=_key(shown))
        if server_key == pinned:
            raise ClientError(f"{self.origin} is another server than the one this device belongs to")
        if self._repinned is not None:
            await self._repinned(server_key)
        self._identity = replace(self._identity, server_key=server_key)
        return self._identity

    async def _ask(self, what: str, body: dict[str, str], answer_type: type[_Answer]) -> _Answer:
        response = await request(
            "POST",
            f"{self.origin}/api/v1/auth/{what}",
            body=msgspec.json.encode(body),
            content_type=JSON,
            tls=self._tls,
        )
        raise_for_problem(response)
        return decode_answer(response, answer_type)


def _key(shown: str) -> bytes:
    """The server key in an answer. Raises ClientError."""
    try:
        return parse_server_key(shown)
    except ProtocolError as exc:
        raise ClientError("the server's answer is in no form that is known") from exc


def decode_answer(response: Response, answer_type: type[_Answer]) -> _Answer:
    """A JSON answer; fields beyond the known ones are ignored.

    Raises:
        ClientError: it is in no form that is known.
    """
    try:
        return msgspec.json.decode(response.body, type=answer_type)
    except (msgspec.DecodeError, ValueError) as exc:
        raise ClientError("the server's answer is in no form that is known") from exc
