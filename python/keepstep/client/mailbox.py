"""One side's end of the mailbox through which a device is linked, over REST (protocol.md section 4, Linking)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from keepstep.client.http import raise_for_problem, request
from keepstep.client.rest import JSON, decode_answer
from keepstep.errors import ClientError, ProtocolError
from keepstep.protocol.linking import MESSAGE_BYTES_MAX
from keepstep.validation import format_base64url, parse_base64url

if TYPE_CHECKING:
    import ssl

    from keepstep.client.http import Response

WAIT_S: Final = 15
"""How long one request waits for a message, seconds; then it is asked for again."""
LINK_OVER: Final = "the link is over: show a new invitation"


class _Written(msgspec.Struct, frozen=True):
    message: str
    address: str


class Mailbox:
    """One side's. Messages of each side are numbered; this counts them.

    Args:
        origin: where REST is.
        link_id: 16 bytes.
        side: whose end this is.
        tls: for ``https``; the system's trusted certificates by default.
    """

    def __init__(
        self, origin: str, link_id: bytes, side: Literal["trusted", "new"], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._base = f"{origin}/api/v1/links/{link_id.hex()}"
        self._mine = side
        self._theirs = "new" if side == "trusted" else "trusted"
        self._tls = tls
        self._written = 0
        self._read = 0

    async def write(self, message: bytes) -> None:
        """Write the next message.

        Raises:
            ClientError: the link is over, or the server cannot be reached.
            ProtocolError: ``link_taken``: somebody else is this side of the link; the server refuses otherwise.
        """
        body = msgspec.json.encode({"message": format_base64url(message)})
        url = f"{self._base}/{self._mine}/{self._written}"
        response = await request("PUT", url, body=body, content_type=JSON, tls=self._tls)
        _raise(response)
        self._written += 1

    async def read(self) -> tuple[bytes, str]:
        """The other side's next message, waited for while the link lasts, and the address that the server saw.

        Raises:
            ClientError: the link is over, or the server cannot be reached.
            ProtocolError: the server refuses.

        A cancellation loses no message.
        """
        while True:
            url = f"{self._base}/{self._theirs}/{self._read}?wait_s={WAIT_S}"
            response = await request("GET", url, tls=self._tls)
            _raise(response)
            if response.status != 204:
                written = decode_answer(response, _Written)
                message = parse_base64url(written.message, bytes_max=MESSAGE_BYTES_MAX, what="a message of a link")
                self._read += 1
                return message, written.address


def _raise(response: Response) -> None:
    try:
        raise_for_problem(response)
    except ProtocolError as error:
        if error.code == "not_found":
            raise ClientError(LINK_OVER) from error
        raise
