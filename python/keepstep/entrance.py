"""What lies between an accepted socket and HTTP on it, the same for devices and REST: the PROXY protocol, then TLS.

Whoever connects is a stranger here. The caller has counted the socket already and sets a deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from keepstep.errors import ProtocolError
from keepstep.proxies import TrustedProxies, plain_address
from keepstep.proxyheader import read_header

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from keepstep.tls import ServerCertificate

Stream = trio.abc.HalfCloseableStream | trio.SSLStream[trio.abc.HalfCloseableStream]
"""What HTTP is spoken on."""


class Place(Protocol):
    """A socket's place among those allowed, as ``admission.Ticket`` is one."""

    def identify(self, address: str) -> None:
        """The socket of a proxy is that client's. Raises ProtocolError ``too_many_connections``."""


def _ignore(_reason: str) -> None:
    """Told to nobody."""


class Entrance:
    """How connections come in.

    Args:
        proxies: who is believed about the client's address.
        proxy_protocol: every connection comes from a trusted proxy and begins with a PROXY header.
        certificate: serve TLS with it; ``None``: plain.
        on_refused: told why a connection ended here: ``proxy_header``, ``tls`` or ``timeout``.
    """

    def __init__(
        self,
        proxies: TrustedProxies | None = None,
        *,
        proxy_protocol: bool = False,
        certificate: ServerCertificate | None = None,
        on_refused: Callable[[str], None] = _ignore,
    ) -> None:
        self._proxies = proxies or TrustedProxies()
        self._proxy_protocol = proxy_protocol
        self._certificate = certificate
        self._on_refused = on_refused

    def believe(self, proxies: TrustedProxies) -> None:
        """From now on these are trusted instead: for connections and requests that come."""
        self._proxies = proxies

    @property
    def speaks_tls(self) -> bool:
        """Whether nothing may be sent on a socket that has not come through."""
        return self._certificate is not None

    @property
    def is_plain(self) -> bool:
        """Whether HTTP begins with the first byte of every connection."""
        return self._certificate is None and not self._proxy_protocol

    async def enter(
        self, stream: trio.abc.HalfCloseableStream, address: str, place: Place, *, deadline_s: float
    ) -> tuple[Stream, str] | None:
        """Bring a connection to where HTTP begins. The stream is the caller's to close, whatever comes of it.

        Args:
            stream: just accepted.
            address: the peer's IP address.
            place: told whose the connection is, as soon as that is known.
            deadline_s: of Trio's clock.

        Returns:
            The stream to speak HTTP on and the address that counts; ``None`` where the connection is to be closed:
            also where the client that the PROXY header names has too many.
        """
        with trio.move_on_at(deadline_s):
            try:
                address = await self._read_client(stream, address)
            except (ProtocolError, trio.BrokenResourceError):
                self._on_refused("proxy_header")
                return None
            if not self._proxies.trusts(address):
                try:
                    place.identify(address)
                except ProtocolError:  # whoever gives places counts the refusal
                    return None
            if self._certificate is None:
                return stream, address
            try:
                return await _secure(stream, self._certificate.context), address
            except trio.BrokenResourceError:
                self._on_refused("tls")
                return None
        self._on_refused("timeout")
        return None

    def client_address(self, address: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Who sent a request, by its headers where the connection is a trusted proxy's; see ``TrustedProxies``."""
        return self._proxies.client_address(address, headers)

    def is_proxy(self, address: str) -> bool:
        """Whether others come through that address."""
        return self._proxies.trusts(address)

    async def _read_client(self, stream: trio.abc.HalfCloseableStream, address: str) -> str:
        """The client's address by the PROXY header, where there is one. Raises ProtocolError."""
        if not self._proxy_protocol:
            return address
        if not self._proxies.trusts(address):
            raise ProtocolError("forbidden", "a PROXY header from somebody who is not trusted")
        return await read_header(stream) or address


async def _secure(
    stream: trio.abc.HalfCloseableStream, context: ssl.SSLContext
) -> trio.SSLStream[trio.abc.HalfCloseableStream]:
    """TLS, after its handshake. Raises trio.BrokenResourceError."""
    secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    await secured.do_handshake()
    return secured


def peer_address(stream: trio.SocketStream) -> str | None:
    """The IP address of the other end; ``None`` where it has gone already."""
    try:
        return plain_address(str(stream.socket.getpeername()[0]))
    except OSError:
        return None
